package rapid

import (
	"context"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// invocation is one invocation from its acceptance to Done.
type invocation struct {
	msg      *invokeMsg
	inv      *Invocation
	over     *over     // its Result.Done
	result   *Result   // set once the caller was answered
	started  time.Time // dispatch, or begin of the inline initialization (LC-23)
	deadline time.Time // zero until begin
	reported bool      // REPORT is written
	stream   *Stream   // of an answer that streams (RT-69); the caller has it already
	cut      *Result   // the answer to a body that was cut short, until given

	event    *Event     // what the runtime was given; of managed mode
	patience time.Time  // until when it waits for a worker; of managed mode
	body     answerBody // of managed mode

	released, firstByte, lastByte, ready time.Time // of TL-45; zero if not reached
	produced                             int64
}

func newInvocation(m *invokeMsg, arn string) *invocation {
	inv := *m.inv
	if inv.FunctionARN == "" {
		inv.FunctionARN = arn
	}
	return &invocation{msg: m, inv: &inv, over: &over{done: make(chan struct{})}}
}

// begin starts the function's time (LC-23).
func (c *invocation) begin(now time.Time, timeout time.Duration) {
	c.started, c.deadline = now, now.Add(timeout)
}

func (s *Sandbox) hasInvocation() bool { return s.current != nil }

// inline tells whether the present initialization is part of an invocation.
func (s *Sandbox) inline() bool { return s.current != nil && !s.current.deadline.IsZero() }

// answer gives the caller of the current invocation its result, once.
func (s *Sandbox) answer(r *Result) {
	if s.current != nil {
		s.current.answer(r)
	}
}

// answer gives the caller its result, once.
func (c *invocation) answer(r *Result) {
	if c.result != nil {
		return
	}
	r.Done, r.over = c.over.done, c.over
	c.result = r
	if c.stream != nil {
		c.stream.end(r)
		return
	}
	c.msg.answer(r)
}

// openStream gives the caller an answer that has only begun.
func (c *invocation) openStream(contentType string, limits StreamLimits) {
	c.stream = newStream(c.msg.left, limits)
	c.msg.answer(&Result{Stream: c.stream, ContentType: contentType, Done: c.over.done, over: c.over})
}

// answerCut answers an invocation whose body was cut short (RT-35), after a grace: a
// body most often ends early because the runtime does, and then its exit says more.
func (s *Sandbox) answerCut(ctx context.Context) wakening {
	c := s.current
	s.timer.Reset(min(s.cfg.Settings.ExitGrace, time.Until(c.deadline)))
	w := s.wait(ctx, func() bool { return s.runtime.state == rtReady })
	if w == limitPassed || w == reached {
		s.answer(c.cut)
		s.timer.Reset(time.Until(c.deadline))
		w = s.wait(ctx, s.runtimeDone)
	}
	return w
}

// came notes size and times of an answer (TL-45).
func (c *invocation) came(a *Answer) {
	c.produced, c.lastByte = a.Seen, a.Last
	if !a.First.IsZero() {
		c.firstByte = a.First
	}
	if c.lastByte.IsZero() {
		c.lastByte = time.Now()
	}
}

// abandon ends what runs with an error that is not the function's.
func (s *Sandbox) abandon(err error) {
	s.abandonAll(err)
	c := s.current
	if c == nil {
		return
	}
	switch {
	case c.result != nil:
	case c.stream != nil: // RT-73
		s.answer(failure(errSandboxFailure, "RequestId: "+c.inv.ID+" Error: the sandbox ended before the response was complete"))
	default:
		c.result = &Result{Done: c.over.done} // nobody sees it
		c.msg.refuse(err)
	}
	if !c.started.IsZero() && !c.reported && !c.released.IsZero() {
		s.reportEnd(errSandboxFailure, telemetry.Failure)
	}
}

// release closes Done of an invocation that is over: the sandbox is free.
func (s *Sandbox) release() {
	if c := s.current; c != nil && c.result != nil {
		s.current = nil
		c.over.end()
	}
}

// dispatch writes START and releases agents and runtime, external agents first
// (LC-21). Nobody can hold it up: every answer goes into a buffered channel.
func (s *Sandbox) dispatch() {
	c := s.current
	s.throttle()
	s.reportStart()
	e := c.newEvent()
	c.released = time.Now()
	for _, external := range []bool{true, false} {
		for _, a := range s.agents {
			if a.external == external && a.state == agReady && a.wants(EventInvoke) {
				a.give(e)
			}
		}
	}
	s.runtime.dispatch(e)
}

func (c *invocation) newEvent() *Event {
	return &Event{Type: EventInvoke, Invocation: c.inv, Deadline: c.deadline, Nonce: uuid.NewString()}
}

// beginLog begins the log of the current invocation.
func (s *Sandbox) beginLog() {
	if inv := s.current.inv; inv.NoTail {
		s.log.BeginUnread(inv.ID)
	} else {
		s.log.Begin(inv.ID)
	}
}

// reportStart ends what came before, and begins the log of the invocation (LOG-34).
func (s *Sandbox) reportStart() {
	c, f := s.current, &s.cfg.Function
	s.drain()
	if !s.inlineLog {
		s.beginLog()
	}
	s.log.Platform(&telemetry.Start{RequestID: c.inv.ID, Version: f.Version, Tracing: telemetry.NewTracing(c.inv.TraceID), TenantID: c.inv.TenantID})
}

// runtimeDone tells whether the runtime has answered and asks for the next event.
func (s *Sandbox) runtimeDone() bool {
	return s.current.result != nil && s.runtime.state == rtReady
}

// agentsDone tells whether every agent that got the event asks for the next.
func (s *Sandbox) agentsDone() bool {
	for _, a := range s.agents {
		if a.wants(EventInvoke) && (a.busy() || a.external && a.state == agExitError) {
			return false
		}
	}
	return true
}

// reportRuntimeDone writes the record of TL-36.
func (s *Sandbox) reportRuntimeDone(errorType string, status telemetry.Status) {
	c := s.current
	if !c.ready.IsZero() || c.released.IsZero() {
		return
	}
	c.ready = time.Now()
	s.drain() // what the runtime has said is before it
	if errorType == "" && status == telemetry.Success && c.result.FunctionError {
		errorType, status = c.result.ErrorType, telemetry.StatusOf(c.result.ErrorType)
	}
	r := &telemetry.RuntimeDone{RequestID: c.inv.ID, Status: status, ErrorType: errorType,
		Metrics: &telemetry.RuntimeMetrics{Duration: telemetry.Millis(c.ready.Sub(c.released))},
		Spans:   c.spans(), Tracing: telemetry.NewTracing(c.inv.TraceID), TenantID: c.inv.TenantID}
	if !c.lastByte.IsZero() {
		r.Metrics.ProducedBytes = &c.produced
	}
	s.log.Platform(r)
}

func (c *invocation) spans() []telemetry.Span {
	if c.firstByte.IsZero() || c.lastByte.IsZero() {
		return nil
	}
	span := func(name string, from, to time.Time) telemetry.Span {
		return telemetry.Span{Name: name, Start: telemetry.Timestamp(from), Duration: telemetry.Millis(to.Sub(from))}
	}
	return []telemetry.Span{
		span("responseLatency", c.released, c.firstByte),
		span("responseDuration", c.firstByte, c.lastByte),
		span("runtimeOverhead", c.lastByte, c.ready),
	}
}

// timedOut answers and reports an invocation that passed its deadline (LC-48, LC-43).
func (s *Sandbox) timedOut(limit time.Duration) {
	c := s.current
	t := &telemetry.TimedOut{RequestID: c.inv.ID, Timeout: limit}
	errorType := errSandboxTimedout
	if c.stream != nil {
		errorType = errSandboxTimeout // FE-14
	}
	s.answer(failure(errorType, "RequestId: "+c.inv.ID+" Error: "+t.Message()))
	s.flush()
	s.log.Platform(t)
	s.reportRuntimeDone("", telemetry.Timeout)
	s.reportEnd("", telemetry.Timeout)
}

// invokeFailed answers and reports an invocation in which a process has ended.
func (s *Sandbox) invokeFailed() {
	if s.runtime.state == rtResponse || s.runtime.state == rtErrorResp {
		s.awaitLastPost(func() bool { return s.runtime.state == rtSent }) // the rest of a body may be on its way
	}
	s.noteExit()
	f := s.fatal()
	s.answer(faultResult(s.current.inv.ID, f))
	s.flush()
	s.reportFault()
	s.reportRuntimeDone(f.Type, telemetry.StatusOf(f.Type))
	s.reportEnd(f.Type, telemetry.StatusOf(f.Type))
}

// reportFault writes the line of LOG-29.
func (s *Sandbox) reportFault() {
	s.noteExit()
	f := s.fatal()
	r := &telemetry.Fault{Message: f.Message, ErrorType: f.Type}
	if s.current != nil {
		r.RequestID = s.current.inv.ID
	}
	s.log.Platform(r)
}

// reportEnd writes END and REPORT at Done, after all that was written until then.
func (s *Sandbox) reportEnd(errorType string, status telemetry.Status) {
	c, f := s.current, &s.cfg.Function
	s.flush()
	if status == telemetry.Success && c.result.FunctionError {
		errorType, status = c.result.ErrorType, telemetry.StatusOf(c.result.ErrorType)
	}
	d := time.Since(c.started)
	if status == telemetry.Timeout {
		d = min(d, f.Timeout)
	}
	billed := d
	r := &telemetry.Report{RequestID: c.inv.ID, Status: status, ErrorType: errorType, Tracing: telemetry.NewTracing(c.inv.TraceID)}
	if s.initTime != nil { // LOG-24: only in the first report after an own phase
		m := telemetry.Millis(*s.initTime)
		r.Metrics.InitDuration = &m
		if s.cfg.Settings.BillInit {
			billed += *s.initTime
		}
		s.initTime = nil
	}
	if s.restoreTime != nil {
		m, billed := telemetry.Millis(*s.restoreTime), telemetry.Billed(*s.restoreTime)
		r.Metrics.RestoreDuration, r.Metrics.BilledRestoreMillis = &m, &billed
		s.restoreTime = nil
	}
	if len(s.agents) > 0 && !c.ready.IsZero() { // TL-46
		r.Spans = []telemetry.Span{{Name: "extensionOverhead", Start: telemetry.Timestamp(c.ready), Duration: telemetry.Millis(time.Since(c.ready))}}
	}
	r.Metrics.Duration, r.Metrics.BilledMillis = telemetry.Millis(d), telemetry.Billed(billed)
	r.Metrics.MemorySizeMB, r.Metrics.MaxMemoryUsedMB = f.MemoryMB, s.maxMemoryMB()
	s.log.Platform(&telemetry.End{RequestID: c.inv.ID})
	s.log.Platform(r)
	s.hub.Flush() // TL-17
	c.result.tail = s.log.End()
	c.reported, s.inlineLog = true, false
}

// maxMemoryMB is the peak of the sandbox, never above its size (LOG-26).
func (s *Sandbox) maxMemoryMB() int {
	peak, err := s.sup.MemoryPeak()
	if err != nil { // the domains are gone, most likely for want of memory
		return s.cfg.Function.MemoryMB
	}
	const mb = 1 << 20
	return min(int((peak+mb-1)/mb), s.cfg.Function.MemoryMB)
}
