package rapid

import (
	"context"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// classicMode is the mode of sandboxes that run one invocation at a time (sections 1.8 and
// 4): those that are initialized on demand, provisioned or restored. Its states are Idle,
// Invoking, Restoring and Cold; [State] has the diagram.
//
// This file contains the states, except for Restoring, which is in restore.go.
// classic_calls.go handles the calls of the runtime, and classic_records.go writes records.
type classicMode struct {
	s *Sandbox

	current   *classicInvocation // from its admission to Done; nil while the sandbox is free
	inlineLog bool               // the log of the current invocation began with its initialization

	initTime    *time.Duration // duration of an initialization that the next report must name (LOG-24), or nil
	restoreTime *time.Duration // duration of a restore that the next report must name, or nil
	snapshot    bool           // SnapStart: initialized, but not restored yet
	renewed     *renewedMsg    // result of Config.Restore; nil until it has returned

	// The method values isTaken, isAnswered and makeStep. They are created once, because
	// creating one at each use would allocate for each invocation.
	hasInvocation, answered, step func() bool
}

// classicInvocation is an invocation of classic mode.
type classicInvocation struct {
	invocation
	ready    time.Time // when the runtime finished it (TL-45); zero before
	reported bool      // REPORT has been written
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

// idle waits for an invocation. It freezes the sandbox if none arrives within
// Settings.Linger.
func (m *classicMode) idle(ctx context.Context) State {
	m.beginIdle()
	return m.idling(ctx, m.s.waitStepping(ctx, m.hasInvocation, m.step))
}

func (m *classicMode) beginIdle() {
	m.release()
	failpoint.Pass(failpoint.Idle)
	m.s.setLimit(time.Now().Add(m.s.cfg.Settings.Linger))
}

// idling continues Idle after its first wait has ended with w.
func (m *classicMode) idling(ctx context.Context, w wakening) State {
	s := m.s
	for ; ; w = s.waitStepping(ctx, m.hasInvocation, m.step) {
		if s.State() == Invoking { // a step has made the transition
			return m.invoking(ctx, w)
		}
		switch w {
		case limitPassed:
			if err := s.freeze(); err != nil {
				return s.fail(&Fault{Type: errSandboxFailure, Message: err.Error()}, reasonFailure)
			}
		case failed:
			m.reportFault(s.latestFault()) // EX-29: reset before the next dispatch
			return Resetting
		case cancelled:
			return ShuttingDown
		}
		if m.current != nil {
			break
		}
	}
	select {
	case e := <-s.exits: // EX-29: an exit comes first even if the invocation was seen before it
		if s.exited(e) {
			m.reportFault(s.latestFault())
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

// invoke delivers the current invocation and waits until it is Done (LC-40): the runtime has
// answered, and the runtime and every agent that got the event have asked for the next.
func (m *classicMode) invoke(ctx context.Context) State {
	if err := m.s.throttle(ctx); err != nil {
		return m.s.giveUp(ctx, err)
	}
	m.beginInvoking()
	w := m.s.waitStepping(ctx, m.answered, m.step)
	if m.s.State() == Idle { // a step has made the transition
		return m.idling(ctx, w)
	}
	return m.invoking(ctx, w)
}

func (m *classicMode) beginInvoking() {
	m.dispatch()
	failpoint.Pass(failpoint.Invoking)
	m.s.setLimit(m.current.deadline)
}

// invoking continues Invoking after its first wait has ended with w.
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

// finishInvoking writes the records of an invocation that was answered in time.
func (m *classicMode) finishInvoking() {
	m.reportRuntimeDone("", telemetry.Success)
	m.reportEnd("", telemetry.Success)
}

// makeStep makes the next transition, from Idle to Invoking or back, in place of Run. The
// goroutine that has delivered the awaited event calls it: see token. In a warm sandbox
// these transitions neither block nor fail. Where they could, makeStep changes nothing and
// returns false, and Run makes the transition.
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

// cold waits for an invocation, which the next initialization becomes part of.
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

// isAnswered reports whether the runtime has finished the invocation, or its answer was
// truncated.
func (m *classicMode) isAnswered() bool { return m.runtimeDone() || m.current.cut != nil }

// runtimeDone reports whether the runtime has answered and has asked for the next event.
func (m *classicMode) runtimeDone() bool {
	return m.current.result != nil && m.s.runtime.State == rtReady
}

// agentsDone reports whether every agent that got the event has asked for the next.
func (m *classicMode) agentsDone() bool {
	for _, a := range m.s.agents {
		if a.wants(EventInvoke) && (a.busy() || a.External && a.State == agExitError) {
			return false
		}
	}
	return true
}

// inline reports whether the current initialization is part of an invocation.
func (m *classicMode) inline() bool { return m.current != nil && !m.current.deadline.IsZero() }

func (m *classicMode) beginInit() (telemetry.Phase, time.Duration) {
	if !m.inline() {
		return telemetry.InitPhase, m.s.cfg.Settings.InitTimeout
	}
	m.inlineLog, m.initTime = true, nil
	m.s.runtime.RequestID = m.current.inv.ID // so that an early answer is refused with 403, not 400
	m.beginLog()
	return telemetry.InvokePhase, time.Until(m.current.deadline)
}

func (m *classicMode) initialized(took time.Duration) State {
	switch {
	case m.s.cfg.Initialization == SnapStart:
		m.snapshot = true // the invocation's report does not name the initialization
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
	if !m.inline() && m.current != nil && !m.s.renewable() { // LC-09: there is no second initialization to wait for
		limit = m.s.cfg.Settings.InitTimeout
		m.current.begin(time.Now(), limit)
	}
	if m.inline() {
		m.reportStart()
		m.timedOut(limit)
	}
}

// initFailed ends the invocation if the initialization is part of it (LC-26). An invocation
// that only waits for the sandbox gets another initialization, if the sandbox may have one
// (LC-09).
func (m *classicMode) initFailed(f *Fault) {
	if m.current != nil && (m.s.lost || !m.s.renewable()) && !m.inline() {
		m.current.begin(time.Now(), m.s.cfg.Function.Timeout)
	}
	if m.inline() {
		m.failUnstarted(f)
	}
}

// failUnstarted answers and reports an invocation that never reached the runtime.
func (m *classicMode) failUnstarted(f *Fault) {
	m.reportStart()
	errorType := f.Type
	if p := m.s.posted; p != nil { // LC-27; the runtime has said in the log what failed (LOG-29)
		m.current.answer(p.result(p.errorType))
		m.s.posted, errorType = nil, p.errorType
	} else {
		m.reportFault(f)
		m.current.answer(faultResult(m.current.inv.ID, f))
	}
	m.reportEnd(errorType, telemetry.StatusOf(errorType))
}

// answerCut answers an invocation whose response body was truncated (RT-35). It waits for a
// grace period first: most truncated bodies come from a runtime that exits, and then the
// exit is the better error.
func (m *classicMode) answerCut(ctx context.Context) wakening {
	s, c := m.s, m.current
	s.timer.Reset(min(s.cfg.Settings.ExitGrace, time.Until(c.deadline)))
	next := func() bool { return s.runtime.State == rtReady }
	w := s.wait(ctx, next)
	if w == limitPassed && s.memoryRanOut() { // its processes are being killed, which takes time on a busy host
		s.timer.Reset(time.Until(c.deadline))
		w = s.wait(ctx, next)
	}
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

// invokeFailed answers and reports an invocation during which a process has exited.
func (m *classicMode) invokeFailed() {
	s := m.s
	if s.runtime.State == rtResponse || s.runtime.State == rtErrorResp {
		s.awaitLastPost(func() bool { return s.runtime.State == rtSent }) // the rest of the body may be in transit
	}
	f := s.latestFault()
	if r := m.current.result; r != nil && r.fault != nil {
		f = r.fault // the caller has this one: a client may exit because its answer was refused
	}
	m.current.answer(faultResult(m.current.inv.ID, f))
	s.flush()
	m.reportFault(f)
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

// release makes the sandbox free: it closes Done of the invocation, if it was answered.
func (m *classicMode) release() {
	if c := m.current; c != nil && c.result != nil {
		m.current = nil
		c.over.end()
	}
}
