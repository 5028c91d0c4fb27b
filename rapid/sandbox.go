// Package rapid implements the life cycle of one Lambda execution environment: it starts the
// extensions and the runtime, delivers events to them, returns the runtime's answers, and
// stops the processes. Start reading in lifecycle.go, which has the states and the
// transitions between them.
//
// A sandbox runs invocations in one of two modes (mode.go): one at a time (classic.go) or
// many at once (managed.go). A mode owns its invocations and its own states; everything else
// is common to both.
//
// Only one goroutine at a time may use the state of a sandbox: the one that holds its token
// (token.go). Most of the time that is [Sandbox.Run]. Every other method is safe for
// concurrent use: it sends one message, and waits for the reply or for the end of its
// context. While Run waits, the sender takes the token and serves its message itself. Calls
// of the processes inside the sandbox arrive through a [Client]; package rapid/api creates
// one for each of their connections.
//
// There are three kinds of state: the [State] of the life cycle (lifecycle.go), the
// invocations of the mode, and the protocol states of the parties, which are the runtime and
// the extensions, here called agents. The transition tables of section 1.8 (runtime.go) and
// section 2.4 (agents.go) alone decide whether a call of a party is allowed; the life cycle
// waits until the parties have reached the states that it needs. The protocol states are
// plain data and can be saved (parties.go).
package rapid

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Sandbox is one execution environment. Use New.
type Sandbox struct {
	cfg    Config
	traits *traits // of its mode
	sup    Supervisor
	inbox  chan message
	exits  chan exited
	dead   chan struct{} // closed when Run returns
	state  atomic.Int32  // State; written by the holder of the token
	gen    atomic.Uint64 // generation (LC-10); written by the holder of the token
	clock  *thawClock
	hub    *telemetry.Hub // nil if extensions are disabled
	log    *telemetry.Log
	watch  memoryWatch

	openOutput func(framed bool, emit func(telemetry.Message)) (output, error) // replaced by tests

	token *token // guards all fields below

	mode    mode        // with its invocations
	timer   *time.Timer // fires at the limit of the current state
	started bool        // the domains exist
	lost    bool        // the supervisor has lost the domains
	broken  error       // fault of the host that ends this sandbox

	// The processes of the current generation, and their protocol states. Parties has the
	// part that can be saved.
	procs     []*process
	frozen    bool
	throttled bool // the CPU quota is on
	runtime   runtimeParty
	agents    []*agent // in order of registration, launched ones first
	closedReg bool     // extension registration is closed (EX-14)

	init   initialization
	exit   *process   // first process that exited in this phase, until noteExit
	fault  *Fault     // first fatal error since the last initialization or shutdown (LC-49)
	posted *initError // latest failure report of the runtime (LC-27)
	reason string     // of the next reset (LC-66)
}

// output is the reading side of a process's stdout, stderr and framed messages.
type output interface {
	Lines() *os.File  // of stdout and stderr
	Frames() *os.File // nil if there are none
	Release()
	Drain()
	Flush()
	Close() error
}

// New returns a sandbox. The caller must call Run, once: it starts the processes, and
// releases what New has acquired. The caller still owns sup.
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
		inbox: make(chan message), exits: make(chan exited), dead: make(chan struct{}), token: newToken(),
		clock: newThawClock(), reason: reasonFailure, traits: traitsOf(cfg.Initialization),
	}
	s.mode = s.traits.new(s)
	s.watch.timer = time.AfterFunc(time.Hour, s.lookAtMemory)
	s.watch.timer.Stop()
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
	return s
}

// State returns the current state.
func (s *Sandbox) State() State { return State(s.state.Load()) }

// ExtensionsDisabled reports whether the sandbox lacks the endpoints of the Extensions, Logs
// and Telemetry APIs (EX-05).
func (s *Sandbox) ExtensionsDisabled() bool { return s.cfg.Function.ExtensionsDisabled }

// Rules returns the rules of the sandbox's APIs.
func (s *Sandbox) Rules() Rules { return s.traits.Rules }

// Thawed returns for how long the sandbox has run without being frozen. Time limits for the
// processes inside use this clock (RT-04).
func (s *Sandbox) Thawed() time.Duration { return s.clock.Now() }

// Running returns a channel that is closed if the sandbox is not frozen, or else when it is
// thawed.
func (s *Sandbox) Running() <-chan struct{} { return s.clock.Running() }

// Errors of Invoke. A failure inside the sandbox is a Result instead.
var (
	ErrBusy = errors.New("the sandbox is running another invocation")
	ErrDead = errors.New("the sandbox has ended")
	// ErrUnavailable and ErrDuplicate are errors of managed mode (RT-65).
	ErrUnavailable = errors.New("no worker of the runtime asks for an event")
	ErrDuplicate   = errors.New("an invocation with this id runs already")
)

// Invoke runs one invocation and returns when the runtime's answer is complete (LC-41), or,
// if it is streamed, when it has begun. Failures of the function are Results. Result.Done
// says when the sandbox is free again.
//
// The error is ErrBusy while the previous invocation is not Done (LC-20), or in managed mode
// while Config.MaxConcurrency invocations run. It is ErrDead if the sandbox has ended, or
// ends before the answer; it then wraps the cause if that is a fault of the host. If ctx
// ends, Invoke returns its error, an accepted invocation continues, and its answer is
// dropped. A Stream does not end with ctx. The Invocation and its Payload must not be changed
// before Done.
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

// hostError wraps an error that the host caused, not the function.
func hostError(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
