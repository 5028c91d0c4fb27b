package rapid

import (
	"context"
	"errors"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// State is a state of a sandbox's life cycle.
//
//	 (Run)
//	   │
//	   ▼
//	Initializing ──everyone ready──► Idle ──Invoke──► Invoking
//	   ▲    │                         │ ▲                │  │
//	   │    │ exit, error, limit      │ └─answer, ready──┘  │ exit, limit
//	   │    ▼                         │ exit                │
//	 Invoke Resetting ◄───────────────┴─────────────────────┘
//	   │    │
//	   └── Cold
//
// Idle, Restoring, Invoking and Cold are states of classic mode (classic.go). The first
// invocation of a snap-start sandbox leads from Idle through Restoring to Invoking. A managed
// sandbox goes from Initializing to Serving (managed.go), where it runs many invocations at
// once, and leaves Serving only to end.
//
// Canceling the context of Run leads from every state to ShuttingDown and then to Dead. So
// does a fault of the host ([Sandbox.giveUp]). Resetting leads to Dead instead of Cold if the
// reset fails, if a domain was lost (out of memory), or if the sandbox is not OnDemand
// (LC-09).
type State int

const (
	Initializing State = iota // extensions and runtime start and ask for their first event
	Idle                      // all processes wait for an event; frozen after Settings.Linger
	Restoring                 // the runtime's hooks run after a restore (section 4.7)
	Invoking                  // the runtime works on one invocation
	Serving                   // the runtime works on any number of invocations; managed mode only
	Resetting                 // after a failure: all processes are being stopped
	Cold                      // no process runs; the next invocation initializes (LC-47)
	ShuttingDown              // all processes are being stopped for good
	Dead                      // the end; the sandbox cannot be used again
)

// String returns the name of the state.
func (s State) String() string {
	return [...]string{"Initializing", "Idle", "Restoring", "Invoking", "Serving", "Resetting", "Cold", "ShuttingDown", "Dead"}[s]
}

// Reasons of a shutdown (LC-66).
const (
	reasonSpindown = "spindown"
	reasonTimeout  = "timeout"
	reasonFailure  = "failure"
)

// Run runs the life cycle, from Initializing until ctx is canceled or the sandbox can take
// no more invocations. Each state is one function that returns the next state. The error is
// nil if the sandbox was shut down in order because ctx ended.
func (s *Sandbox) Run(ctx context.Context) error {
	s.token.life = ctx // Run holds the token from New on
	s.clock.begin()
	s.timer = time.NewTimer(time.Hour)
	defer s.timer.Stop()
	for state := Initializing; ; {
		s.enter(state)
		switch state {
		case Initializing:
			state = s.initialize(ctx)
		case Resetting:
			state = s.reset()
		case ShuttingDown:
			state = s.shutDown()
		case Dead:
			return s.end()
		default: // a state of the mode
			state = s.mode.run(ctx, state)
		}
	}
}

func (s *Sandbox) enter(st State) {
	s.state.Store(int32(st))
	if st.works() {
		s.watchMemory()
	}
	if s.cfg.OnState != nil {
		s.cfg.OnState(st)
	}
}

// initialize follows LC-01: start the extensions, wait until each has registered, start the
// runtime, and wait until all of them have asked for their first event. After Cold it is an
// inline initialization: a part of the invocation that ended Cold, and of its time limit.
func (s *Sandbox) initialize(ctx context.Context) State {
	domains, started := tracing.Step(ctx, "domains")
	err := s.startDomains(domains)
	started()
	if err != nil {
		return s.giveUp(ctx, hostError("start the domains", err))
	}
	limit := s.beginInit()
	s.timer.Reset(limit)
	limited, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	for _, step := range []struct {
		name  string
		begin func(context.Context) *Fault
		done  func() bool
	}{
		{"extensions until they have registered", s.launchExtensions, s.allRegistered},
		{"runtime until everyone asks for an event", s.launchRuntime, s.allReady},
	} {
		inside, over := tracing.Step(limited, step.name)
		f, w := step.begin(inside), reached
		if f == nil {
			w = s.wait(ctx, step.done)
		}
		over()
		if f != nil {
			return s.initFailed(f)
		}
		if w != reached {
			return s.initEnded(w)
		}
	}
	took := s.endInit("", telemetry.Success)
	s.posted = nil
	return s.mode.initialized(took)
}

// reset stops every process and clears their state (LC-70). If it does not succeed in time,
// the sandbox cannot be used again (LC-73). Only sandboxes that are initialized on demand
// are initialized again (LC-09).
func (s *Sandbox) reset() State {
	if err := s.endProcesses(s.reason); err != nil {
		s.broken = errors.Join(s.broken, err)
		return Dead
	}
	if !s.renewable() {
		return Dead
	}
	return Cold
}

// renewable reports whether the sandbox may initialize again after a failure.
func (s *Sandbox) renewable() bool { return s.cfg.Initialization.String() == string(OnDemand) }

// shutDown stops every process for good.
func (s *Sandbox) shutDown() State {
	failpoint.Pass(failpoint.ShuttingDown)
	s.broken = errors.Join(s.broken, s.endProcesses(reasonSpindown))
	return Dead
}

// end answers all callers that still wait, and releases what New has acquired.
func (s *Sandbox) end() error {
	s.mode.abandon(ErrDead)
	s.mode.end()
	close(s.dead)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.log.Close(ctx); err != nil {
		return errors.Join(s.broken, err)
	}
	return s.broken
}

// fail records f, unless it is nil or a fault is recorded already, and the reason of the
// reset, which is the next state.
func (s *Sandbox) fail(f *Fault, reason string) State {
	if f != nil {
		s.note(f)
	}
	s.reason = reason
	return Resetting
}

// giveUp ends the sandbox because of err, a fault of the host. Callers of Invoke get err as
// an error, not as a Result, because the function did not cause it.
func (s *Sandbox) giveUp(ctx context.Context, err error) State {
	if ctx.Err() == nil {
		s.broken = errors.Join(s.broken, err)
	}
	if s.broken != nil {
		s.mode.abandon(s.whyDead())
	}
	return ShuttingDown
}
