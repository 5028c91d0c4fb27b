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

// libcontainerErrors is the level at which libcontainer's process tells errors alone. It
// tells all that it does else, some thirty lines that the daemon reads and drops.
const libcontainerErrors = "2" // logrus.ErrorLevel

// domain is one of a sandbox's, from its creation on.
type domain struct {
	creator   *thread // its parent
	container *libcontainer.Container
	process   *libcontainer.Process
	pid       int          // of the init handler, once it runs; guarded by Sandbox.mu
	conn      *wire.Conn   // until Start hands it out
	gone      func() error // waits for the init handler, however often it is called
}

// Start makes a domain, or takes the one that is ready. See supervisor.Box.
func (s *Sandbox) Start(ctx context.Context, name string) (*wire.Conn, error) {
	s.mu.Lock()
	d := s.domains[name]
	s.mu.Unlock()
	if d == nil {
		var err error
		if d, err = s.boot(ctx, name); err == nil {
			err = s.furnish(ctx, name, d)
		}
		if err != nil {
			return nil, fmt.Errorf("start %s of %s: %w", name, s.spec.ID, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := d.conn
	if conn == nil {
		return nil, fmt.Errorf("start %s of %s: it was started before", name, s.spec.ID)
	}
	d.conn = nil
	return conn, nil
}

// boot makes a domain of which only the init handler runs.
func (s *Sandbox) boot(ctx context.Context, name string) (d *domain, err error) {
	err = s.net.atPath(func(path string) (err error) {
		d, err = s.bootIn(ctx, name, path)
		return err
	})
	if err != nil {
		return nil, s.shortOfMemory(err)
	}
	return d, nil
}

// bootIn is boot in the network namespace that path leads to.
func (s *Sandbox) bootIn(ctx context.Context, name, path string) (_ *domain, err error) {
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
	conn, remote, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			conn.Close()
		}
	}()
	doors, err := s.group.doors(name)
	if err != nil {
		return nil, err
	}
	defer closeAll(doors)
	if err := s.group.measure(name); err != nil {
		return nil, err
	}
	null := s.engine.devices.null // libcontainer would give it the host's
	d := &domain{process: &libcontainer.Process{
		Args: []string{isolation.InitPath}, Env: []string{"GOMAXPROCS=1"}, Cwd: "/", Init: true,
		Stdin: null, Stdout: null, Stderr: null, ExtraFiles: []*os.File{remote, filter},
		LogLevel: libcontainerErrors,
	}}
	program := s.engine.stage
	if program == nil {
		program = null
	}
	d.process.ExtraFiles = append(append(d.process.ExtraFiles, program), doors...) // stage.FD, reexec.CgroupFD and on
	id := s.spec.ID + "." + name
	_, made := tracing.Step(ctx, "container of the "+name+" domain")
	err = s.engine.creator.do(ctx, func(t *thread) (err error) {
		defer remote.Close()
		d.creator = t
		if err := inheritScheduling(cfg); err != nil {
			return err
		}
		if d.container, err = libcontainer.Create(s.engine.state, id, cfg); err != nil {
			return err
		}
		s.mu.Lock()
		s.domains[name] = d
		s.mu.Unlock()
		return d.container.Start(d.process)
	})
	made()
	remote.Close() // again, if its turn never came
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
	// libcontainer's process waits until its fifo is opened. Opened here, and without
	// waiting, it holds nobody up when the process is killed at this moment.
	fifo := filepath.Join(s.engine.state, id, "exec.fifo")
	f, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	said := make(chan bool, 1)
	masked := inBackground(func() (struct{}, error) {
		return struct{}{}, inStep(ctx, "masks", func() error { return s.engine.mask(pid, said) })
	})
	err = inStep(ctx, "handshake of the init handler", func() error { return handshake(ctx, conn) })
	if err == nil {
		err = errors.Join(confined(pid), s.group.entered(pid, name))
	}
	said <- err == nil
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

// inheritScheduling has a domain keep the nice value of the thread that creates it, and its
// policy if that is an uncommon one: without privileges a domain may leave neither.
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

// shortOfMemory is err, why a domain could not be made, with the reason for it if the
// kernel has killed one of its processes.
func (s *Sandbox) shortOfMemory(err error) error {
	if u, e := s.Usage(); e == nil && u.OOMKills > 0 && s.spec.Limits.MemoryBytes > 0 {
		return fmt.Errorf("out of memory; the limit of %d bytes may be too low: %w", s.spec.Limits.MemoryBytes, err)
	}
	return err
}

// confined says why an init handler that has sent its handshake is not confined: everything that
// will run in the domain inherits what it has.
func confined(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2"} {
		if !strings.Contains(string(status), "\n"+want+"\n") {
			return fmt.Errorf("the init handler is not confined: its status has no %q; it is not of the same build", want)
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
		return fmt.Errorf("init handler sent %#v; want a handshake of version %d", msg, wire.Version)
	}
	return nil
}

// furnish attaches the sandbox's files to a new domain. After the last domain the
// daemon lets go of its own hold on them.
func (s *Sandbox) furnish(ctx context.Context, name string, d *domain) error {
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
	s.mu.Lock()
	s.furnished++
	all := s.furnished == len(s.spec.Domains)
	s.mu.Unlock()
	if all {
		go s.release() // an unmount waits for RCU; Close tries again what fails
	}
	return nil
}

// end reaps the killed init handler, for which gone waits if it was ever there, and with
// it the kernel ends the rest of its domain; then it removes the domain's cgroup and
// state. It can be tried again. If the wait itself failed, the init handler may be left
// as a zombie.
func (d *domain) end(ctx context.Context, gone func() error) (unreaped bool, err error) {
	if gone != nil {
		reaped := make(chan error, 1)
		go func() { reaped <- failpoint.Do(failpoint.ReapInit, gone) }()
		select {
		case err := <-reaped: // its status is of no interest: it was killed
			_, exited := errors.AsType[*exec.ExitError](err)
			unreaped = err != nil && !exited
		case <-ctx.Done():
			return false, fmt.Errorf("init handler does not end: %w", ctx.Err())
		}
	}
	return unreaped, d.container.Destroy()
}

// reapOrphans waits for children of the thread that are dead already. When
// a start fails early, libcontainer does not know yet which process was to become
// PID 1, and leaves it to us. Another domain's PID 1 that is reaped here is as dead
// for its own wait.
func (t *thread) reapOrphans(ctx context.Context) error {
	return t.do(ctx, func(*thread) error {
		for {
			pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL|unix.WNOTHREAD, nil)
			if pid <= 0 && !errors.Is(err, unix.EINTR) {
				return nil // none is dead, or there is none
			}
		}
	})
}
