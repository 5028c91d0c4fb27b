package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/filetable"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/egress/dns"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

const (
	// workerPatience is how long after the drain time-out the worker may take to exit: fleet
	// gives each sandbox 20 s, and shuts all of them down at once.
	workerPatience = 45 * time.Second
	// forcedPatience is how long the worker may take to exit after a forced stop: it kills its
	// sandboxes, and removes each within teardownTime.
	forcedPatience = teardownTime + 5*time.Second
	// workerOOMScore makes the kernel prefer other processes of the host to the worker and to
	// the control process when memory is short. The score of the supervisor is lower still:
	// these two may be compromised.
	workerOOMScore = "-450"
	// hostResolvConf names the host's name servers.
	hostResolvConf = "/etc/resolv.conf"
)

// work starts the worker, which serves the function rev, and handles its requests until it
// has exited.
func (d *Daemon) work(ctx context.Context, rev *function.Revision, std Streams) error {
	facts, err := d.serveFacts()
	if err != nil {
		return err
	}
	defer facts.Close()
	d.concurrency = d.maxSandboxes(&rev.Settings)
	return d.runWorker(ctx, d.workerConfig(*rev), std)
}

// serveFacts serves what ps and inspect ask the supervisor for.
func (d *Daemon) serveFacts() (*admin.FactServer, error) {
	facts, err := admin.Listen(d.instance.Info().FactSocket())
	if err != nil {
		return nil, err
	}
	return admin.ServeFacts(facts, d.Facts, func(err error) {
		d.log.WithError(err).Error("the supervisor's admin socket has failed: ps and inspect will not work")
	}), nil
}

// runWorker starts the worker and handles its requests until it has exited, and all that was
// its is removed.
func (d *Daemon) runWorker(ctx context.Context, config *message.WorkerConfig, std Streams) error {
	uid, err := d.leases.Acquire(d.instance.Dir()) // a user that nothing else on this host has
	if err != nil {
		return err
	}
	defer func() { d.maker.report("end the lease of the worker's user", d.leases.Release(uid)) }()
	server, line, err := d.Line(uid, d.concurrency)
	if err != nil {
		return err
	}
	defer line.Close()
	filetable.Grow(filetable.For(message.Sandboxes(d.concurrency))) // on failure a later cold start is slower
	worker, ended, err := d.startWorker(config, uid, line, std)
	if err != nil {
		return errors.Join(fmt.Errorf("start the worker: %w", err), server.Close())
	}
	line.Close() // only the worker has this end now: the server sees when it exits
	stop := d.forwardStop(ctx, server, worker)
	server.Require(func() error { return confine.Check(worker.Pid) }) // a correct worker confines itself before its first request
	// A correct worker closes its end by exiting only, so its status follows.
	err = d.Serve(server, func() { _ = worker.Kill() })
	status := <-ended
	stop()
	switch exited, ok := errors.AsType[*exec.ExitError](status); {
	case err != nil:
		return err
	case ok && exited.Exited():
		return &exit.Error{Code: exited.ExitCode()} // the worker has printed the reason
	case status != nil:
		return fmt.Errorf("the worker has exited, and all sandboxes with it: %w", status)
	}
	return nil
}

// Line creates the connection to a worker that runs as the user uid and may use concurrency
// sandboxes for serving. It returns the server of our end, for [Daemon.Serve], and the
// worker's end. The caller owns both: it passes the server to Serve or closes it. Line is
// not safe for concurrent use.
func (d *Daemon) Line(uid uint32, concurrency int) (*privsep.Server, *os.File, error) {
	ours, line, err := privsep.Pair()
	if err != nil {
		return nil, nil, err
	}
	d.concurrency = concurrency
	server, err := privsep.NewServer(ours, d.serverConfig(uid))
	if err != nil {
		line.Close()
		return nil, nil, err
	}
	return server, line, nil
}

// Serve handles the requests of the worker until the worker has closed the connection. Then
// it calls gone, and removes all remaining sandboxes.
func (d *Daemon) Serve(server *privsep.Server, gone func()) error {
	d.line.Store(server)
	defer d.line.Store(nil)
	d.maker.fill() // d.room is positive from now on
	return server.Serve(gone)
}

// workerConfig returns the configuration of the worker that serves revs from its start on.
func (d *Daemon) workerConfig(revs ...function.Revision) *message.WorkerConfig {
	config := d.cfg.Worker
	config.Instance, config.Concurrency = d.instance.ID(), d.concurrency
	config.Revisions = revs
	config.Networks = map[string]isolation.Network{}
	for _, n := range d.cfg.Networks {
		config.Networks[n.Name] = n.Network
	}
	return &config
}

// serverConfig returns the configuration of the server for a worker that runs as uid.
func (d *Daemon) serverConfig(uid uint32) privsep.Config {
	config := privsep.Config{
		Create: d.maker.make, Renew: d.renew, Traced: d.cfg.Worker.TraceInit,
		OnError:   func(err error) { d.log.WithError(err).Error("sandbox did not end cleanly") },
		Sandboxes: message.Sandboxes(d.concurrency), Remains: d.maker.quarantine.count, UID: uid,
	}
	if d.registrar != nil {
		config.Connect, config.Retire = d.connectControl, d.maker.revisions.retire
		config.Credentials = d.registrar.credentials
	}
	if d.pairs != nil {
		config.KeyPair = d.pairs.newer
	}
	if d.segments != nil {
		config.Segment = d.segments.open
	}
	for _, n := range d.cfg.Networks {
		if n.Mode == isolation.NetworkEgress {
			config.Upstream = func(ctx context.Context, network string, server int) (net.Conn, error) {
				return dns.DialHost(ctx, hostResolvConf, network, server)
			}
		}
	}
	return config
}

