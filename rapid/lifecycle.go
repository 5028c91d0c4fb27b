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
// The first Invoke of a snap-start sandbox leads from Idle through Restoring to
// Invoking. A managed sandbox goes from Initializing to Serving, which takes many
// invocations at once and ends only with the sandbox. Cancelling the context of Run leads from every state to ShuttingDown and
// then to Dead. The loss of a domain (out of memory) or a reset that fails leads to
// Dead too, and so does every reset of a sandbox that is not OnDemand (LC-09).
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
		case Idle:
			state = s.idle(ctx)
		case Restoring:
			state = s.restore(ctx)
		case Invoking:
			state = s.invoke(ctx)
		case Serving:
			state = s.serveMany(ctx)
		case Resetting:
			state = s.reset()
		case Cold:
			state = s.cold(ctx)
		case ShuttingDown:
			state = s.shutDown()
		case Dead:
			return s.end()
		}
	}
}

func (s *Sandbox) enter(st State) {
	s.state.Store(int32(st))
	if s.cfg.OnState != nil {
		s.cfg.OnState(st)
	}
	if st == Idle || st == Cold {
		s.release()
	}
}

// initialize follows LC-01: start the extensions, wait until each has registered,
// start the runtime, and wait until all of them have asked for their first event. An
// invocation that waits for it in Cold makes it an inline initialization, which has
// the function's time instead of a limit of its own.
func (s *Sandbox) initialize(ctx context.Context) State {
	domains, started := tracing.Step(ctx, "domains")
	err := s.startDomains(domains)
	started()
	if err != nil {
		return s.giveUp(ctx, hostError("start the domains", err))
	}
	s.beginInit()

	limit := s.cfg.Settings.InitTimeout
	if s.inline() {
		limit = time.Until(s.current.deadline)
	}
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
	s.initDone()
	if s.Managed() {
		return Serving
	}
	if s.inline() {
		return Invoking
	}
	if s.current != nil && !s.snapshot {
		s.current.begin(time.Now(), s.cfg.Function.Timeout)
		return Invoking
	}
	return Idle
}

// idle waits for an invocation, and freezes the sandbox when none comes for a while.
// One that comes before that finds everything running.
func (s *Sandbox) idle(ctx context.Context) State {
	s.beginIdle()
	return s.idling(ctx, s.waitStepping(ctx, s.hasInvocation, s.step))
}

func (s *Sandbox) beginIdle() {
	failpoint.Pass(failpoint.Idle)
	s.token.until = time.Now().Add(s.cfg.Settings.Linger)
	s.timer.Reset(s.cfg.Settings.Linger)
}

// idling goes on in Idle when the first waiting is over.
func (s *Sandbox) idling(ctx context.Context, w wakening) State {
	for ; ; w = s.waitStepping(ctx, s.hasInvocation, s.step) {
		if s.State() == Invoking { // others have brought it there
			return s.invoking(ctx, w)
		}
		switch w {
		case limitPassed:
			if err := s.freeze(); err != nil {
				return s.fail(&Fault{Type: errSandboxFailure, Message: err.Error()}, reasonFailure)
			}
		case failed:
			s.reportFault() // EX-29: reset before the next dispatch
			return Resetting
		case cancelled:
			return ShuttingDown
		}
		if s.current != nil {
			break
		}
	}
	select {
	case e := <-s.exits: // EX-29, though the invocation was seen first
		if s.exited(e) {
			s.reportFault()
			return Resetting
		}
	default:
	}
	if err := s.thaw(); err != nil {
		return s.giveUp(ctx, err)
	}
	if s.snapshot {
		return Restoring
	}
	s.current.begin(time.Now(), s.cfg.Function.Timeout)
	return Invoking
}

// invoke hands out the current invocation and waits until it is Done (LC-40): the
// runtime has answered, and it and every agent that got the event ask for the next.
func (s *Sandbox) invoke(ctx context.Context) State {
	s.beginInvoking()
	w := s.waitStepping(ctx, s.answered, s.step)
	if s.State() == Idle { // others have brought it there
		return s.idling(ctx, w)
	}
	return s.invoking(ctx, w)
}

func (s *Sandbox) beginInvoking() {
	s.dispatch()
	failpoint.Pass(failpoint.Invoking)
	s.token.until = s.current.deadline
	s.timer.Reset(time.Until(s.token.until))
}

// invoking goes on in Invoking when the first waiting is over.
func (s *Sandbox) invoking(ctx context.Context, w wakening) State {
	if w == reached && s.current.cut != nil {
		w = s.answerCut(ctx)
	}
	if w == reached {
		s.reportRuntimeDone("", telemetry.Success)
		w = s.wait(ctx, s.agentsDone)
	}
	switch w {
	case reached:
		s.invoked()
		return Idle
	case limitPassed:
		s.timedOut(s.cfg.Function.Timeout)
		return s.fail(nil, reasonTimeout)
	case cancelled:
		s.abandon(ErrDead)
		return ShuttingDown
	}
	s.invokeFailed()
	return Resetting
}

// step makes the step that Run would make next, on the goroutine of who has the turn and has
// brought what is awaited. It returns false, and has changed nothing, if that is for Run.
func (s *Sandbox) step() bool {
	switch s.State() {
	case Idle:
		if s.frozen || s.snapshot {
			return false
		}
		s.current.begin(time.Now(), s.cfg.Function.Timeout)
		s.enter(Invoking)
		s.beginInvoking()
		s.token.awaited = s.answered
	case Invoking:
		if s.current.cut != nil || !s.agentsDone() {
			return false
		}
		s.invoked()
		s.enter(Idle)
		s.beginIdle()
		s.token.awaited = s.hasInvocation
	}
	return true
}

// answered tells whether the runtime is done with the invocation, or its answer was cut.
func (s *Sandbox) answered() bool { return s.runtimeDone() || s.current.cut != nil }

// invoked tells of an invocation that has ended well.
func (s *Sandbox) invoked() {
	s.reportRuntimeDone("", telemetry.Success)
	s.reportEnd("", telemetry.Success)
}

// cold waits for the invocation that pays for the next initialization.
func (s *Sandbox) cold(ctx context.Context) State {
	s.timer.Stop()
	if s.wait(ctx, s.hasInvocation) != reached {
		return ShuttingDown
	}
	s.current.begin(time.Now(), s.cfg.Function.Timeout)
	return Initializing
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

// renewable tells whether the sandbox may initialize once more after a failure.
func (s *Sandbox) renewable() bool { return s.cfg.Initialization.String() == string(OnDemand) }

// shutDown is the last reset.
func (s *Sandbox) shutDown() State {
	failpoint.Pass(failpoint.ShuttingDown)
	s.broken = errors.Join(s.broken, s.endProcesses(reasonSpindown))
	return Dead
}

// end answers who still waits and releases what New acquired.
func (s *Sandbox) end() error {
	s.abandon(ErrDead)
	s.release()
	close(s.dead)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := s.log.Close(ctx); err != nil {
		return errors.Join(s.broken, err)
	}
	return s.broken
}

// fail notes why the processes are to be ended.
func (s *Sandbox) fail(f *Fault, reason string) State {
	if f != nil {
		s.note(f)
	}
	s.reason = reason
	return Resetting
}

// giveUp ends the sandbox for a fault of the host. The caller of an invocation gets
// it as an error: the function is not to blame.
func (s *Sandbox) giveUp(ctx context.Context, err error) State {
	if ctx.Err() == nil {
		s.broken = errors.Join(s.broken, err)
	}
	if s.broken != nil {
		s.abandon(s.whyDead())
	}
	return ShuttingDown
}
