// Package rapid runs the life of one Lambda execution environment: it starts the
// extensions and the runtime, hands them events, returns what the runtime answers,
// and ends them. Read lifecycle.go first: it is the whole state machine.
//
// One goroutine, [Sandbox.Run], owns all state. Every other method is safe for
// concurrent use: it sends one message to that goroutine and waits for the answer or
// for its own context. While Run only waits, the sender has its turn, serves its
// message itself, and makes the steps of a warm sandbox (warm.go). What the processes of the sandbox ask comes in through a
// [Client], which package rapid/api makes for each of their connections.
//
// Two levels of state are kept apart: the [State] of the sandbox (lifecycle.go), and
// the protocol states of its parties, the runtime's table of section 1.8 (runtime.go)
// and the agents' table of section 2.4 (agents.go). The tables alone decide whether a
// call is legal; the life cycle waits until the parties are where it needs them.
package rapid

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Supervisor is what a life needs of the supervisor: the processes of one sandbox.
// [Supervise] makes one of a *supervisor.Sandbox.
type Supervisor interface {
	Configure(domain string, c supervisor.DomainConfig) error
	Start(ctx context.Context, domain string) error
	Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error)
	Terminate(domain, name string) error
	Kill(ctx context.Context, domain, name string) error
	Stop(ctx context.Context, domain string) (isolation.Usage, error)
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	Throttle(ctx context.Context, on bool) error
	MemoryPeak() (uint64, error)
	Lost() <-chan struct{}
	Dial(ctx context.Context, network, addr string) (net.Conn, error) // from inside the sandbox
}

// Process is a started process. Exit is valid once Done is closed.
type Process interface {
	Done() <-chan struct{}
	Exit() supervisor.Exit
}

// Supervise returns the Supervisor that s is.
func Supervise(s *supervisor.Sandbox) Supervisor { return supervised{s} }

type supervised struct{ *supervisor.Sandbox }

