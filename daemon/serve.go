package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// ServeConfig configures a daemon that serves many functions. Of its Config, Event and
// WebListener are not used.
type ServeConfig struct {
	Config
	Runtimes    []Runtime // that functions may choose
	Concurrency int       // most sandboxes at once; 0 is as many as memory allows

	TreeBytes int64 // most bytes of the extracted code and layers of registered revisions; 0 is no limit
	FreeBytes int64 // of the disk of StateDir, below which nothing new is extracted

	Store *StoreServer // keeps the store; nil is SQLite in StateDir

	HostKey  string       // file that encrypts secrets in the store; "" is one in StateDir
	KeyPair  KeyPairFiles // of the endpoint
	Endpoint string       // URL at which clients reach the endpoint, to be told to the operator
	Group    string       // whose members may be operators, beside root
	Logs     message.LogConfig

	Folders []message.Folder // from which code of functions may come
	Roles   []Role           // that functions may have

	// Control is the configuration of the control process. The daemon itself sets Instance,
	// Folder, Folders, Roles, Database, Runtimes, Networks, Profiles, FreeBytes, Start and FirstKey.
	Control message.ControlConfig
}

// services are the two unprivileged processes of a daemon that serves many functions.
type services struct {
	d       *Daemon
	cfg     ServeConfig
	std     Streams
	folder  *controlFolder
	control *atomic.Pointer[registry.Server] // serves the control process; nil while there is none
	deaths  deaths
	starts  struct{ control, worker int }

	operators   operatorSockets
	codeFolders []*os.File // ServeConfig.Folders, open
}

// Serve runs a daemon that serves the functions that its control process knows, until ctx
// ends. A process that dies is started again; when the two have died five times within a
// minute, Serve ends with the reason. For ctx and the error see [Run].
func Serve(ctx context.Context, cfg ServeConfig, std Streams) (err error) {
	endpoint, err := holdSocket(cfg.Listener)
	if err != nil {
		return err
	}
	defer endpoint.close()
	messages := logging.NewAsyncWriter(std.Err)
	defer messages.Close(exit.FlushTime)
	log := logging.New(messages, cfg.Worker.LogLevel, cfg.Worker.LogFormat == "JSON")
	d, err := Open(ctx, cfg.Config, log)
	if err != nil {
		return err
	}
	defer func() { err = d.closeAfter(ctx, err) }()
	if d.pairs, err = openKeyPairs(cfg.KeyPair, log); err != nil {
		return err
	}
	d.endpoint = endpoint.file
	d.concurrency = d.maxServed(cfg.Concurrency)
	folder, err := d.openControlFolder(func(state string, isNew bool) (rootKeys, error) {
		return openRootKeys(state, cfg.HostKey, cfg.Endpoint, cfg.Control.Region, isNew)
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.close()) }()
	if d.segments, err = openSegments(cfg.StateDir, cfg.Logs); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.segments.close()) }()
	if d.registrar, err = d.newRegistrar(ctx, cfg); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.registrar.close()) }()
	d.startCollector()
	facts, err := d.serveFacts()
	if err != nil {
		return err
	}
	defer facts.Close()
	context.AfterFunc(ctx, endpoint.close) // the worker closes its own when it stops
	s := &services{d: d, cfg: cfg, std: std, folder: folder, control: &d.registrar.control}
	if s.codeFolders, err = openCodeFolders(cfg.Folders, folder.path); err != nil {
		return err
	}
	defer closeFiles(s.codeFolders)
	if err := s.openOperators(); err != nil {
		return err
	}
	defer s.closeOperators()
	s.announce(messages)
	return s.run(ctx)
}

// maxServed returns how many sandboxes may exist at once: the operator's choice, or as many of
// the smallest ones as memory allows, up to 1,000, as on Lambda.
func (d *Daemon) maxServed(chosen int) int {
	if chosen > 0 {
		return chosen
	}
	_, available := d.memory.Read()
	return min(max(int(available>>20)/function.MinMemoryMB, 1), 1000)
}

