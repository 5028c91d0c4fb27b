package rapid

import (
	"context"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// classicMode is the mode of one invocation at a time (sections 1.8 and 4): of sandboxes
// that are initialized on demand, provisioned or restored. Its states are Idle, Invoking,
// Restoring and Cold; the diagram is that of [State].
//
// This file has the states but for Restoring, which is in restore.go. classic_calls.go has
// the calls of the runtime, classic_records.go the records.
type classicMode struct {
	s *Sandbox

	current   *classicInvocation // from its admission to Done; nil while the sandbox is free
	inlineLog bool               // the log of the current invocation began with its initialization

	initTime    *time.Duration // of an initialization that the next report names (LOG-24); nil for none
	restoreTime *time.Duration // of a restore that the next report names; nil for none
	snapshot    bool           // of SnapStart: initialized, and not restored yet
	renewed     *renewedMsg    // what Config.Restore has returned; nil until it has

	// The method values isTaken, isAnswered and makeStep, made once: making them where they
	// are used would be an allocation for each invocation.
	hasInvocation, answered, step func() bool
}

// classicInvocation is an invocation of classic mode.
type classicInvocation struct {
	invocation
	ready    time.Time // when the runtime was done with it (TL-45); zero until then
	reported bool      // REPORT is written
}

func newClassic(s *Sandbox) mode {
	m := &classicMode{s: s}
	m.hasInvocation, m.answered, m.step = m.isTaken, m.isAnswered, m.makeStep
	return m
}

func (m *classicMode) run(ctx context.Context, st State) State {
	switch st {
	case Restoring:
		return m.restore(ctx)
	case Invoking:
		return m.invoke(ctx)
	case Cold:
		return m.cold(ctx)
	}
	return m.idle(ctx)
}

// idle waits for an invocation, and freezes the sandbox when none comes for a while.
// One that comes before that finds everything running.
func (m *classicMode) idle(ctx context.Context) State {
	m.beginIdle()
	return m.idling(ctx, m.s.waitStepping(ctx, m.hasInvocation, m.step))
}

func (m *classicMode) beginIdle() {
	m.release()
	failpoint.Pass(failpoint.Idle)
	m.s.setLimit(time.Now().Add(m.s.cfg.Settings.Linger))
}

// idling goes on in Idle when the first wait has ended with w.
func (m *classicMode) idling(ctx context.Context, w wakening) State {
	s := m.s
	for ; ; w = s.waitStepping(ctx, m.hasInvocation, m.step) {
		if s.State() == Invoking { // a step has led there
			return m.invoking(ctx, w)
		}
		switch w {
		case limitPassed:
			if err := s.freeze(); err != nil {
				return s.fail(&Fault{Type: errSandboxFailure, Message: err.Error()}, reasonFailure)
			}
		case failed:
			m.reportFault() // EX-29: reset before the next dispatch
			return Resetting
		case cancelled:
			return ShuttingDown
		}
		if m.current != nil {
			break
		}
	}
	select {
	case e := <-s.exits: // EX-29, though the invocation was seen first
		if s.exited(e) {
			m.reportFault()
			return Resetting
		}
	default:
	}
	if err := s.thaw(); err != nil {
		return s.giveUp(ctx, err)
	}
	if m.snapshot {
		return Restoring
	}
	m.current.begin(time.Now(), s.cfg.Function.Timeout)
	return Invoking
}

// invoke hands out the current invocation and waits until it is Done (LC-40): the
// runtime has answered, and it and every agent that got the event ask for the next.
func (m *classicMode) invoke(ctx context.Context) State {
	if err := m.s.throttle(ctx); err != nil {
		return m.s.giveUp(ctx, err)
	}
	m.beginInvoking()
	w := m.s.waitStepping(ctx, m.answered, m.step)
	if m.s.State() == Idle { // a step has led there
		return m.idling(ctx, w)
	}
	return m.invoking(ctx, w)
}

func (m *classicMode) beginInvoking() {
	m.dispatch()
	failpoint.Pass(failpoint.Invoking)
	m.s.setLimit(m.current.deadline)
}

// invoking goes on in Invoking when the first wait has ended with w.
func (m *classicMode) invoking(ctx context.Context, w wakening) State {
	s := m.s
	if w == reached && m.current.cut != nil {
		w = m.answerCut(ctx)
	}
	if w == reached {
		m.reportRuntimeDone("", telemetry.Success)
		w = s.wait(ctx, m.agentsDone)
	}
	switch w {
	case reached:
		m.finishInvoking()
		return Idle
	case limitPassed:
		m.timedOut(s.cfg.Function.Timeout)
		return s.fail(nil, reasonTimeout)
	case cancelled:
		m.abandon(ErrDead)
		return ShuttingDown
	}
	m.invokeFailed()
	return Resetting
}

// finishInvoking writes the records of an invocation that has ended well.
func (m *classicMode) finishInvoking() {
	m.reportRuntimeDone("", telemetry.Success)
	m.reportEnd("", telemetry.Success)
}

// makeStep makes the transition from Idle to Invoking or back that Run would make next. The
// goroutine that has delivered what Run waits for calls it: see token. In a warm sandbox
// nothing in these transitions can wait or fail. If something could, makeStep changes
// nothing and returns false, and Run makes the transition.
func (m *classicMode) makeStep() bool {
	s := m.s
	switch s.State() {
	case Idle:
		if s.frozen || m.snapshot || !s.throttled {
			return false
		}
		m.current.begin(time.Now(), s.cfg.Function.Timeout)
		s.enter(Invoking)
		m.beginInvoking()
		s.token.awaited = m.answered
	case Invoking:
		if m.current.cut != nil || !m.agentsDone() {
			return false
		}
		m.finishInvoking()
		s.enter(Idle)
		m.beginIdle()
		s.token.awaited = m.hasInvocation
	}
	return true
}

// cold waits for the invocation that pays for the next initialization.
func (m *classicMode) cold(ctx context.Context) State {
	m.release()
	m.s.timer.Stop()
	if m.s.wait(ctx, m.hasInvocation) != reached {
		return ShuttingDown
	}
	m.current.begin(time.Now(), m.s.cfg.Function.Timeout)
	return Initializing
}

// isTaken reports whether there is an invocation.
func (m *classicMode) isTaken() bool { return m.current != nil }

// isAnswered reports whether the runtime is done with the invocation, or its answer was cut.
func (m *classicMode) isAnswered() bool { return m.runtimeDone() || m.current.cut != nil }

// runtimeDone reports whether the runtime has answered and asks for the next event.
func (m *classicMode) runtimeDone() bool {
	return m.current.result != nil && m.s.runtime.State == rtReady
}

// agentsDone reports whether every agent that got the event asks for the next.
func (m *classicMode) agentsDone() bool {
	for _, a := range m.s.agents {
		if a.wants(EventInvoke) && (a.busy() || a.External && a.State == agExitError) {
			return false
		}
	}
	return true
}

// inline reports whether the present initialization is part of an invocation.
func (m *classicMode) inline() bool { return m.current != nil && !m.current.deadline.IsZero() }

func (m *classicMode) beginInit() (telemetry.Phase, time.Duration) {
	if !m.inline() {
		return telemetry.InitPhase, m.s.cfg.Settings.InitTimeout
	}
	m.inlineLog, m.initTime = true, nil
	m.s.runtime.RequestID = m.current.inv.ID // an id is current already: 403, not 400
	m.beginLog()
	return telemetry.InvokePhase, time.Until(m.current.deadline)
}

func (m *classicMode) initialized(took time.Duration) State {
	switch {
	case m.s.cfg.Initialization == SnapStart:
		m.snapshot = true // the initialization is not the invocation's
	case !m.inline():
		m.initTime = &took
	}
	switch {
	case m.current == nil || m.snapshot:
		return Idle
	case !m.inline():
		m.current.begin(time.Now(), m.s.cfg.Function.Timeout)
	}
	return Invoking
}

func (m *classicMode) initTimedOut() {
	limit := m.s.cfg.Function.Timeout
	if !m.inline() && m.current != nil && !m.s.renewable() { // LC-09: it has no second try to wait for
		limit = m.s.cfg.Settings.InitTimeout
		m.current.begin(time.Now(), limit)
	}
	if m.inline() {
		m.reportStart()
		m.timedOut(limit)
	}
}

// initFailed ends the invocation if the initialization is part of it (LC-26). One that only
// waits for the sandbox gets a try of its own, if the sandbox may try again (LC-09).
func (m *classicMode) initFailed(f *Fault) {
	if m.current != nil && (m.s.lost || !m.s.renewable()) && !m.inline() {
		m.current.begin(time.Now(), m.s.cfg.Function.Timeout)
	}
	if m.inline() {
		m.failUnstarted(f)
	}
}

// failUnstarted answers and reports an invocation that never got to the runtime.
func (m *classicMode) failUnstarted(f *Fault) {
	m.reportStart()
	m.reportFault()
	if p := m.s.posted; p != nil { // LC-27
		m.current.answer(p.result(p.errorType))
		m.s.posted = nil
	} else {
		m.current.answer(faultResult(m.current.inv.ID, f))
	}
	m.reportEnd(f.Type, telemetry.StatusOf(f.Type))
}

// answerCut answers an invocation whose body was cut short (RT-35), after a grace: a
// body most often ends early because the runtime does, and then its exit says more.
func (m *classicMode) answerCut(ctx context.Context) wakening {
	s, c := m.s, m.current
	s.timer.Reset(min(s.cfg.Settings.ExitGrace, time.Until(c.deadline)))
	w := s.wait(ctx, func() bool { return s.runtime.State == rtReady })
	if w == limitPassed || w == reached {
		c.answer(c.cut)
		s.timer.Reset(time.Until(c.deadline))
		w = s.wait(ctx, m.runtimeDone)
	}
	return w
}

// timedOut answers and reports an invocation that passed its deadline (LC-48, LC-43).
func (m *classicMode) timedOut(limit time.Duration) {
	t := m.current.timeOut(limit)
	m.s.flush()
	m.s.log.Platform(t)
	m.reportRuntimeDone("", telemetry.Timeout)
	m.reportEnd("", telemetry.Timeout)
}

// invokeFailed answers and reports an invocation in which a process has ended.
func (m *classicMode) invokeFailed() {
	s := m.s
	if s.runtime.State == rtResponse || s.runtime.State == rtErrorResp {
		s.awaitLastPost(func() bool { return s.runtime.State == rtSent }) // the rest of a body may be on its way
	}
	s.noteExit()
	f := s.fatal()
	m.current.answer(faultResult(m.current.inv.ID, f))
	s.flush()
	m.reportFault()
	m.reportRuntimeDone(f.Type, telemetry.StatusOf(f.Type))
	m.reportEnd(f.Type, telemetry.StatusOf(f.Type))
}

func (m *classicMode) abandon(err error) {
	c := m.current
	if c == nil {
		return
	}
	if c.result == nil {
		c.refuse(err)
	}
	if !c.started.IsZero() && !c.reported && !c.released.IsZero() {
		m.reportEnd(errSandboxFailure, telemetry.Failure)
	}
}

func (m *classicMode) end() { m.release() }

// release closes Done of an invocation that is over: the sandbox is free.
func (m *classicMode) release() {
	if c := m.current; c != nil && c.result != nil {
		m.current = nil
		c.over.end()
	}
}