// renew returns the operator's current credentials, in the order that the worker expects.
func (d *Daemon) renew(context.Context) ([]string, error) {
	c, err := d.cfg.Renew()
	return []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken}, err
}

// forwardStop asks the worker to stop when ctx ends, and again when the stop is forced. It
// kills a worker that does not exit in time. The function that it returns ends this.
func (d *Daemon) forwardStop(ctx context.Context, server *privsep.Server, worker *os.Process) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			go server.Stop() // in a goroutine: it blocks while the worker does not read
		case <-over:
			return
		}
		patience := time.NewTimer(d.cfg.Worker.DrainTimeout + workerPatience)
		defer patience.Stop()
		forced := exit.Forced(ctx)
		for {
			select {
			case <-forced:
				go server.Stop()
				patience.Reset(forcedPatience)
				forced = nil
			case <-patience.C:
				d.log.Error("the worker did not exit in time and is killed")
				_ = worker.Kill()
			case <-over:
				return
			}
		}
	}()
	return func() { close(over) }
}

// startWorker starts the worker with its configuration. The channel receives the result of
// its Wait. startWorker itself does not wait for anything that the worker does.
func (d *Daemon) startWorker(config *message.WorkerConfig, uid uint32, line *os.File, std Streams) (_ *os.Process, _ <-chan error, err error) {
	files := make([]*os.File, message.WebFD+1) // by descriptor
	defer func() {
		for _, fd := range []int{message.ConfigFD, message.ControlFD, message.TraceFD, message.EndpointFD, message.WebFD} {
			if f := files[fd]; f != nil {
				f.Close()
			}
		}
	}()
	files[message.LineFD], files[message.MemoryFD] = line, d.memory.File
	if files[message.ConfigFD], err = config.File(); err != nil {
		return nil, nil, err
	}
	commands := d.instance.Info().ControlSocket()
	if err := os.Remove(commands); err != nil && !errors.Is(err, fs.ErrNotExist) { // that of a worker that has died
		return nil, nil, err
	}
	control, err := admin.Listen(commands)
	if err != nil {
		return nil, nil, err
	}
	if files[message.ControlFD], err = socketOf(control); err != nil {
		return nil, nil, err
	}
	if files[message.TraceFD], err = openTraces(config.TraceInit, d.cfg.StateDir); err != nil {
		return nil, nil, err
	}
	last := message.EndpointFD
	if d.cfg.Event == nil {
		if files[message.EndpointFD], err = d.endpoint(); err != nil {
			return nil, nil, err
		}
		last++
	}
	if d.cfg.WebListener != nil { // never with an event
		if files[message.WebFD], err = socketOf(d.cfg.WebListener); err != nil {
			return nil, nil, err
		}
		last++
	}
	stdin := d.cfg.Event
	if stdin == nil {
		if stdin, err = os.Open(os.DevNull); err != nil {
			return nil, nil, err
		}
		defer stdin.Close()
	}
	w := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{message.WorkerCommand}, Env: workerEnv(), Dir: "/",
		Stdin: stdin, Stdout: std.Out, Stderr: std.Err, // Stdin is not nil: the confined thread could not open /dev/null
		ExtraFiles: files[message.LineFD:last],
	}
	if err := failpoint.Share(w); err != nil {
		return nil, nil, err
	}
	ended, err := startConfined(d.log, w, uid, confine.Needs{})
	if err != nil {
		return nil, nil, err
	}
	return w.Process, ended, nil
}

// socketOf returns a duplicate of the socket of l, and closes l.
func socketOf(l net.Listener) (*os.File, error) {
	defer l.Close()
	socket, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%T is not a socket", l)
	}
	return socket.File()
}

// workerEnv returns the environment of the worker: GOMAXPROCS, which the worker could not
// derive from files that it may not open, and variables that configure the Go runtime. The
// worker gets nothing else from the operator's environment.
func workerEnv() []string {
	env := []string{"GOMAXPROCS=" + strconv.Itoa(runtime.GOMAXPROCS(0))}
	for _, name := range []string{"GOTRACEBACK", "GODEBUG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// startConfined starts w as the user uid, without supplementary groups and without
// capabilities, which it cannot regain, and with no file to open but those that it needs. The
// kernel kills it when this process ends. The channel receives the result of w.Wait.
func startConfined(log *logrus.Logger, w *exec.Cmd, uid uint32, needs confine.Needs) (<-chan error, error) {
	w.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		// A new session: only the supervisor gets the signals of the terminal, and forwards
		// them. They would kill a worker that does not ignore them yet.
		Setsid: true,
	}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// For Pdeathsig the parent is this thread, not the process. So it stays locked to the
		// goroutine, which returns after the worker has exited.
		runtime.LockOSThread()
		// The worker inherits no descriptor that the operator's shell has left open.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
		err := needs.Thread()
		if host.Lacks(err, host.Landlock) {
			log.WithError(err).Warnf("%s is confined without it; see 'sandboxd doctor'", w.Args[0])
			err = nil
		}
		if err == nil {
			err = w.Start()
		}
		started <- err
		if err == nil {
			ended <- w.Wait()
		}
	}()
	err := <-started
	if err == nil {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", w.Process.Pid), []byte(workerOOMScore), 0); err != nil {
			log.WithError(err).Debugf("the OOM score of %s could not be lowered", w.Args[0])
		}
	}
	return ended, err
}
