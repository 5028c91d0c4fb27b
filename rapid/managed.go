package rapid

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// Managed tells whether the sandbox runs many invocations at once (section 1.9). The
// runtime then has no state of its own: each of its workers asks for an event and
// answers it by its id.
func (s *Sandbox) Managed() bool { return s.cfg.Initialization == Managed }

const (
	maxIdleWorkers = 10000        // RT-60
	maxLate        = 1000         // RT-63
	managedSchema  = "2025-01-29" // RT-66

	// workerPatience is how long an invocation waits for a worker. One that has
	// answered asks for its next event in far less.
	workerPatience = 100 * time.Millisecond
)

// managedAgentType is what an agent's error type must match (EX-24).
var managedAgentType = regexp.MustCompile(`Extension\.[A-Z][a-zA-Z]+`)

// ErrTooManyWorkers says that no more calls of next can wait (RT-60).
var ErrTooManyWorkers = errors.New("Runtime.TooManyIdleRuntimes: too many calls of next wait")

// answerBody says which answer of an invocation has begun.
type answerBody int

const (
	noBody answerBody = iota
	responseBody
	errorBody
)

// serveMany hands invocations to the workers of the runtime until the sandbox ends
// (RT-60 to RT-68). It is never frozen (LC-84), and ends with any of its processes.
func (s *Sandbox) serveMany(ctx context.Context) State {
	s.throttle()
	for _, c := range s.queue { // they have waited for the initialization
		c.patience = time.Now().Add(workerPatience)
	}
	for {
		s.changed = false
		s.handOut()
		s.timer.Reset(s.nextLimit())
		switch s.wait(ctx, func() bool { return s.changed }) {
		case limitPassed:
			s.expire(time.Now())
		case failed:
			s.noteExit()
			s.reportFault()
			s.failAll(s.fatal())
			return Resetting
		case cancelled:
			s.abandon(ErrDead)
			return ShuttingDown
		}
	}
}

// admit takes an invocation up, for now or for after the initialization.
func (s *Sandbox) admit(m *invokeMsg) {
	s.changed = true
	switch {
	case s.serving[m.inv.ID] != nil:
		m.refuse(ErrDuplicate)
	case len(s.serving) >= s.cfg.MaxConcurrency:
		m.refuse(ErrBusy)
	default:
		c := newInvocation(m, s.cfg.Function.ARN)
		c.patience = time.Now().Add(workerPatience)
		s.serving[c.inv.ID] = c
		s.queue = append(s.queue, c)
	}
}

// handOut gives what is in queue to workers that wait.
func (s *Sandbox) handOut() {
	r := &s.runtime
	for len(s.queue) > 0 && len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = slices.Delete(r.waiters, 0, 1)
		if !w.alive() {
			w.refuse(ErrClosed)
			continue
		}
		c := s.queue[0]
		s.queue = slices.Delete(s.queue, 0, 1)
		if c.event == nil {
			s.startManaged(c)
		}
		s.running = append(s.running, c)
		w.deliver(c.event)
	}
}

// startManaged begins an invocation's time and log.
func (s *Sandbox) startManaged(c *invocation) {
	f, now := &s.cfg.Function, time.Now()
	c.begin(now, f.Timeout)
	c.released, c.event = now, c.newEvent()
	s.log.Platform(&telemetry.Start{RequestID: c.inv.ID, Version: f.Version, Tracing: telemetry.NewTracing(c.inv.TraceID),
		TenantID: c.inv.TenantID, FunctionARN: s.managedARN()})
}

// managedARN is the ARN in records of managed mode (TL-32, TL-35), else "".
func (s *Sandbox) managedARN() string {
	if s.Managed() {
		return s.cfg.Function.ARN
	}
	return ""
}

// takeBack queues an event again that did not reach its worker (RT-25).
func (s *Sandbox) takeBack(w *nextMsg) {
	if w.event == nil {
		return
	}
	c := s.serving[w.event.Invocation.ID]
	i := slices.Index(s.running, c)
	if i < 0 || c.event != w.event || c.body != noBody {
		return
	}
	s.running = slices.Delete(s.running, i, i+1)
	s.queue = slices.Insert(s.queue, 0, c)
	s.changed = true
}

