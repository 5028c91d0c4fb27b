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
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Sandbox is one execution environment.
type Sandbox struct {
	cfg   Config
	sup   Supervisor
	inbox chan message
	exits chan exited
	dead  chan struct{} // closed when Run returns
	state atomic.Int32  // State; written by the holder of the token
	gen   atomic.Uint64 // generation (LC-10); written by the holder of the token
	clock *thawClock
	hub   *telemetry.Hub // nil if extensions are disabled
	log   *telemetry.Log

	openOutput func(framed bool, emit func(telemetry.Message)) (output, error) // replaced by tests

	token *token // the right to touch what is below

	// What follows belongs to the holder of the token.
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
	changed     bool                   // of managed mode: there may be something to hand out
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
		inbox: make(chan message), exits: make(chan exited), dead: make(chan struct{}), token: newToken(),
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

// hostError wraps a fault of the host, not of the function.
func hostError(what string, err error) error { return fmt.Errorf("%s: %w", what, err) }
