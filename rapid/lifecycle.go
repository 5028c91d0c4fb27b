package rapid

import (
	"context"
	"errors"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// State is where a sandbox is in its life.
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
// Invoke of a snap-start sandbox leads from Idle through Restoring to Invoking. A managed
// sandbox goes from Initializing to Serving (managed.go), which takes many invocations at
// once and ends only with the sandbox.
//
// Cancelling the context of Run leads from every state to ShuttingDown and then to Dead. So
// does a fault of the host ([Sandbox.giveUp]). The loss of a domain (out of memory) or a
// reset that fails leads to Dead too, and so does every reset of a sandbox that is not
// OnDemand (LC-09).
type State int

const (
	Initializing State = iota // extensions and runtime start and ask for their first event
	Idle                      // everyone waits for an event; frozen after a linger
	Restoring                 // the runtime's hooks run after a restore (section 4.7)
	Invoking                  // the runtime works on one invocation
	Serving                   // the runtime works on many; instead of Idle and Invoking in managed mode
	Resetting                 // something failed; every process is being ended
	Cold                      // no process runs; the next invocation initializes (LC-47)
	ShuttingDown              // as Resetting, but for good
	Dead                      // the end; the sandbox is to be discarded
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

// Run lives the sandbox's life, from Initializing until ctx is cancelled or the
// sandbox cannot go on. Each state is one function that returns the state to go to
// next. The error is nil after a regular end by ctx.
func (s *Sandbox) Run(ctx context.Context) error {
	s.token.life = ctx // the token is ours from New on
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
	if s.cfg.OnState != nil {
		s.cfg.OnState(st)
	}
}

// initialize follows LC-01: start the extensions, wait until each has registered,
// start the runtime, and wait until all of them have asked for their first event. An
// invocation that was waited for in Cold makes it an inline initialization, which is part of
// the invocation and of its time.
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

// reset ends every process and forgets what belonged to them (LC-70). A reset that
// does not succeed in time leaves nothing to use again (LC-73), and only what was
// initialized on demand is initialized again (LC-09).
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

// renewable reports whether the sandbox may initialize once more after a failure.
func (s *Sandbox) renewable() bool { return s.cfg.Initialization.String() == string(OnDemand) }

// shutDown is the last reset.
func (s *Sandbox) shutDown() State {
	failpoint.Pass(failpoint.ShuttingDown)
	s.broken = errors.Join(s.broken, s.endProcesses(reasonSpindown))
	return Dead
}

// end answers everybody who still waits, and releases what New has acquired.
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

// fail notes why the processes must be ended: f, unless that is noted already.
func (s *Sandbox) fail(f *Fault, reason string) State {
	if f != nil {
		s.note(f)
	}
	s.reason = reason
	return Resetting
}

// giveUp ends the sandbox for a fault of the host, err. Callers of invocations get it as
// an error, not as a result: the function is not to blame.
func (s *Sandbox) giveUp(ctx context.Context, err error) State {
	if ctx.Err() == nil {
		s.broken = errors.Join(s.broken, err)
	}
	if s.broken != nil {
		s.mode.abandon(s.whyDead())
	}
	return ShuttingDown
}
