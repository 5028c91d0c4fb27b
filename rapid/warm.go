package rapid

import (
	"context"
	"time"
)

// A warm sandbox goes from Idle to Invoking and back all day long. As a rule there is
// nothing in either step that could wait or fail, and so whoever brings what Run waits
// for makes the step, and Run sleeps on: to wake it would be two switches of goroutines for each
// invocation, one of them while the function waits for its event.

// waitWarm is wait in Idle or Invoking, whichever of the two that is by its end: done is
// what the present state waits for.
func (s *Sandbox) waitWarm(ctx context.Context, done func() bool) wakening {
	s.warm = true
	defer func() { s.warm = false }()
	return s.wait(ctx, done)
}

// step makes the step that Run would make next, on the goroutine of who has the turn and has
// brought what is awaited. It returns false, and has changed nothing, if that is for Run.
func (s *Sandbox) step() bool {
	if !s.warm || s.exiting.Load() > 0 || s.runCtx.Err() != nil {
		return false
	}
	switch s.State() {
	case Idle:
		if s.frozen || s.snapshot {
			return false
		}
		s.current.begin(time.Now(), s.cfg.Function.Timeout)
		s.enter(Invoking)
		s.beginInvoking()
		s.awaited = s.answered
	case Invoking:
		if s.current.cut != nil || !s.agentsDone() {
			return false
		}
		s.invoked()
		s.enter(Idle)
		s.beginIdle()
		s.awaited = s.hasInvocation
	}
	return true
}
