package rapid

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// token is the right to touch the state of a sandbox: what Sandbox lists below its token,
// its mode and its parties. One goroutine holds it at a time.
//
// Who may hold it: the goroutine in Run, from New on. It gives the token up in
// [Sandbox.waitStepping] alone, for the time in which it waits. During that time the
// goroutine that delivers a message may have it ([Sandbox.serveNow]). Nobody but Run waits
// for the token: a message that finds it taken goes to the inbox, and Run serves it.
//
// What a holder other than Run may do: serve one message, and then, if what Run waits for
// holds, do the one thing that Run would do next (step): the transition from Idle to Invoking
// or back, or in managed mode the handing out of events. Nothing of it may block: no request
// to another process, no lock that is held during one, no send to a channel that may be
// full. What could block or fail is left to Run.
//
// What it must do before it gives the token up: leave Run something to wait for. Either
// what Run awaits does not hold, or the step is made and awaited, until and the timer are
// those of what follows, or Run is woken. pass does that.
//
// When Run ends it keeps the token. Nobody gets it from then on, and whoever still has a
// message sees that Sandbox.dead is closed.
//
// What it is for: a message that goes to Run and back costs two switches of goroutines,
// which is more than serving it. The goroutine that delivers what Run waits for makes the
// step itself, so Run sleeps through the invocations of a warm sandbox, and no function
// waits for its event while Run is being woken.
type token struct {
	mu      sync.Mutex
	wake    chan struct{} // capacity 1: Run is to look whether what it awaits holds
	exiting atomic.Int32  // processes that have ended and that Run has not dealt with: no step before that

	// What follows is touched by the holder alone.
	awaited func() bool     // reports whether what Run waits for holds
	step    func() bool     // does what follows, or changes nothing and returns false; nil leaves it to Run
	until   time.Time       // when the limit passes that step has set last
	life    context.Context // that of Run
}

// newToken returns a token that is taken: Run's.
func newToken() *token {
	t := &token{wake: make(chan struct{}, 1)}
	t.take()
	return t
}

// take waits for the token. It is for Run, which holds it until release.
func (t *token) take() { t.mu.Lock() }

func (t *token) release() { t.mu.Unlock() }

// tryTake reports whether the caller has the token now. It must pass it then.
func (t *token) tryTake() bool { return t.mu.TryLock() }

// pass gives the token back to Run, after the step if one is due.
func (t *token) pass() {
	due := t.awaited() && !t.advance()
	t.mu.Unlock()
	if due {
		select {
		case t.wake <- struct{}{}:
		default: // Run has been woken, and has not looked yet
		}
	}
}

// advance makes the step, and reports whether it has.
func (t *token) advance() bool {
	return t.step != nil && t.exiting.Load() == 0 && t.life.Err() == nil && t.step()
}

// serveNow serves m on the goroutine of its sender, if Run does nothing but wait. If it
// returns false nothing has happened, and m is for the inbox.
func (s *Sandbox) serveNow(m message) bool {
	if !s.token.tryTake() {
		return false
	}
	s.serve(m)
	s.token.pass()
	return true
}

// setLimit sets when the limit passes of a wait in which steps are made.
func (s *Sandbox) setLimit(at time.Time) {
	s.token.until = at
	s.timer.Reset(time.Until(at))
}

// A wakening says why wait has returned.
type wakening int

const (
	reached     wakening = iota // what was waited for holds
	limitPassed                 // the timer of the state has fired
	failed                      // s.fault or s.exit says what ended
	cancelled                   // the context of Run
)

// wait serves the calls of the parties until done holds or something ends the waiting. Only
// Run calls it. It is the one place where a life can be held up.
func (s *Sandbox) wait(ctx context.Context, done func() bool) wakening {
	return s.waitStepping(ctx, done, nil)
}

// waitStepping is wait while others may make steps. When it returns the sandbox may be in
// another state, and what it has waited for is what step has made token.awaited.
func (s *Sandbox) waitStepping(ctx context.Context, done, step func() bool) wakening {
	if s.lost {
		return failed
	}
	t := s.token
	t.awaited, t.step = done, step
	defer func() { t.step = nil }()
	for !t.awaited() {
		t.release()
		var m message
		var e exited
		w := reached // not yet
		select {
		case <-t.wake:
		case m = <-s.inbox:
		case e = <-s.exits:
		case <-s.timer.C:
			w = limitPassed
		case <-s.sup.Lost():
			w = failed
		case <-ctx.Done():
			w = cancelled
		}
		t.take()
		switch {
		case m != nil:
			s.serve(m)
		case e.p != nil:
			if s.exited(e) {
				return failed
			}
		case w == failed:
			s.lostDomains()
			return failed
		case w == limitPassed && t.step != nil && time.Now().Before(t.until): // a step has set another meanwhile
		case w == limitPassed && t.awaited(): // it came to hold before we had the token
		case w != reached:
			return w
		}
	}
	return reached
}
