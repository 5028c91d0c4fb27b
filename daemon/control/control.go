// Package control implements the control process of a daemon that serves many functions: the
// unprivileged process that knows them. It serves the worker (package daemon/worker) over
// connections that the supervisor (package daemon) hands out, and registers revisions with
// the supervisor by package internal/registry. It may use one folder and nothing else of the
// host. [Main] is its main function; what the functions are is the business of its [API].
package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// Open opens what knows the functions. The process is confined by then. It may take long: the
// process answers that it is not ready meanwhile.
type Open func(context.Context, *Host) (API, error)

// IsProcess reports whether this process is a control process: then main must call [Main].
func IsProcess() bool { return os.Args[0] == message.ControlCommand }

// Main runs the control process and returns its exit code.
func Main(open Open) int {
	// Ignore signals that a service manager sends to the whole group; the supervisor forwards
	// them.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	stderr := logging.NewLineWriter(os.Stderr)
	return exit.Report(run(open, stderr), stderr)
}

// run reads the configuration, confines the process, and serves until it is asked to stop.
func run(open Open, stderr *logging.LineWriter) (err error) {
	failpoint.Pass(failpoint.ControlStarted)
	_, _ = time.Now().Zone() // loads the time zone's file, which the process may not open later
	config, err := message.ReadControlConfig(os.NewFile(message.ConfigFD, "control-config"))
	if err != nil {
		return err
	}
	ring, hostKeys, err := readHostKeys(os.NewFile(message.HostKeyFD, "host-keys"))
	if err != nil {
		return err
	}
	commands, err := listener(os.NewFile(message.OperatorFD, "operators"))
	if err != nil {
		return err
	}
	folders, closeFolders := openFolders(config.Folders)
	defer closeFolders()
	if err := bound(); err != nil {
		return err
	}
	if err := confine.Store(); err != nil {
		return err
	}
	client, err := registry.NewClient(os.NewFile(message.LineFD, "supervisor"))
	if err != nil {
		return err
	}
	messages := logging.NewAsyncWriter(stderr)
	defer messages.Close(exit.FlushTime)
	log := logging.New(messages, config.LogLevel, config.LogFormat == "JSON")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	served := make(chan error, 1)
	h := &Host{Config: config, Ring: ring, HostKeys: hostKeys, Log: log, Lines: messages, Folders: folders, client: client}
	go func() { served <- serve(ctx, h, commands, open) }()
	select {
	case err := <-served:
		return err
	case <-client.Stops():
		cancel()
		return <-served
	case <-client.Gone():
		return errors.Join(errors.New("the supervisor has exited"), client.Err())
	}
}

// readHostKeys reads the host keys, and their text, and closes f.
func readHostKeys(f *os.File) (*seal.Ring, []byte, error) {
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, nil, fmt.Errorf("read the host keys: %w", err)
	}
	ring, err := seal.Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("the file of host keys is not as 'sandboxd serve' makes it: %w", err)
	}
	return ring, text, nil
}

// listener returns the listener of a socket, and closes f.
func listener(f *os.File) (net.Listener, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("open the inherited socket %s: %w", f.Name(), err)
	}
	return l, nil
}

// Resource limits of the process.
const (
	maxFiles   = 4096 // descriptors
	maxThreads = 512
)

// bound limits the resources that this process can use if it is compromised.
func bound() error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_NOFILE: maxFiles, unix.RLIMIT_NPROC: maxThreads, unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0,
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err != nil {
			return os.NewSyscallError("getrlimit", err)
		}
		most = min(most, now.Max)
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
	}
	return nil
}

// serve serves the worker, and operators on commands, until ctx ends. It opens the API
// meanwhile.
func serve(ctx context.Context, h *Host, commands net.Listener, open Open) (err error) {
	s := newServer(h.Log)
	o := newOperators(s)
	down := make(chan struct{})
	go func() {
		defer close(down)
		<-ctx.Done()
		o.shutdown()
		s.shutdown()
	}()
	served := make(chan error, 2)
	go func() { served <- s.serve(h.client.Streams()) }()
	go func() { served <- o.serve(commands) }()
	api, err := open(ctx, h)
	if err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop meanwhile
		}
		return fmt.Errorf("open the functions: %w", err)
	}
	defer func() { err = errors.Join(err, api.Close()) }()
	s.ready(api)
	h.Log.WithFields(logrus.Fields{"instance": h.Config.Instance}).Debug("the control process is ready")
	err = <-served
	if ctx.Err() != nil {
		<-down // requests have ended
	}
	return err
}
