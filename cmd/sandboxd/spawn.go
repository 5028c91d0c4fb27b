package main

import (
	"context"
	"encoding/gob"
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

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// workerPatience is how long the worker may take to end, once told, beyond the time for
// running invocations: fleet gives each sandbox 20 s, and all go at once.
const workerPatience = 45 * time.Second

// hurriedPatience is the same once it was told to end at once: it kills its sandboxes, and
// gives the removal of each teardownTime.
const hurriedPatience = teardownTime + 5*time.Second

// workerOOMScore makes the worker a later victim than other processes of the host when
// memory is short, but not as late as the supervisor: it may have been taken over.
const workerOOMScore = "-450"

// orderOf says what the worker is to do.
func orderOf(s *session, function *rootfs.Function) order {
	life, o := lifeOf(s.o, function), s.o
	life.Function.Image = s.image
	return order{
		Instance: s.instance.ID(), Event: o.event, LogLevel: o.logLevel,
		Function: life.Function, Initialization: life.Initialization, Settings: life.Settings, Credentials: life.Credentials,
		Network: networkOf(o), LongInit: longInit(o),
		Concurrency: s.concurrency(), Provisioned: o.provisioned, Managed: o.managed,
		Tenants: o.tenants, Strict: o.strict, TraceInit: o.traceInit, WarmMemory: uint64(o.settings.warmMemoryMB) << 20,
		IdleTimeout: o.settings.idleTimeout, DrainTimeout: o.drainTimeout,
	}
}

// work runs the worker, and does what it asks until it has ended. stdin becomes its
// standard input; listener is the endpoint, which work closes, or nil.
func (s *session) work(ctx context.Context, function *rootfs.Function, stdin *os.File, listener net.Listener, std streams) error {
	base, err := s.leases.Acquire(s.instance.Dir()) // its user is nobody else's on this host
	if err != nil {
		return err
	}
	defer s.leases.Release(base)
	ours, line, err := privsep.Pair()
	if err != nil {
		return err
	}
	defer line.Close()
	o := orderOf(s, function)
	config := privsep.Config{
		Create: s.maker.make, Renew: s.renew, Held: s.maker.quarantine.list, Traced: o.TraceInit,
		OnError:   func(err error) { s.log.WithError(err).Error("sandbox did not end cleanly") },
		Sandboxes: sandboxesAtOnce(o.Concurrency), UID: base,
	}
	var worker *os.Process
	config.Confined = func() error { return confine.Check(worker.Pid) } // it asks for nothing before it has confined itself
	if o.Network.Mode == isolation.NetworkEgress {
		config.Upstream = upstream
	}
	server, err := privsep.NewServer(ours, config)
	if err != nil {
		return err
	}
	growFileTable(filesAtOnce(o.Concurrency)) // if it fails, some sandbox waits
	var ended <-chan error
	worker, ended, err = s.startWorker(&o, base, line, stdin, listener, std)
	if err != nil {
		return errors.Join(fmt.Errorf("start the worker: %w", err), server.Close())
	}
	line.Close() // so that its end is seen
	if s.o.event == "" && s.o.pool > 0 {
		s.maker.keepReady(s.o.pool, o.Concurrency, server.Count)
	}
	stop := s.passOn(ctx, server, worker)
	// A worker of ours leaves the line by its end alone, and its status is set by then.
	err = server.Serve(func() { _ = worker.Kill() })
	status := <-ended
	stop()
	var exit *exec.ExitError
	switch {
	case err != nil:
		return err
	case errors.As(status, &exit) && exit.Exited():
		return &exitError{code: exit.ExitCode()} // it has said why
	case status != nil:
		return fmt.Errorf("the worker has ended, and all sandboxes with it: %w", status)
	}
	return nil
}

// passOn tells the worker when the daemon is to end, and ends it if it does not. The
// function that it returns ends that.
func (s *session) passOn(ctx context.Context, server *privsep.Server, worker *os.Process) (stop func()) {
	over := make(chan struct{})
	go func() {
		select {
		case <-ctx.Done():
			go server.Stop() // fails if it has ended, and waits if it reads nothing
		case <-over:
			return
		}
		patience := time.NewTimer(s.o.drainTimeout + workerPatience)
		defer patience.Stop()
		second := hurry(ctx)
		for {
			select {
			case <-second:
				go server.Stop()
				patience.Reset(hurriedPatience)
				second = nil
			case <-patience.C:
				s.log.Error("the worker does not end and is killed")
				_ = worker.Kill()
			case <-over:
				return
			}
		}
	}()
	return func() { close(over) }
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

// startWorker starts the worker with its order. The channel yields how it has ended.
func (s *session) startWorker(o *order, uid uint32, line, stdin *os.File, listener net.Listener, std streams) (*os.Process, <-chan error, error) {
	control, err := listenControl(s.instance.ControlSocket())
	if err != nil {
		return nil, nil, err
	}
	defer control.Close()
	orders, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer orders.Close()
	defer write.Close()
	traces, err := openTraces(s.o)
	if err != nil {
		return nil, nil, err
	}
	defer traces.Close()
	sockets := make([]*os.File, 2)
	for i, l := range []net.Listener{control, listener} {
		if l == nil {
			continue
		}
		defer l.Close()
		if sockets[i], err = l.(interface{ File() (*os.File, error) }).File(); err != nil {
			return nil, nil, err
		}
		defer sockets[i].Close()
	}
	w := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{workerCommand}, Env: workerEnv(), Dir: "/",
		Stdin: stdin, Stdout: std.out, Stderr: std.err, // stdin is a file: the thread that starts it may open none
		ExtraFiles: []*os.File{line, orders, sockets[0], s.memory.File, traces},
	}
	if listener != nil {
		w.ExtraFiles = append(w.ExtraFiles, sockets[1])
	}
	if err := failpoint.Share(w); err != nil {
		return nil, nil, err
	}
	ended, err := s.startConfined(w, uid)
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", w.Process.Pid), []byte(workerOOMScore), 0); err != nil {
		s.log.WithError(err).Debug("oom_score_adj of the worker stays as it is")
	}
	if err := gob.NewEncoder(write).Encode(o); err != nil { // it has ended: the channel says how
		s.log.WithError(err).Debug("the worker did not take its order")
	}
	return w.Process, ended, nil
}

// startConfined starts w as the user uid, who is in no other group, with no capability
// and no way to one. It is killed when this process ends. The channel yields what its
// Wait has returned.
func (s *session) startConfined(w *exec.Cmd, uid uint32) (<-chan error, error) {
	w.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid},
		Pdeathsig:  syscall.SIGKILL,
		// The terminal's signals are the supervisor's, who passes the word on. Until it ignores
		// them, the worker would end of them.
		Setsid: true,
	}
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		// The kernel takes the end of this thread for the parent's. So it is never unlocked,
		// and ends after the worker.
		runtime.LockOSThread()
		// What the operator's shell has left open is none of the worker's.
		_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) // fails before Linux 5.11
		err := confine.Thread()
		if errors.Is(err, confine.ErrNoLandlock) {
			s.log.WithError(err).Warn("the worker is confined without it; see 'sandboxd doctor'")
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

// renew returns the credentials as the operator has them now.
func (s *session) renew() ([]string, error) {
	c, err := renewedCredentials(s.o)
	return []string{c.AccessKeyID, c.SecretAccessKey, c.SessionToken}, err
}
