package runc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// libcontainerErrors is the log level for errors only. At its default level libcontainer's
// process writes about thirty lines, which the daemon would have to read and drop.
const libcontainerErrors = "2" // logrus.ErrorLevel

// domain is one domain of a sandbox, from its creation on.
type domain struct {
	creator   *thread // thread that forked its first process
	container *libcontainer.Container
	process   *libcontainer.Process
	pid       int          // of the init handler; 0 before it runs; guarded by Sandbox.mu
	conn      *wire.Conn   // nil after Start has returned it; guarded by Sandbox.mu
	gone      func() error // waits for the init handler; may be called repeatedly
}

// Start creates a domain, or returns the prewarmed one. See supervisor.Box.
func (s *Sandbox) Start(ctx context.Context, name string) (*wire.Conn, error) {
	s.mu.Lock()
	d := s.domains[name]
	s.mu.Unlock()
	if d == nil {
		var err error
		if d, err = s.boot(ctx, name); err == nil {
			err = s.attachFiles(ctx, name, d)
		}
		if err != nil {
			return nil, fmt.Errorf("start %s of %s: %w", name, s.spec.ID, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := d.conn
	if conn == nil {
		return nil, fmt.Errorf("start %s of %s: the domain has been started before", name, s.spec.ID)
	}
	d.conn = nil
	return conn, nil
}

// boot creates a domain in which only the init handler runs.
func (s *Sandbox) boot(ctx context.Context, name string) (d *domain, err error) {
	err = s.net.atPath(func(path string) (err error) {
		d, err = s.bootIn(ctx, name, path)
		return err
	})
	if err != nil {
		return nil, s.explainOOM(err)
	}
	return d, nil
}

// bootIn implements boot, with the network namespace at path. What it starts becomes PID 1
// of the domain in these steps:
//
//  1. libcontainer executes the daemon's program as "sandboxd init", in a cgroup of the
//     domain. Before its Go runtime starts, that process becomes the smaller command
//     sandbox-stage (package stage).
//  2. libcontainer's C code in it (package nsenter) joins the network namespace and makes the
//     others; its Go code (package reexec) mounts, drops privileges and waits at exec.fifo.
//  3. bootIn opens exec.fifo, and the process executes [isolation.InitPath]: the init handler,
//     command sandbox-init, which stays PID 1.
//  4. The init handler sends its handshake over the socket that it inherited, and waits for
//     orders. bootIn checks that it is confined and in its cgroup, and masks files of /proc.
func (s *Sandbox) bootIn(ctx context.Context, name, path string) (_ *domain, err error) {
	conn, remote, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	defer remote.Close()
	d, err := s.create(ctx, name, path, remote)
	if err != nil {
		return nil, err
	}
	pid, err := d.process.Pid()
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	d.pid = pid
	d.gone = sync.OnceValue(func() error { _, err := d.process.Wait(); return err })
	s.mu.Unlock()
	// libcontainer's process waits until its FIFO is opened. Open it here, without blocking:
	// libcontainer would block if the process were killed now.
	fifo := filepath.Join(s.engine.state, d.container.ID(), "exec.fifo")
	f, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ready := make(chan bool, 1)
	masked := inBackground(func() (struct{}, error) {
		return struct{}{}, inStep(ctx, "masks", func() error { return s.engine.mask(pid, s.group, name, ready) })
	})
	err = inStep(ctx, "handshake of the init handler", func() error { return handshake(ctx, conn) })
	if err == nil {
		err = errors.Join(checkConfined(pid), s.group.checkMember(pid, name))
	}
	ready <- err == nil
	if _, e := masked(); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	failpoint.Pass(failpoint.InitUp)
	if err := os.Remove(fifo); err != nil {
		return nil, err
	}
	s.mu.Lock()
	d.conn = conn
	s.mu.Unlock()
	return d, nil
}

// create makes libcontainer start the first process of a domain, up to its exec.fifo. The
// process inherits remote, its end of the socket, which the daemon must close afterwards.
func (s *Sandbox) create(ctx context.Context, name, path string, remote *os.File) (*domain, error) {
	cfg, err := s.spec.Config(name, isolation.Paths{
		Rootfs: s.root, NetNS: path, Init: s.engine.initBinary(), Dev: s.engine.devices.dir,
	})
	if err != nil {
		return nil, err
	}
	filter, err := s.engine.filters.file(s.spec.Profile())
	if err != nil {
		return nil, err
	}
	entries, err := s.group.entries(name)
	if err != nil {
		return nil, err
	}
	defer closeAll(entries)
	if err := s.group.measure(name); err != nil {
		return nil, err
	}
	null := s.engine.devices.null // libcontainer would use /dev/null of the host
	program := s.engine.stage
	if program == nil {
		program = null
	}
	d := &domain{process: &libcontainer.Process{
		Args: []string{isolation.InitPath}, Env: []string{"GOMAXPROCS=1"}, Cwd: "/", Init: true,
		Stdin: null, Stdout: null, Stderr: null,
		ExtraFiles: append([]*os.File{remote, filter, program}, entries...), // stage.FD, and from reexec.CgroupFD on
		LogLevel:   libcontainerErrors,
	}}
	_, made := tracing.Step(ctx, "container of the "+name+" domain")
	defer made()
	return d, s.engine.creator.do(ctx, func(t *thread) (err error) {
		defer remote.Close() // the process has it; so the daemon notices when the process closes it
		d.creator = t
		if err := inheritScheduling(cfg); err != nil {
			return err
		}
		if d.container, err = libcontainer.Create(s.engine.state, s.spec.ID+"."+name, cfg); err != nil {
			return err
		}
		s.mu.Lock()
		s.domains[name] = d
		s.mu.Unlock()
		return d.container.Start(d.process)
	})
}

// inheritScheduling makes a domain keep the nice value of the thread that creates it, and its
// scheduling policy if that is not SCHED_NORMAL. Without privileges a domain could not change
// them.
func inheritScheduling(cfg *configs.Config) error {
	own, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		return os.NewSyscallError("sched_getattr", err)
	}
	if own.Policy != unix.SCHED_NORMAL {
		cfg.Scheduler = nil
	} else {
		cfg.Scheduler.Nice = own.Nice
	}
	return nil
}

// explainOOM returns err, the reason why a domain could not be created. If the kernel has
// killed one of the sandbox's processes for lack of memory, it says so.
func (s *Sandbox) explainOOM(err error) error {
	if u, e := s.Usage(); e == nil && u.OOMKills > 0 && s.spec.Limits.MemoryBytes > 0 {
		return fmt.Errorf("out of memory; the limit of %d bytes may be too low: %w", s.spec.Limits.MemoryBytes, err)
	}
	return err
}

// checkConfined returns an error if the init handler pid is not confined. Call it after the
// handshake. All processes of the domain inherit the confinement.
func checkConfined(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), "\n"+want+"\n") {
			return fmt.Errorf("the init handler is not confined: its status has no %q; it is from another build: rebuild with make build", want)
		}
	}
	return nil
}

