// Package worker implements the worker of a daemon, the unprivileged process that handles
// untrusted input. It serves the invoke endpoint, runs the life cycle of the sandboxes with
// their APIs and logs, and serves the socket for commands. For everything that takes
// privilege it sends requests to the supervisor (package daemon). [Main] is its main
// function.
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
	"github.com/sandboxd/sandboxd/daemon/worker/logs"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/filetable"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// teardownTime is how long the removal of a sandbox may take after its life has ended.
const teardownTime = 10 * time.Second

// worker is the state of the process.
type worker struct {
	config *message.WorkerConfig
	client *privsep.Client
	log    *logrus.Logger
	stderr *logging.LineWriter // for the log lines of sandboxes
	drain  context.Context     // see drainContext

	memory    memory.Info
	control   *controlClient // nil without a control process
	traces    *coldStarts
	functions *functions

	// Without a control process these are nil.
	authorizer *authorizer
	counted    *counted
	logs       *logs.Logs
	readers    chan struct{} // of logs; its capacity bounds them
}

// IsProcess reports whether this process is a worker: then main must call [Main].
func IsProcess() bool { return os.Args[0] == message.WorkerCommand }

// Main runs the worker and returns the exit code of the daemon.
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

// The garbage collector runs when the heap has grown by collectPercent of its live size.
// The ballast counts as live, but takes no memory, because nothing touches it. A small
// daemon has 2 MB of live heap, and an invocation allocates 15 KB: with the ballast the
// collector runs after about 4 MB. If an attack makes the daemon hold 10 MB, the heap grows
// by 6 MB more, not by another 10 (SEC-51 allows 16 MB in all).
const (
	ballastBytes   = 9 << 20
	collectPercent = 33
)

// work reads the configuration, confines the process, and serves until it is asked to stop.
func work(stderr *logging.LineWriter) (err error) {
	failpoint.Pass(failpoint.WorkerStarted)
	_, _ = time.Now().Zone() // loads the time zone's file, which confine.Process makes unreadable
	w := &worker{stderr: stderr, memory: memory.Info{File: os.NewFile(message.MemoryFD, "/proc/meminfo")}}
	if w.config, err = message.ReadWorkerConfig(os.NewFile(message.ConfigFD, "worker-config")); err != nil {
		return err
	}
	control, err := inherited(message.ControlFD)
	if err != nil {
		return err
	}
	var endpoint, web net.Listener
	if w.config.Event == "" {
		if endpoint, err = inherited(message.EndpointFD); err != nil {
			return err
		}
	}
	if w.config.Web != nil {
		if web, err = inherited(message.WebFD); err != nil {
			return err
		}
	}
	sandboxes := message.Sandboxes(w.config.Concurrency)
	if err := boundWorker(uint64(sandboxes)); err != nil {
		return err
	}
	if w.config.Control {
		if err := boundLogFiles(); err != nil {
			return err
		}
	}
	filetable.Grow(filetable.For(sandboxes)) // on failure a later cold start is slower
	if err := confine.Process(); err != nil {
		return err
	}
	if w.client, err = privsep.NewClient(os.NewFile(message.LineFD, "supervisor"), sandboxes); err != nil {
		return err
	}
	ctx, gone := w.stopContext()
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
	go func() { ended <- w.run(ctx, endpoint, web, control) }()
	select {
	case err := <-ended:
		return err
	case <-gone: // an orderly shutdown is impossible; the kernel kills the sandboxes
		return errors.Join(errors.New("the supervisor has exited"), w.client.Err())
	}
}

// stopContext returns a context that ends when the supervisor asks the worker to stop, and
// a channel that is closed when the supervisor has exited.
func (w *worker) stopContext() (context.Context, <-chan struct{}) {
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

// Resource limits of the worker.
const (
	workerFiles   = 8192 // descriptors, besides those of sandboxes
	sandboxFiles  = 1024 // descriptors for each sandbox, mostly connections to its API
	workerThreads = 512  // besides one for each sandbox
)

// boundWorker limits the resources that this process can use if it is compromised.
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

// inherited returns the listener of an inherited descriptor.
func inherited(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "listener")
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherited listener: %w", err)
	}
	return l, nil
}

// run serves, or invokes once, and then shuts all sandboxes down.
func (w *worker) run(ctx context.Context, endpoint, web, control net.Listener) (err error) {
	if w.config.Control {
		w.control = newControlClient(w.client, func(err error) { w.log.WithError(err).Error("the control process does not answer a question") })
		defer w.control.close()
		w.logs, w.readers = w.openLogs(), make(chan struct{}, maxLogReaders)
		defer w.logs.Close()
		w.functions = newFunctions(w, exit.Forced(ctx), w.control)
		w.authorizer, w.counted = newAuthorizer(w.config, endpoint.Addr(), w.control.verify), newCounted(w.functions)
		defer w.listen(w.client.Streams())()
	} else {
		w.functions = newFunctions(w, exit.Forced(ctx), nil)
	}
	go w.warmSet().keep(ctx, w.functions)
	commands := admin.ServeReports(control, w.report, func(err error) {
		w.log.WithError(err).Error("the worker's admin socket has failed: ps and inspect will not know states")
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
				return nil // asked to stop meanwhile
			}
			return err
		}
	}
	if w.config.Event == "" {
		if w.config.Renews {
			go w.keepCredentials(ctx)
		}
		if w.config.Roles {
			go w.keepRoles(ctx)
		}
		return w.serve(ctx, endpoint, web)
	}
	event, err := awaitEvent(ctx, w.config.Event)
	if err != nil {
		return err
	}
	return w.invokeOnce(ctx, w.config.Revisions[0].Name, event, os.Stdout)
}

// awaitEvent reads and checks the event on standard input. name is the value of --event, for
// errors. It returns early when ctx ends.
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
		return nil, errors.New("interrupted before the event was read")
	}
}

// drainContext returns the context for waiting for running invocations. It ends patience
// after ctx has ended, or earlier on a second signal; its cause says which.
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
			cancel(errors.New("a second signal arrived"))
		case <-drain.Done():
		}
	}()
	return drain, func() { cancel(nil) }
}
