package daemon

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"
	"time"

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
	// workerPatience is how long the worker may take to end, once told, beyond the time for
	// running invocations: fleet gives each sandbox 20 s, and all go at once.
	workerPatience = 45 * time.Second
	// forcedPatience is the same once the worker was told to end at once: it kills its
	// sandboxes, and gives the removal of each teardownTime.
	forcedPatience = teardownTime + 5*time.Second
	// workerOOMScore makes the worker a later victim than other processes of the host when
	// memory is short, but not as late as the supervisor: it may have been taken over.
	workerOOMScore = "-450"
	// hostResolvConf names the host's name servers.
	hostResolvConf = "/etc/resolv.conf"
)

// work runs the worker, which serves the function rev, and does what it asks until it has
// ended.
func (d *Daemon) work(ctx context.Context, rev *function.Revision, std Streams) error {
	uid, err := d.leases.Acquire(d.instance.Dir()) // its user is nobody else's on this host
	if err != nil {
		return err
	}
	defer func() { d.maker.report("end the lease of the worker's user", d.leases.Release(uid)) }()
	server, line, err := d.Line(uid, d.mostSandboxes(&rev.Settings))
	if err != nil {
		return err
	}
	defer line.Close()
	filetable.Grow(filetable.For(message.Sandboxes(d.concurrency))) // if it fails, some sandbox waits
	worker, ended, err := d.startWorker(d.workerConfig(rev), uid, line, std)
	if err != nil {
		return errors.Join(fmt.Errorf("start the worker: %w", err), server.Close())
	}
	line.Close() // so that its end is seen
	stop := d.passOn(ctx, server, worker)
	server.Require(func() error { return confine.Check(worker.Pid) }) // it asks for nothing before it has confined itself
	// A worker of ours leaves the line by its end alone, and its status is set by then.
	err = d.Serve(server, func() { _ = worker.Kill() })
	status := <-ended
	stop()
	switch exited, ok := errors.AsType[*exec.ExitError](status); {
	case err != nil:
		return err
	case ok && exited.Exited():
		return &exit.Error{Code: exited.ExitCode()} // it has said why
	case status != nil:
		return fmt.Errorf("the worker has ended, and all sandboxes with it: %w", status)
	}
	return nil
}

// Line makes the line to a worker whose user is uid and which may have concurrency sandboxes
// that serve, and returns both of its ends, which are the caller's: the server for [Daemon.Serve], or
// to be closed. It is not safe for concurrent use.
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

// Serve does what the worker asks, and answers commands, until the worker has left the line,
// when it calls gone. Then it removes every sandbox that is left.
func (d *Daemon) Serve(server *privsep.Server, gone func()) error {
	d.line.Store(server)
	d.maker.fill() // there is room from now on
	facts, err := admin.Listen(d.instance.Info().FactSocket())
	if err != nil {
		gone()
		return errors.Join(err, server.Close())
	}
	commands := admin.ServeFacts(facts, d.Facts, func(err error) {
		d.log.WithError(err).Error("the supervisor's socket is not served any more: ps and inspect will not work")
	})
	defer commands.Close()
	return server.Serve(gone)
}

// workerConfig is what the worker is told.
func (d *Daemon) workerConfig(rev *function.Revision) *message.WorkerConfig {
	config := d.cfg.Worker
	config.Instance, config.Concurrency = d.instance.ID(), d.concurrency
	config.Revisions = []function.Revision{*rev}
	config.Networks = map[string]isolation.Network{}
	for _, n := range d.cfg.Networks {
		config.Networks[n.Name] = n.Network
	}
	return &config
}

// serverConfig says what the worker, whose user is uid, may ask for.
func (d *Daemon) serverConfig(uid uint32) privsep.Config {
	config := privsep.Config{
		Create: d.maker.make, Renew: d.renew, Traced: d.cfg.Worker.TraceInit,
		OnError:   func(err error) { d.log.WithError(err).Error("sandbox did not end cleanly") },
		Sandboxes: message.Sandboxes(d.concurrency), Remains: d.maker.quarantine.count, UID: uid,
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

// renew returns the credentials as the operator has them now.
func (d *Daemon) renew(context.Context) ([]string, error) {
	c, err := d.cfg.Renew()
	return []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken}, err
}

// passOn tells the worker when the daemon is to end, and ends it if it does not. The
// function that it returns ends that.
func (d *Daemon) passOn(ctx context.Context, server *privsep.Server, worker *os.Process) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			go server.Stop() // fails if it has ended, and waits if it reads nothing
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
				d.log.Error("the worker does not end and is killed")
				_ = worker.Kill()
			case <-over:
				return
			}
		}
	}()
	return func() { close(over) }
}

// startWorker starts the worker with its configuration. The channel yields how it has
// ended. Nothing here waits for the worker.
func (d *Daemon) startWorker(config *message.WorkerConfig, uid uint32, line *os.File, std Streams) (_ *os.Process, _ <-chan error, err error) {
	files := make([]*os.File, message.EndpointFD+1) // by descriptor
	defer func() {
		for _, fd := range []int{message.ConfigFD, message.ControlFD, message.TraceFD, message.EndpointFD} {
			if f := files[fd]; f != nil {
				f.Close()
			}
		}
	}()
	files[message.LineFD], files[message.MemoryFD] = line, d.memory.File
	if files[message.ConfigFD], err = config.File(); err != nil {
		return nil, nil, err
	}
	control, err := admin.Listen(d.instance.Info().ControlSocket())
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
		if files[message.EndpointFD], err = socketOf(d.cfg.Listener); err != nil {
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
		Stdin: stdin, Stdout: std.Out, Stderr: std.Err, // stdin is a file: the thread that starts it may open none
		ExtraFiles: files[message.LineFD:last],
	}
	if err := failpoint.Share(w); err != nil {
		return nil, nil, err
	}
	ended, err := d.startConfined(w, uid)
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", w.Process.Pid), []byte(workerOOMScore), 0); err != nil {
		d.log.WithError(err).Debug("oom_score_adj of the worker stays as it is")
	}
	return w.Process, ended, nil
}

// socketOf takes the socket from l, which it closes.
func socketOf(l net.Listener) (*os.File, error) {
	defer l.Close()
	socket, ok := l.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("%T is no socket", l)
	}
	return socket.File()
}

// workerEnv is the environment of the worker: what the Go runtime would else read from
// files that the worker cannot open, and nothing of the operator's.
func workerEnv() []string {
	env := []string{"GOMAXPROCS=" + strconv.Itoa(runtime.GOMAXPROCS(0))}
	for _, name := range []string{"GOTRACEBACK", "GODEBUG", "TZ"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// startConfined starts w as the user uid, who is in no other group, with no capability
// and no way to one. It is killed when this process ends. The channel yields what its
// Wait has returned.
func (d *Daemon) startConfined(w *exec.Cmd, uid uint32) (<-chan error, error) {
	w.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		// A session of its own: the terminal's signals reach the supervisor alone, which forwards
		// them. They would end the worker before it ignores them.
		Setsid: true,
	}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The kernel takes the end of this thread for the parent's. So it is never unlocked,
		// and ends after the worker.
		runtime.LockOSThread()
		// The worker gets nothing that the operator's shell has left open.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
		err := confine.Thread()
		if host.Lacks(err, host.Landlock) {
			d.log.WithError(err).Warn("the worker is confined without it; see 'sandboxd doctor'")
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
	return ended, <-started
}