// limit is the end of an invocation's patience or time.
func (c *invocation) limit() time.Time {
	if c.event == nil {
		return c.patience
	}
	return c.deadline
}

// nextLimit is how long nothing can expire.
func (s *Sandbox) nextLimit() time.Duration {
	d := time.Hour
	for _, c := range s.serving {
		d = min(d, time.Until(c.limit()))
	}
	return d
}

// expire ends what has waited for a worker, or has run, for too long (RT-65, RT-68).
func (s *Sandbox) expire(now time.Time) {
	for _, c := range s.inFlight() {
		switch {
		case now.Before(c.limit()):
		case c.event == nil:
			s.turnAway(c, ErrUnavailable)
		default:
			s.timeOut(c)
		}
	}
}

// timeOut ends one invocation; its worker goes on, and may answer late (RT-63).
func (s *Sandbox) timeOut(c *invocation) {
	t := &telemetry.TimedOut{RequestID: c.inv.ID, Timeout: s.cfg.Function.Timeout}
	errorType := errSandboxTimedout
	if c.stream != nil {
		errorType = errSandboxTimeout
	}
	s.late = append(s.late, c.inv.ID)
	if len(s.late) > maxLate {
		s.late = slices.Delete(s.late, 0, 1)
	}
	c.answer(failure(errorType, "RequestId: "+c.inv.ID+" Error: "+t.Message()))
	s.endManaged(c, "", telemetry.Timeout)
}

// inFlight lists what is served, what a worker has first.
func (s *Sandbox) inFlight() []*invocation { return slices.Concat(s.running, s.queue) }

// drop forgets c.
func (s *Sandbox) drop(c *invocation) {
	is := func(o *invocation) bool { return o == c }
	s.running, s.queue = slices.DeleteFunc(s.running, is), slices.DeleteFunc(s.queue, is)
	delete(s.serving, c.inv.ID)
}

// turnAway refuses an invocation that no worker has seen.
func (s *Sandbox) turnAway(c *invocation, err error) {
	s.drop(c)
	c.result = &Result{Done: c.over.done} // nobody sees it
	c.msg.refuse(err)
	c.over.end()
}

// endManaged reports an invocation that is answered, and makes room for another.
func (s *Sandbox) endManaged(c *invocation, errorType string, status telemetry.Status) {
	s.drop(c)
	s.drain() // what the runtime has said is before it
	if status == telemetry.Success && c.result.FunctionError {
		errorType, status = c.result.ErrorType, telemetry.StatusOf(c.result.ErrorType)
	}
	d := time.Since(c.started)
	if status == telemetry.Timeout {
		d = min(d, s.cfg.Function.Timeout)
	}
	s.log.Platform(&telemetry.ManagedReport{RequestID: c.inv.ID, Status: status, ErrorType: errorType,
		Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(d)}, Spans: c.managedSpans(), Tracing: telemetry.NewTracing(c.inv.TraceID)})
	c.over.end()
}

// managedSpans are those of TL-45 but runtimeOverhead: which worker's next call ends
// it cannot be told.
func (c *invocation) managedSpans() []telemetry.Span {
	spans := c.spans()
	return spans[:min(len(spans), 2)]
}

// failAll answers everything with the fault that ends a managed sandbox. What no
// worker has seen may run in another sandbox, unless this one never came to serve.
func (s *Sandbox) failAll(f *Fault) {
	f = &Fault{f.Type, f.Message}
	if s.posted != nil { // FE-16
		f.Type = errManagedInit
	}
	if s.lost { // FE-16, INV-14
		f.Type = errOutOfMemory
	}
	for _, c := range s.inFlight() {
		if c.event == nil && s.State() == Serving {
			s.turnAway(c, ErrDead)
			continue
		}
		if c.event == nil {
			s.startManaged(c)
		}
		if p := s.posted; p != nil {
			c.answer(&Result{Payload: p.body, ContentType: p.contentType(), FunctionError: true, ErrorType: f.Type})
		} else {
			c.answer(faultResult(c.inv.ID, f))
		}
		s.endManaged(c, f.Type, telemetry.StatusOf(f.Type))
	}
}

