// Package rapid runs the life of one Lambda execution environment: it starts the
// extensions and the runtime, hands them events, returns the runtime's answers, and ends
// the processes. Read lifecycle.go first: it has the states and the path that every
// sandbox takes.
//
// A sandbox works on invocations in one of two modes (mode.go): one at a time (classic.go)
// or many at once (managed.go). A mode owns what it knows of invocations, and its own states;
// everything else is common to both.
//
// One goroutine at a time may touch the state of a sandbox: the one that holds its token
// (token.go). Most of the time that is [Sandbox.Run]. Every other method is safe for
// concurrent use: it sends one message and waits for the reply or for its own context.
// While Run only waits, the sender takes the token and serves its message itself. What the
// processes of the sandbox ask comes in through a [Client]; package rapid/api makes one for
// each of their connections.
//
// Three kinds of state are kept apart: the [State] of the life (lifecycle.go), the
// invocations of the mode, and the protocol states of the parties, which are the runtime's
// table of section 1.8 (runtime.go) and the agents' table of section 2.4 (agents.go). The
// tables alone decide whether a call is legal; the life waits until the parties are where it
// needs them. What the APIs believe of the parties is plain data and can be saved
// (parties.go).
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

// Sandbox is one execution environment.
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

	openOutput func(framed bool, emit func(telemetry.Message)) (output, error) // replaced by tests

	token *token // the right to touch what is below

	// What follows belongs to the holder of the token.

	mode    mode        // what it knows of invocations
	timer   *time.Timer // the limit of the current state
	started bool        // the domains exist
	lost    bool        // the supervisor has lost the domains
	broken  error       // a fault of the host that ends this sandbox

	// The processes of the present generation, and what the APIs believe of them: what
	// can be saved of it is in Parties.
	procs     []*process
	frozen    bool
	throttled bool // the CPU quota is in force
	runtime   runtimeParty
	agents    []*agent // in order of registration, launched ones first
	closedReg bool     // extension registration is closed (EX-14)

	init   initialization
	exit   *process   // the first that ended in this phase, until noted
	fault  *Fault     // first fatal error since the last initialization or shutdown (LC-49)
	posted *initError // body of the newest init/error (LC-27)
	reason string     // of the next reset (LC-66)
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
		inbox: make(chan message), exits: make(chan exited), dead: make(chan struct{}), token: newToken(),
		clock: newThawClock(), reason: reasonFailure, traits: traitsOf(cfg.Initialization),
	}
	s.mode = s.traits.new(s)
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

// State reports the present state.
func (s *Sandbox) State() State { return State(s.state.Load()) }

// ExtensionsDisabled reports whether there are no extension, logs and telemetry endpoints
// (EX-05).
func (s *Sandbox) ExtensionsDisabled() bool { return s.cfg.Function.ExtensionsDisabled }

// Rules returns what the APIs of the sandbox allow.
func (s *Sandbox) Rules() Rules { return s.traits.Rules }

// Thawed returns for how long the sandbox has run without being frozen. Limits on what the
// processes inside must do go by this clock (RT-04).
func (s *Sandbox) Thawed() time.Duration { return s.clock.Now() }

// Running returns a channel that is closed already unless the sandbox is frozen; then it is
// closed at the thaw.
func (s *Sandbox) Running() <-chan struct{} { return s.clock.Running() }

// Errors of Invoke. What goes wrong inside the sandbox is a Result instead.
var (
	ErrBusy = errors.New("the sandbox has an invocation already")
	ErrDead = errors.New("the sandbox has ended")
	// ErrUnavailable and ErrDuplicate are errors of managed mode (RT-65).
	ErrUnavailable = errors.New("no worker of the runtime asks for an event")
	ErrDuplicate   = errors.New("an invocation with this id runs already")
)

// Invoke runs one invocation and returns when the runtime's answer is complete
// (LC-41), or has begun if it is a Stream. Result.Done says when the sandbox is free
// again. Failures of the function are Results.
//
// The error is ErrBusy until the invocation before is Done (LC-20), in managed mode until
// one of Config.MaxConcurrency is. It is ErrDead, with the cause if that is a fault of
// the host, when the sandbox has ended or ends before the answer. If it is that of ctx, an
// invocation that was taken goes on, and its answer is dropped. A Stream outlives ctx.
// Payload and Invocation must not change before Done.
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

// hostError wraps a fault of the host, not of the function.
func hostError(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