func (s supervised) Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error) {
	p, err := s.Sandbox.Exec(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Entry is the program that a runtime begins with.
type Entry struct {
	Path string   // inside the sandbox; "" makes every initialization fail (FE-02)
	Args []string // after argv[0]
	Dir  string   // "" means /var/task (ENV-24)
}

// Image is what the configuration of a container image says of its program, for the
// log line of one that cannot be started (LOG-33).
type Image struct {
	Entrypoint, Cmd []string
	WorkingDir      string
}

// Function is what runs in a sandbox.
type Function struct {
	Name, Version, ARN, Handler string
	Runtime                     string // identifier, e.g. "nodejs20.x", "provided.al2023"
	Region, AccountID           string
	MemoryMB                    int
	Timeout                     time.Duration
	Env                         map[string]string // the customer's
	LogFormat                   telemetry.Format
	LogLevel                    string          // AWS_LAMBDA_LOG_LEVEL, "" if not configured
	SystemLogLevel              telemetry.Level // of platform records in JSON logs, "" for all (LOG-41)
	LogGroup                    string
	Bootstrap                   Entry
	Extensions                  []string // basenames in /opt/extensions, in listing order (EX-01)
	ExtensionsDisabled          bool     // EX-05
	Image                       *Image   // the code is a container image, whose variables are among Env; nil if it is not
}

// Credentials are what the processes get as AWS_ACCESS_KEY_ID and so on (ENV-02).
// Empty ones are left out.
type Credentials struct{ AccessKeyID, SecretAccessKey, SessionToken string }

// Settings are the times and choices that the specification leaves open. Take
// [DefaultSettings] and change what differs: a zero is a value here, not a default.
type Settings struct {
	InitTimeout    time.Duration         // of an initialization with a phase of its own (LC-06)
	ExitGrace      time.Duration         // for what a process posted just before it ended (RT-51)
	Linger         time.Duration         // from Done to the freeze (LC-80)
	InternalWindow time.Duration         // of a shutdown with internal extensions only (LC-64)
	ExternalWindow time.Duration         // of a shutdown with an external extension (LC-64)
	RuntimeShare   float64               // of ExternalWindow, for the runtime (LC-61)
	KillWait       time.Duration         // for processes to be gone after SIGKILL (LC-63)
	FreezeTimeout  time.Duration         // for a freeze or thaw; then the sandbox is reset or given up
	BillInit       bool                  // LOG-25
	Stream         StreamLimits          // of streamed answers (RT-71)
	Descriptors    telemetry.Descriptors // stdout and stderr of the processes
	XRayAddress    string                // host:port of AWS_XRAY_DAEMON_ADDRESS (ENV-08)
}

// DefaultSettings returns the specification's values.
func DefaultSettings() Settings {
	return Settings{
		InitTimeout:    10 * time.Second,
		ExitGrace:      100 * time.Millisecond,
		Linger:         5 * time.Millisecond,
		InternalWindow: 500 * time.Millisecond,
		ExternalWindow: 2 * time.Second,
		RuntimeShare:   0.3,
		KillWait:       9 * time.Second,
		FreezeTimeout:  time.Second,
		BillInit:       true,
		Stream:         StreamLimits{Bytes: 200 << 20, Burst: 6 << 20},
		Descriptors:    telemetry.Pipes,
		XRayAddress:    "127.0.0.1:2000",
	}
}

// Initialization is the way in which a sandbox comes to take invocations, by the name
// that its processes and records see (ENV-07, TL-29). The zero value is OnDemand.
type Initialization string

// The ways there are.
const (
	OnDemand    Initialization = "on-demand"                // when an invocation needs it
	Provisioned Initialization = "provisioned-concurrency"  // before any invocation needs it (LC-09)
	SnapStart   Initialization = "snap-start"               // once, then restored for each use (section 4.7)
	Managed     Initialization = "lambda-managed-instances" // for many invocations at once (section 1.9)
)

// String returns the name, also of the zero value.
func (i Initialization) String() string {
	if i == "" {
		return string(OnDemand)
	}
	return string(i)
}

// Config is fixed for the life of a sandbox. It must not change after New.
type Config struct {
	Function       Function
	Initialization Initialization
	Settings       Settings
	Credentials    Credentials
	MaxConcurrency int            // invocations at once, of Managed; less than 1 means 1
	LogStream      string         // log stream name, also the instance id (TL-44)
	APIAddr        string         // host:port of the Runtime API as seen inside; "" means isolation.APIAddr
	Sink           telemetry.Sink // gets the log; nil discards it

	// Restore says what a SnapStart sandbox gets anew when it is restored (LC-93); nil
	// changes nothing. It is called by the goroutine of Run and should not block.
	Restore func() (Restored, error)
	// Token is what processes of a SnapStart sandbox show to get their credentials
	// (RT-72); "" means a random one.
	Token string

	// OnState is called at each transition, one call at a time, and must not block. In
	// Idle and Cold the sandbox takes an invocation; Dead is the last.
	OnState func(State)
}

// Sandbox is one execution environment.
type Sandbox struct {
	cfg   Config
	sup   Supervisor
	inbox chan message
	exits chan exited
	dead  chan struct{} // closed when Run returns
	state atomic.Int32  // State; written by who has the turn
	gen   atomic.Uint64 // generation (LC-10); written by Run alone
	clock *thawClock
	hub   *telemetry.Hub // nil if extensions are disabled
	log   *telemetry.Log

	openOutput func(framed bool, emit func(telemetry.Message)) (output, error) // replaced by tests

	// turn is held by who may touch what is below: the goroutine in Run, but for the
	// time in which it waits. After Run nobody gets it any more.
	turn    sync.Mutex
	nudge   chan struct{} // capacity 1: what Run waits for may hold
	awaited func() bool   // what Run waits for; called with the turn
	warm    bool          // Run waits in Idle or Invoking, and others may make its steps
	limit   time.Time     // when the timer of Idle or Invoking fires
	exiting atomic.Int32  // processes that have ended and that Run has not dealt with

	// Everything below belongs to the goroutine in Run, or who has the turn.
	runCtx      context.Context
	timer       *time.Timer // the limit of the current state
	started     bool        // the domains exist
	lost        bool        // the supervisor has lost the domains
	broken      error       // a fault of the host that ends this sandbox
	frozen      bool
	throttled   bool
	procs       []*process
	runtime     runtimeParty
	agents      []*agent // in order of registration, launched ones first
	closedReg   bool     // extension registration is closed (EX-14)
	current     *invocation
	serving     map[string]*invocation // by id, of managed mode; what is in queue too
	queue       []*invocation          // those that wait for a worker, oldest first
	running     []*invocation          // those that a worker has, oldest first
	late        []string               // ids of the last that timed out (RT-63)
	fault       *Fault                 // first fatal error since the last initialization or shutdown (LC-49)
	posted      *initError             // body of the newest init/error (LC-27)
	reason      string                 // of the next reset (LC-66)
	initTime    *time.Duration
	snapshot    bool           // of SnapStart: initialized, and not restored yet
	restoreTime *time.Duration // of the restore, until it is reported
	initPhase   telemetry.Phase
	initBegin   time.Time
	initStatus  bool     // initRuntimeDone was written
	inlineLog   bool     // the invocation's log began with an inline initialization
	exit        *process // the first that ended in this phase, until noted
}

// output is the reading side of a process's stdout, stderr and framed messages.
type output interface {
	Stdout() *os.File
	Stderr() *os.File
	Frames() *os.File // nil if there are none
	Release()
	Drain()
	Flush()
	Close() error
}

// New returns a sandbox. Nothing runs until Run is called, and Run must be called,
// once: it releases what New has acquired. The supervisor stays the caller's.
func New(cfg Config, sup Supervisor) *Sandbox {
	if cfg.APIAddr == "" {
		cfg.APIAddr = isolation.APIAddr
	}
	if cfg.Function.Bootstrap.Dir == "" {
		cfg.Function.Bootstrap.Dir = taskRoot
	}
	cfg.MaxConcurrency = max(cfg.MaxConcurrency, 1)
	if cfg.Token == "" {
		cfg.Token = uuid.NewString()
	}
	s := &Sandbox{
		cfg: cfg, sup: sup,
		inbox: make(chan message), exits: make(chan exited), dead: make(chan struct{}), nudge: make(chan struct{}, 1),
		clock: newThawClock(), reason: reasonFailure, serving: map[string]*invocation{},
	}
	if !cfg.Function.ExtensionsDisabled {
		s.hub = telemetry.NewHub(s.clock, s.dial, cfg.Function.LogFormat == telemetry.JSON)
	}
	s.log = telemetry.NewLog(telemetry.LogConfig{Sink: cfg.Sink, Format: cfg.Function.LogFormat, System: cfg.Function.SystemLogLevel, Hub: s.hub})
	s.openOutput = func(framed bool, emit func(telemetry.Message)) (output, error) {
		e, err := telemetry.Open(cfg.Settings.Descriptors, framed, emit)
		if err != nil {
			return nil, err
		}
		return e, nil
	}
	s.state.Store(int32(Initializing))
	s.turn.Lock() // Run's
	return s
}

// State reports the present state.
func (s *Sandbox) State() State { return State(s.state.Load()) }

// ExtensionsDisabled tells whether the extension, logs and telemetry endpoints do
// not exist (EX-05).
func (s *Sandbox) ExtensionsDisabled() bool { return s.cfg.Function.ExtensionsDisabled }

// Thawed is a clock that stands still while the sandbox is frozen: how long it has
// not been frozen since New. Limits on what processes inside must do go by it (RT-04).
func (s *Sandbox) Thawed() time.Duration { return s.clock.Now() }

// Running returns a channel that is closed unless the sandbox is frozen, and else closed
// at the thaw.
func (s *Sandbox) Running() <-chan struct{} { return s.clock.Running() }

// Errors of Invoke. What goes wrong inside the sandbox is a Result instead.
var (
	ErrBusy = errors.New("the sandbox has an invocation already")
	ErrDead = errors.New("the sandbox has ended")
	// ErrUnavailable and ErrDuplicate are of managed mode: no worker of the runtime asks
	// for an event, or an invocation has the id of one that runs (RT-65).
	ErrUnavailable = errors.New("no worker of the runtime asks for an event")
	ErrDuplicate   = errors.New("an invocation with this id runs already")
)

// Invoke runs one invocation and returns when the runtime's answer is complete
// (LC-41), or has begun if it is a Stream; Result.Done says when the sandbox is free
// again. Whatever the function does wrong is a Result. The error is ErrBusy until the
// invocation before is Done (LC-20), ErrDead when the sandbox has ended or ends before
// the answer, or that of ctx: then an invocation that was taken goes on and its answer
// is thrown away. A Stream outlives ctx. Payload and Invocation must not change before
// Done.
func (s *Sandbox) Invoke(ctx context.Context, inv *Invocation) (*Result, error) {
	m := &invokeMsg{inv: inv, call: newCall[*Result](ctx, noGeneration)}
	if inv.Stream {
		m.left = make(chan struct{})
	}
	res, err := ask(ctx, s, m)
	if err != nil && m.left != nil {
		close(m.left)
	}
	return res, err
}

// Invocation is one event for the function.
type Invocation struct {
	ID              string // made once, at the front
	Payload         []byte
	ContentType     string // "" means application/json (RT-20)
	TraceID         string // X-Ray header value (RT-16)
	ClientContext   string // decoded JSON (RT-17)
	CognitoIdentity string // JSON (RT-18)
	TenantID        string // RT-19
	FunctionARN     string // as invoked (RT-15); "" means the function's
	Stream          bool   // the invoker takes the answer as it comes, if it comes as a stream (RT-69, RT-74)
	NoTail          bool   // nobody reads Result.Tail: it is empty, and need not be made
	Arrived         time.Time
}

// Result is the answer to one invocation.
type Result struct {
	Payload       []byte
	ContentType   string // as the runtime set it; "" if it set none (RT-31)
	FunctionError bool   // X-Amz-Function-Error: Unhandled (INV-10)
	ErrorType     string // for logs (RT-41); "" unless FunctionError
	Code          string // for the invoker of a stream (INV-32), "" if it is ErrorType
	Cause         []byte // X-Ray cause of RT-46, nil if there is none

	// Stream is the body of an answer that has only begun; it is nil unless the
	// Invocation asks for it. Then of the other fields only ContentType and Done are
	// set: the Result of the Stream has the rest.
	Stream *Stream

	// Done is closed when REPORT is written and the sandbox is free again, after
	// its reset if there is one.
	Done <-chan struct{}

	tail []byte // written before Done is closed
	over *over  // of an Invoke
}

// AfterDone has f called once Done is closed: at once if it is, else by whoever ends the
// invocation, who has the sandbox's turn: f must not block, and ask nothing of the sandbox
// but its State. It is for one caller, who calls it once, and spares him a goroutine that
// waits.
func (r *Result) AfterDone(f func()) {
	if r.over == nil { // not made by a Sandbox
		go func() {
			<-r.Done
			f()
		}()
		return
	}
	r.over.after(f)
}

// over is the end of an invocation.
type over struct {
	done chan struct{} // Result.Done

	mu    sync.Mutex
	ended bool
	then  func() // to be called; nil if nobody has said so
}

func (o *over) after(f func()) {
	o.mu.Lock()
	ended := o.ended
	o.then = f
	o.mu.Unlock()
	if ended {
		f()
	}
}

// end closes done and calls who waits. It is called once.
func (o *over) end() {
	o.mu.Lock()
	o.ended = true
	close(o.done)
	then := o.then
	o.mu.Unlock()
	if then != nil {
		then()
	}
}

// Tail returns the last 4,096 bytes of the invocation's log (INV-03), unless the
// Invocation said NoTail. Call it only after Done is closed.
func (r *Result) Tail() []byte { return r.tail }

// hostError wraps a fault of the host, not of the function.
func hostError(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
