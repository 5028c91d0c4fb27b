// Package worker is the process of a daemon that reads what strangers say: the endpoint, the
// sandboxes' lives with their APIs and logs, and the socket for commands. It runs without
// privilege, and asks the supervisor's process (package daemon) for what takes one.
package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/filetable"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// teardownTime is what remains of a sandbox may take to go, once its life has ended.
const teardownTime = 10 * time.Second

// worker is everything that the process has.
type worker struct {
	config *message.WorkerConfig
	client *privsep.Client
	log    *logrus.Logger
	stderr *logging.LineWriter // for the lines of sandboxes
	drain  context.Context     // ends when running invocations are no longer waited for

	memory    memory.Info
	traces    *coldStarts
	functions *functions
}

// IsProcess reports whether this process is a worker.
func IsProcess() bool { return os.Args[0] == message.WorkerCommand }

// Main is main for the worker. It returns the exit code of the daemon.
func Main() int {
	ballast := make([]byte, ballastBytes)
	defer runtime.KeepAlive(ballast)
	debug.SetGCPercent(collectPercent)
	// Ignore signals that a service manager sends to the whole group; the supervisor forwards
	// them.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	stderr := logging.NewLineWriter(os.Stderr)
	return exit.Report(work(stderr), stderr)
}

// The garbage collector runs when the heap has grown by collectPercent of what is in use.
// ballastBytes count as in use, but take no memory, as nobody touches them. A small daemon
// has 2 MB in use, of which an invocation makes 15 KB: with the ballast the collector runs
// after some 4 MB. One that strangers make hold 10 MB grows by 6 more, not by another 10
// (SEC-51 allows an attack 16 in all).
const (
	ballastBytes   = 9 << 20
	collectPercent = 33
)

// work does what the configuration says.
func work(stderr *logging.LineWriter) (err error) {
	failpoint.Pass(failpoint.WorkerStarted)
	_, _ = time.Now().Zone() // reads the time zone's file, while it can
	w := &worker{stderr: stderr, memory: memory.Info{File: os.NewFile(message.MemoryFD, "/proc/meminfo")}}
	if w.config, err = message.ReadWorkerConfig(os.NewFile(message.ConfigFD, "worker-config")); err != nil {
		return err
	}
	control, err := inherited(message.ControlFD)
	if err != nil {
		return err
	}
	var endpoint net.Listener
	if w.config.Event == "" {
		if endpoint, err = inherited(message.EndpointFD); err != nil {
			return err
		}
	}
	sandboxes := message.Sandboxes(w.config.Concurrency)
	if err := boundWorker(uint64(sandboxes)); err != nil {
		return err
	}
	filetable.Grow(filetable.For(sandboxes)) // if it fails, some sandbox waits
	if err := confine.Process(); err != nil {
		return err
	}
	if w.client, err = privsep.NewClient(os.NewFile(message.LineFD, "supervisor"), sandboxes); err != nil {
		return err
	}
	ctx, gone := w.untilTold()
	messages := logging.NewAsyncWriter(stderr)
	defer messages.Close(exit.FlushTime)
	json := w.config.LogFormat == "JSON"
	w.log = logging.New(messages, w.config.LogLevel, json)
	if w.config.TraceInit {
		if w.traces, err = newColdStarts(os.NewFile(message.TraceFD, message.TraceFile), json, w.log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.traces.close()) }()
	}
	var stop context.CancelFunc
	w.drain, stop = drainContext(ctx, w.config.DrainTimeout)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- w.run(ctx, endpoint, control) }()
	select {
	case err := <-ended:
		return err
	case <-gone: // nothing can be ended in order any more: the kernel ends the sandboxes
		return errors.Join(errors.New("the supervisor is gone"), w.client.Err())
	}
}

// untilTold returns a context that ends when the supervisor says that the daemon is to end,
// and a channel that is closed when the supervisor is gone.
func (w *worker) untilTold() (context.Context, <-chan struct{}) {
	signals := make(chan os.Signal, 2)
	go func() {
		for {
			select {
			case <-w.client.Stops():
				signals <- syscall.SIGTERM
			case <-w.client.Gone():
				return
			}
		}
	}()
	return exit.OnSignals(context.Background(), signals), w.client.Gone()
}

// What the worker may take of the host, beside its part for each sandbox.
const (
	workerFiles   = 8192
	sandboxFiles  = 1024 // the connections to its API, above all
	workerThreads = 512
)

// boundWorker bounds what this process takes of the host, should it be taken over.
func boundWorker(sandboxes uint64) error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_NOFILE: workerFiles + sandboxes*sandboxFiles, unix.RLIMIT_NPROC: workerThreads + sandboxes,
		unix.RLIMIT_MEMLOCK: 0, unix.RLIMIT_MSGQUEUE: 0,
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

// inherited is the listener of a descriptor.
func inherited(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherited listener: %w", err)
	}
	return l, nil
}

// run serves, or invokes once, and ends all sandboxes.
func (w *worker) run(ctx context.Context, endpoint, control net.Listener) (err error) {
	w.functions = newFunctions(w, exit.Forced(ctx))
	go w.warmSet().keep(ctx, w.functions)
	commands := admin.ServeReports(control, w.report, func(err error) {
		w.log.WithError(err).Error("the control socket is not served any more: ps and inspect will not know states")
	})
	defer func() {
		err = errors.Join(err, w.functions.shutdown(w.drain))
		commands.Close()
	}()
	for _, rev := range w.config.Revisions {
		if n := rev.Provisioned; n > 0 {
			w.log.WithField("sandboxes", n).Info("initializing")
		}
		if err := w.functions.put(ctx, &rev); err != nil {
			if ctx.Err() != nil {
				return nil // told to end meanwhile
			}
			return err
		}
	}
	if w.config.Event == "" {
		return w.serve(ctx, endpoint)
	}
	event, err := awaitEvent(ctx, w.config.Event)
	if err != nil {
		return err
	}
	return w.invokeOnce(ctx, w.config.Revisions[0].Name, event, os.Stdout)
}

// awaitEvent reads the event from standard input, whose name is that of --event, and
// checks it. It gives up when ctx ends.
func awaitEvent(ctx context.Context, name string) ([]byte, error) {
	type result struct {
		event []byte
		err   error
	}
	read := make(chan result, 1)
	go func() {
		event, err := readEvent(name, os.Stdin)
		read <- result{event, err}
	}()
	select {
	case r := <-read:
		return r.event, r.err
	case <-ctx.Done():
		return nil, errors.New("interrupted before the event was there")
	}
}

// drainContext ends when running invocations are no longer waited for: patience after ctx
// has ended, or earlier when the user wants the end at once. Its cause says which.
func drainContext(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	drain, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-ctx.Done():
		case <-drain.Done():
			return
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(fmt.Errorf("they did not end within --drain-timeout, %s", patience))
		case <-exit.Forced(ctx):
			cancel(errors.New("there was a second signal"))
		case <-drain.Done():
		}
	}()
	return drain, func() { cancel(nil) }
}