// timeAllOut answers what has waited for an initialization that took too long.
func (s *Sandbox) timeAllOut() {
	for _, c := range s.inFlight() {
		if c.event == nil {
			s.startManaged(c)
		}
		s.timeOut(c)
	}
}

// abandonAll ends everything with an error that is not the function's.
func (s *Sandbox) abandonAll(err error) {
	for _, c := range s.inFlight() {
		switch {
		case c.event == nil:
			s.turnAway(c, err)
			continue
		case c.stream != nil: // RT-73
			c.answer(failure(errSandboxFailure, "RequestId: "+c.inv.ID+" Error: the sandbox ended before the response was complete"))
		default:
			c.result = &Result{Done: c.over.done} // nobody sees it
			c.msg.refuse(err)
		}
		s.endManaged(c, errSandboxFailure, telemetry.Failure)
	}
}

// beginManaged opens a worker's answer (RT-61 to RT-63).
func (s *Sandbox) beginManaged(m *beginAnswerMsg) {
	c := s.serving[m.id]
	switch {
	case c == nil && s.consumeLate(m.id):
		m.refuse(&Refusal{Type: InvokeTimeout, Message: "Invoke timeout"})
		return
	case c == nil || c.event == nil || !c.mayAnswer(m.head.Kind):
		m.refuse(&Refusal{Type: InvalidRequestID, Message: "Invalid request ID"})
		return
	case m.head.Nonce != "" && m.head.Nonce != c.event.Nonce: // RT-33
		m.refuse(&Refusal{Type: InvokeTimeout, Message: "Invoke timeout"})
		return
	}
	if c.firstByte.IsZero() {
		c.firstByte = time.Now()
	}
	if m.head.Kind == AnswerError {
		c.body = errorBody
		m.answer(nil)
		return
	}
	c.body = responseBody
	if m.head.Mode != "" && m.head.Mode != ModeStreaming { // RT-36
		c.answer(&Result{FunctionError: true, ErrorType: "Runtime.InvalidResponseModeHeader"})
		s.endManaged(c, "", telemetry.Success)
		m.refuse(&Refusal{Type: InvalidFunctionResponseMode, Message: "Invalid function response mode"})
		return
	}
	if m.head.Mode == ModeStreaming && c.inv.Stream { // else RT-74
		c.openStream(m.head.ContentType, s.cfg.Settings.Stream)
	}
	m.answer(c.stream)
}

// mayAnswer tells whether an answer of that kind may begin (RT-61): one, and an error
// in the middle of a streamed response (RT-62).
func (c *invocation) mayAnswer(k AnswerKind) bool {
	return c.body == noBody || c.body == responseBody && k == AnswerError && c.stream != nil
}

// finishManaged takes the body of a worker's answer.
func (s *Sandbox) finishManaged(m *finishAnswerMsg) {
	c, a := s.serving[m.id], &m.body
	body := responseBody
	if a.Kind == AnswerError {
		body = errorBody
	}
	switch {
	case c == nil && s.consumeLate(m.id):
		m.refuse(&Refusal{Type: InvokeTimeout, Message: "Invoke timeout"})
		return
	case c == nil || c.body != body:
		m.refuse(&Refusal{Type: InvalidRequestID, Message: "Invalid request ID"})
		return
	}
	if a.ContentType == "" {
		a.ContentType = "application/octet-stream" // RT-31
	}
	refusal := s.complete(c, a)
	if c.cut != nil {
		c.answer(c.cut)
	}
	s.endManaged(c, "", telemetry.Success)
	if refusal != nil {
		m.refuse(refusal)
		return
	}
	m.answer(struct{}{})
}

// consumeLate tells, once for each, whether id is of an invocation that timed out.
func (s *Sandbox) consumeLate(id string) bool {
	i := slices.Index(s.late, id)
	if i < 0 {
		return false
	}
	s.late = slices.Delete(s.late, i, i+1)
	return true
}
