package main

import (
	"context"
	"encoding/gob"
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

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// order is what the supervisor tells the worker: all that it knows of the host.
type order struct {
	Instance string
	Event    string // how the user calls the event on standard input; "" serves
	LogLevel string

	Function       rapid.Function
	Initialization rapid.Initialization
	Settings       rapid.Settings
	Credentials    rapid.Credentials
	Network        isolation.Network
	LongInit       time.Duration // limit of a provisioned sandbox's initialization

	Concurrency, Provisioned, Managed int // as the flags, but that Concurrency is never 0
	Tenants, Strict, TraceInit        bool
	WarmMemory                        uint64 // bytes that idle sandboxes may hold; 0 is half of the host's
	IdleTimeout, DrainTimeout         time.Duration
}

// The descriptors that the worker begins with, beside 0, 1 and 2.
const (
	lineFD     = 3 + iota // to the supervisor
	orderFD               // a pipe with the order
	controlFD             // listens for ps and inspect
	memoryFD              // /proc/meminfo
	traceFD               // takes the spans of --trace-init
	endpointFD            // listens for invocations; not there with an event
)

// workerCommand is the name under which the binary is the worker.
const workerCommand = "sandboxd-worker"

// worker is everything that reads what strangers say: the endpoint, the sandboxes'
// lives with their APIs and logs, and the control socket. It runs in a process without
// privilege, and asks the supervisor's process for what takes one.
type worker struct {
	order  order
	client *privsep.Client
	log    *logrus.Logger
	stderr *lineWriter     // for the lines of sandboxes
	drain  context.Context // ends when running invocations are no longer waited for

	memory  meminfo
	traces  *coldStarts
	factory *factory
	fleet   *fleet.Fleet
	control *control
}

// sandboxesAtOnce is how many sandboxes the worker may have: those that serve, and as
// many that are being removed meanwhile.
func sandboxesAtOnce(concurrency int) int { return 2 * concurrency }

// isWorker reports whether this process is the worker.
func isWorker() bool { return os.Args[0] == workerCommand }

// runWorker is main for the worker. It returns the exit code of `run`.
func runWorker() int {
	ballast := make([]byte, ballastBytes)
	defer runtime.KeepAlive(ballast)
	debug.SetGCPercent(collectPercent)
	// Those of who ends every process of a service: the supervisor passes the word on.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	stderr := &lineWriter{w: os.Stderr}
	err := work(stderr)
	return report(err, stderr)
}

// The garbage collector runs when the heap has grown by collectPercent of what is in use.
// ballastBytes count as in use, but take no memory, as nobody touches them. A small daemon
// has 2 MB in use, of which an invocation makes 15 KB: with the ballast the collector runs
// after some 4 MB. One that strangers make hold 10 MB grows by 6 more, not by another 10
// (REQUIREMENTS section 4 allows an attack 16 in all).
const (
	ballastBytes   = 9 << 20
	collectPercent = 33
)

// work does what the order says.
func work(stderr *lineWriter) (err error) {
	_, _ = time.Now().Zone() // reads the time zone's file, while it can
	w := &worker{stderr: stderr, memory: meminfo{os.NewFile(memoryFD, "/proc/meminfo")}}
	pipe := os.NewFile(orderFD, "order")
	if err := gob.NewDecoder(pipe).Decode(&w.order); err != nil {
		return fmt.Errorf("order of the supervisor: %w", err)
	}
	pipe.Close()
	control, err := inherited(controlFD)
	if err != nil {
		return err
	}
	var endpoint net.Listener
	if w.order.Event == "" {
		if endpoint, err = inherited(endpointFD); err != nil {
			return err
		}
	}
	sandboxes := sandboxesAtOnce(w.order.Concurrency)
	if err := boundWorker(uint64(sandboxes)); err != nil {
		return err
	}
	growFileTable(filesAtOnce(w.order.Concurrency)) // if it fails, some sandbox waits
	if err := confine.Process(); err != nil {
		return err
	}
	if w.client, err = privsep.NewClient(os.NewFile(lineFD, "supervisor"), sandboxes); err != nil {
		return err
	}
	ctx := withSignals(context.Background(), stopSignals(w.client))

	messages := newOutlet(stderr)
	defer messages.Close(flushTime)
	w.log = newLogger(messages, w.order.LogLevel, w.order.Function.LogFormat)
	if w.order.TraceInit {
		if w.traces, err = newColdStarts(os.NewFile(traceFD, traceFile), w.order.Function.LogFormat, w.log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, w.traces.close()) }()
	}
	var stop context.CancelFunc
	w.drain, stop = drainContext(ctx, w.order.DrainTimeout)
	defer stop()
	return w.run(ctx, endpoint, control)
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

// stopSignals turns the supervisor's words into signals. When it is gone, so is this
// process.
func stopSignals(c *privsep.Client) <-chan os.Signal {
	signals := make(chan os.Signal, 2)
	go func() {
		for {
			select {
			case <-c.Stops():
				signals <- syscall.SIGTERM
			case <-c.Gone():
				if err := c.Err(); err != nil {
					fmt.Fprintf(os.Stderr, "sandboxd: %v\n", err)
				}
				os.Exit(exitUsage)
			}
		}
	}()
	return signals
}

// run serves, or invokes once, and ends all sandboxes.
func (w *worker) run(ctx context.Context, endpoint, control net.Listener) (err error) {
	o := &w.order
	w.factory = newFactory(w, hurry(ctx))
	places, newSandbox := o.Concurrency, w.factory.make
	if o.Managed > 0 {
		places, newSandbox = places*o.Managed, fleet.Share(o.Managed, newSandbox)
	}
	w.fleet = fleet.New(fleet.Config{
		Max:         places,
		New:         newSandbox,
		Provisioned: o.Provisioned, NewProvisioned: w.factory.provision,
		IdleTimeout: o.IdleTimeout,
		OnError:     func(err error) { w.log.WithError(err).Error("sandbox did not end cleanly") },
	})
	go w.factory.warmSet(o.WarmMemory, w.memory).keep(ctx, w.fleet)
	w.control = startControl(w, control)
	defer func() {
		err = errors.Join(err, w.fleet.Shutdown(w.drain))
		w.control.close()
	}()
	if o.Event == "" {
		return w.serve(ctx, endpoint)
	}
	event, err := awaitEvent(ctx, o.Event)
	if err != nil {
		return err
	}
	return w.invokeOnce(ctx, event, os.Stdout)
}

// awaitEvent reads the event from standard input, whose name is that of --event, and
// checks it. It gives up when ctx ends.
func awaitEvent(ctx context.Context, name string) (event []byte, err error) {
	read := make(chan struct{})
	go func() {
		defer close(read)
		event, err = readEvent(name, os.Stdin)
	}()
	select {
	case <-read:
		return event, err
	case <-ctx.Done():
		return nil, errors.New("interrupted before the event was there")
	}
}

// drainContext ends when running invocations are no longer waited for: patience
// after ctx has ended, or earlier when the user is in a hurry. Its cause says which.
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
		case <-hurry(ctx):
			cancel(errors.New("there was a second signal"))
		case <-drain.Done():
		}
	}()
	return drain, func() { cancel(nil) }
}
