package rapid

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// token guards the state of a sandbox: the fields of Sandbox below its token, its mode and
// its parties. One goroutine holds it at a time.
//
// Holders: the goroutine of Run holds the token from New on. It releases the token only in
// [Sandbox.waitStepping], while it waits. During that time a goroutine that delivers a
// message may take it ([Sandbox.serveNow]). Only Run waits for the token: if it is taken, a
// message goes to the inbox, and Run serves it.
//
// Rights: a holder other than Run may serve one message. Then, if the awaited condition
// holds, it may perform the next step of Run in its place: the transition from Idle to
// Invoking or back, or in managed mode the delivery of events. Nothing in this may block: no
// request to another process, no lock that is held during one, no send to a channel that may
// be full. What could block or fail is left to Run.
//
// Duties: before the holder releases the token, one of three must be true. The awaited
// condition does not hold; or the step was made, and awaited, until and the timer are set for
// what follows; or Run is woken. pass ensures that.
//
// End: when Run returns it keeps the token. No other goroutine gets it from then on, and
// callers with a message see that Sandbox.dead is closed.
//
// Purpose: passing a message to Run and back costs two context switches, which is more than
// serving it. The goroutine that delivers the awaited event performs the transition itself,
// so Run is not woken by the invocations of a warm sandbox, and no function waits for its
// event while Run is being woken.
type token struct {
	mu      sync.Mutex
	wake    chan struct{} // capacity 1; makes Run check awaited
	exiting atomic.Int32  // number of exits that Run has not handled; while it is not 0, there are no steps

	// Only the holder uses the fields below.
	awaited func() bool     // reports whether the condition that Run waits for holds
	step    func() bool     // performs the next step, or changes nothing and returns false; nil leaves it to Run
	until   time.Time       // limit of the wait, as last set by setLimit
	life    context.Context // context of Run
}

// newToken returns a token that Run holds.
func newToken() *token {
	t := &token{wake: make(chan struct{}, 1)}
	t.take()
	return t
}

// take waits for the token. Only Run calls it.
func (t *token) take() { t.mu.Lock() }

func (t *token) release() { t.mu.Unlock() }

// tryTake takes the token if it is free, and reports whether it did. The caller then must
// call pass.
func (t *token) tryTake() bool { return t.mu.TryLock() }

// pass performs the step if it is due, releases the token, and wakes Run if it has something
// to do.
func (t *token) pass() {
	due := t.awaited() && !t.advance()
	t.mu.Unlock()
	if due {
		select {
		case t.wake <- struct{}{}:
		default: // Run has been woken, and has not checked yet
		}
	}
}

// advance performs the step if that is allowed, and reports whether it did.
func (t *token) advance() bool {
	return t.step != nil && t.exiting.Load() == 0 && t.life.Err() == nil && t.step()
}

// serveNow serves m on the goroutine of its sender, if the token is free, and reports whether
// it did. Otherwise the caller sends m to the inbox.
func (s *Sandbox) serveNow(m message) bool {
	if !s.token.tryTake() {
		return false
	}
	s.serve(m)
	s.token.pass()
	return true
}

// setLimit sets the limit of a wait during which steps may be made.
func (s *Sandbox) setLimit(at time.Time) {
	s.token.until = at
	s.timer.Reset(time.Until(at))
}

// A wakening is the reason for which wait has returned.
type wakening int

const (
	reached     wakening = iota // the awaited condition holds
	limitPassed                 // the timer of the state has fired
	failed                      // a process has exited, or the domains are lost; see s.fault and s.exit
	cancelled                   // the context of Run has ended
)

// wait serves messages until done reports true or something else ends the wait. Only Run
// calls it.
func (s *Sandbox) wait(ctx context.Context, done func() bool) wakening {
	return s.waitStepping(ctx, done, nil)
}

// waitStepping is like wait, but other goroutines may make steps meanwhile. So the sandbox may
// be in another state when it returns, and the awaited condition is then the one that the
// last step has set in token.awaited.
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
		w := reached // no reason to return yet
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
		case w == limitPassed && t.awaited(): // the condition was met before Run took the token
		case w != reached:
			return w
		}
	}
	return reached
}