// run runs both processes until ctx ends or they have died too often. The control process
// ends after the worker, which needs it for the requests that it still has.
func (s *services) run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	controlCtx, endControl := context.WithCancel(context.WithoutCancel(ctx))
	defer endControl()
	controlled := make(chan error, 1)
	go func() {
		controlled <- s.keep(controlCtx, "control process", s.runControls)
		stop()
	}()
	err := s.keep(ctx, "worker", s.runWorker)
	endControl()
	return errors.Join(err, <-controlled)
}

// runWorker runs the worker once.
func (s *services) runWorker(ctx context.Context) error {
	config := s.d.workerConfig()
	config.Control = true
	s.starts.worker++
	config.Start, config.KeyPair = s.starts.worker, s.d.pairs.newest()
	var err error
	if config.Logs, err = s.d.segments.config(); err != nil {
		return err
	}
	return s.d.runWorker(ctx, config, s.std)
}

// Pauses before a process is started again.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// keep calls run, which returns when the process has ended, again and again until ctx ends.
func (s *services) keep(ctx context.Context, name string, run func(context.Context) error) error {
	for {
		err := run(ctx)
		if ctx.Err() != nil {
			return err
		}
		if err == nil {
			err = errors.New("it has exited")
		}
		n := s.deaths.add(time.Now())
		if n >= maxDeaths {
			return fmt.Errorf("the processes of this daemon have ended %d times within %v, the %s last: %w", n, deathWindow, name, err)
		}
		pause := min(firstPause<<(n-1), lastPause)
		s.d.log.WithError(err).Errorf("the %s has ended; it is started again in %v", name, pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// When maxDeaths processes have ended within deathWindow, the daemon ends.
const (
	maxDeaths   = 5
	deathWindow = time.Minute
)

// deaths counts the ends of processes. The zero value has counted none.
type deaths struct {
	mu    sync.Mutex
	times []time.Time // of the last ones
}

// add counts one at the time now, and returns how many there were within deathWindow.
func (d *deaths) add(now time.Time) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.times = append(d.times, now)
	for now.Sub(d.times[0]) > deathWindow {
		d.times = d.times[1:]
	}
	return len(d.times)
}

// connectControl returns one end of a new connection, and sends the control process the
// other.
func (d *Daemon) connectControl(context.Context) (*os.File, error) {
	if server := d.registrar.control.Load(); server != nil {
		return connect(server.Push, message.ErrNoControl)
	}
	return nil, message.ErrNoControl
}

// connectWorker is connectControl for the worker.
func (d *Daemon) connectWorker(context.Context) (*os.File, error) {
	if server := d.line.Load(); server != nil {
		return connect(server.Push, message.ErrNoWorker)
	}
	return nil, message.ErrNoWorker
}

// connect makes a connection whose other end push sends. If the other process has gone, the
// error is of the kind given.
func connect(push func(*os.File) error, kind error) (*os.File, error) {
	ours, theirs, err := seqpacket.StreamPair()
	if err != nil {
		return nil, err
	}
	err = push(theirs)
	theirs.Close()
	if err != nil {
		ours.Close()
		if !errors.Is(err, seqpacket.ErrFull) { // such as EPIPE
			err = fmt.Errorf("%w: %w", kind, err)
		}
		return nil, err
	}
	return ours, nil
}

// heldSocket is the listening socket of the endpoint, which outlives the workers that accept
// from it. It is not an os.File: Go would wake this process for every connection.
type heldSocket struct {
	mu sync.Mutex
	fd int // -1 once it is closed
}

// holdSocket takes the socket of l, and closes l.
func holdSocket(l net.Listener) (*heldSocket, error) {
	f, err := socketOf(l)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := &heldSocket{}
	err = descriptor.Use(f, func(fd int) (err error) {
		s.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return os.NewSyscallError("fcntl", err)
	})
	return s, err
}

// file returns a duplicate. The error is net.ErrClosed after close.
func (s *heldSocket) file() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil, net.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fd), "endpoint"), nil
}

// close closes the socket. A second call has no effect.
func (s *heldSocket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}