// handshake waits for the init handler's first message.
func handshake(ctx context.Context, conn *wire.Conn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	msg, files, err := conn.Recv()
	for _, f := range files {
		f.Close()
	}
	if !stop() {
		return fmt.Errorf("wait for the init handler: %w", ctx.Err())
	}
	if err != nil {
		return fmt.Errorf("wait for the init handler: %w", err)
	}
	if h, ok := msg.(wire.Handshake); !ok || h.Version != wire.Version {
		return fmt.Errorf("the init handler sent %#v instead of a handshake of version %d", msg, wire.Version)
	}
	return nil
}

// attachFiles mounts the sandbox's files in a new domain. After the last domain it releases
// the daemon's own mounts of them.
func (s *Sandbox) attachFiles(ctx context.Context, name string, d *domain) error {
	_, end := tracing.Step(ctx, "files of the "+name+" domain")
	defer end()
	owners, err := s.owners()
	if err != nil {
		return err
	}
	tmp := -1
	if s.tmp != nil {
		v, err := s.tmp()
		if err != nil {
			return err
		}
		for i, other := range s.spec.Domains {
			if other == name {
				tmp = v.mounts[i]
			}
		}
	}
	if err := s.engine.attach(d.pid, s.spec, owners, tmp); err != nil {
		return err
	}
	// libcontainer gives an init handler all processors of the host, whatever the daemon may use.
	if len(s.cpus) < max(len(s.engine.processors.all), len(s.engine.host.CPUInfo)) {
		if err := setAffinity(d.pid, s.cpus); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.attached++
	all := s.attached == len(s.spec.Domains)
	s.mu.Unlock()
	if all {
		go s.release() // in the background, because an unmount waits for RCU; Close tries again what fails
	}
	return nil
}

// end waits with gone until the killed init handler, and with it all processes of the domain,
// have exited; gone is nil if there was no init handler. Then it removes the container's
// state. It may be called again after an error. unreaped reports that the wait itself failed,
// so that the init handler may be left as a zombie.
func (d *domain) end(ctx context.Context, gone func() error) (unreaped bool, err error) {
	if gone != nil {
		reaped := make(chan error, 1)
		go func() { reaped <- failpoint.Do(failpoint.ReapInit, gone) }()
		select {
		case err := <-reaped: // ignore the status: the init handler was killed
			_, exited := errors.AsType[*exec.ExitError](err)
			unreaped = err != nil && !exited
		case <-ctx.Done():
			return false, fmt.Errorf("wait for the exit of the init handler: %w", ctx.Err())
		}
	}
	return unreaped, d.container.Destroy()
}

// reapOrphans reaps all dead children of the thread. If a start fails early, libcontainer
// does not know the process that was to become PID 1, and does not reap it. If reapOrphans
// reaps the PID 1 of another domain, the wait for that one returns as well.
func (t *thread) reapOrphans(ctx context.Context) error {
	return t.do(ctx, func(*thread) error {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				return nil // no child is dead, or there are no children
			}
		}
	})
}
