package rapid

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// managedMode is the mode of sandboxes that run many invocations at once (section 1.9). Once
// the runtime is ready, its protocol state does not change: each of its workers asks for an
// event and answers it by its id. The only state of this mode is Serving. The sandbox is
// never frozen (LC-84), a timeout ends one invocation only, and the exit of any process ends
// the sandbox (RT-68).
type managedMode struct {
	s *Sandbox

	serving map[string]*managedInvocation // by id: all of queue and running
	queue   []*managedInvocation          // waiting for a worker, oldest first
	running []*managedInvocation          // assigned to a worker, oldest first
	late    []string                      // ids of the latest invocations that timed out (RT-63)
	changed bool                          // makeStep has something to do
}

// managedInvocation is an invocation of managed mode.
type managedInvocation struct {
	invocation
	event    *Event     // delivered to a worker; nil before
	patience time.Time  // end of the wait for a worker
	body     answerBody // which answer has begun
}

// answerBody is the kind of answer to an invocation that has begun.
type answerBody int

const (
	noBody answerBody = iota
	responseBody
	errorBody
)

const (
	maxIdleWorkers = 10000 // RT-60
	maxLate        = 1000  // RT-63

	// workerPatience is how long an invocation waits for a worker. A worker that has answered
	// asks for its next event much sooner.
	workerPatience = 100 * time.Millisecond
)

// ErrTooManyWorkers reports that no more calls of next can be parked (RT-60).
var ErrTooManyWorkers = errors.New("Runtime.TooManyIdleRuntimes: too many calls of next wait")

func newManaged(s *Sandbox) mode {
	return &managedMode{s: s, serving: map[string]*managedInvocation{}}
}

// run implements Serving: it assigns invocations to the workers of the runtime until the
// sandbox ends.
func (m *managedMode) run(ctx context.Context, _ State) State {
	s := m.s
	if err := s.throttle(ctx); err != nil {
		return s.giveUp(ctx, err)
	}
	for _, c := range m.queue { // the wait for the initialization does not count
		c.patience = time.Now().Add(workerPatience)
	}
	isChanged := func() bool { return m.changed }
	for {
		m.makeStep()
		switch s.waitStepping(ctx, isChanged, m.makeStep) {
		case limitPassed:
			m.expire(time.Now())
		case failed:
			f := s.latestFault()
			s.reportFault("", f)
			m.failAll(f)
			return Resetting
		case cancelled:
			m.abandon(ErrDead)
			return ShuttingDown
		}
	}
}

// makeStep assigns queued invocations to waiting workers, and sets the limit to the next time
// at which an invocation can expire. Besides Run, the goroutine that has delivered an
// invocation or the call of a worker calls it: see token.
func (m *managedMode) makeStep() bool {
	m.changed = false
	m.assign()
	m.s.setLimit(time.Now().Add(m.nextLimit()))
	return true
}

func (m *managedMode) admit(msg *invokeMsg) {
	switch {
	case m.serving[msg.inv.ID] != nil:
		msg.refuse(ErrDuplicate)
	case len(m.serving) >= m.s.cfg.MaxConcurrency:
		msg.refuse(ErrBusy)
	default:
		c := &managedInvocation{invocation: newInvocation(msg, m.s.cfg.Function.ARN), patience: time.Now().Add(workerPatience)}
		m.serving[c.inv.ID] = c
		m.queue = append(m.queue, c)
		m.changed = true
	}
}

func (m *managedMode) next(msg *nextMsg) {
	r := &m.s.runtime
	if len(r.waiters) >= maxIdleWorkers {
		msg.refuse(ErrTooManyWorkers)
		return
	}
	if m.s.runtimeAsks(msg) {
		r.waiters = append(r.waiters, msg) // RT-60
		m.changed = true
	}
}

// assign delivers queued invocations to waiting workers.
func (m *managedMode) assign() {
	r := &m.s.runtime
	for len(m.queue) > 0 && len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = slices.Delete(r.waiters, 0, 1)
		if !w.alive() {
			w.refuse(ErrClosed)
			continue
		}
		c := m.queue[0]
		m.queue = slices.Delete(m.queue, 0, 1)
		if c.event == nil {
			m.start(c)
		}
		m.running = append(m.running, c)
		w.deliver(c.event)
	}
}

// start starts the time limit and the log of an invocation.
func (m *managedMode) start(c *managedInvocation) {
	now := time.Now()
	c.begin(now, m.s.cfg.Function.Timeout)
	c.released, c.event = now, c.newEvent()
	m.s.reportStart(&c.invocation)
}

func (m *managedMode) undelivered(w *nextMsg) {
	if w.event == nil {
		return
	}
	c := m.serving[w.event.Invocation.ID]
	i := slices.Index(m.running, c)
	if i < 0 || c.event != w.event || c.body != noBody {
		return
	}
	m.running = slices.Delete(m.running, i, i+1)
	m.queue = slices.Insert(m.queue, 0, c)
	m.changed = true
}

// limit returns when the invocation expires: in the queue the end of its patience, else its
// deadline.
func (c *managedInvocation) limit() time.Time {
	if c.event == nil {
		return c.patience
	}
	return c.deadline
}

// nextLimit returns the time until the next invocation can expire.
func (m *managedMode) nextLimit() time.Duration {
	d := time.Hour
	for _, c := range m.serving {
		d = min(d, time.Until(c.limit()))
	}
	return d
}

// expire ends the invocations that have waited for a worker, or have run, for too long
// (RT-65, RT-68).
func (m *managedMode) expire(now time.Time) {
	for _, c := range m.inFlight() {
		switch {
		case now.Before(c.limit()):
		case c.event == nil:
			m.turnAway(c, ErrUnavailable)
		default:
			m.timeOut(c)
		}
	}
}

// timeOut ends one invocation. Its worker continues, and may answer late (RT-63).
func (m *managedMode) timeOut(c *managedInvocation) {
	m.late = append(m.late, c.inv.ID)
	if len(m.late) > maxLate {
		m.late = slices.Delete(m.late, 0, 1)
	}
	c.timeOut(m.s.cfg.Function.Timeout)
	m.finish(c, "", telemetry.Timeout)
}

// inFlight returns all invocations, those that are assigned to a worker first.
func (m *managedMode) inFlight() []*managedInvocation { return slices.Concat(m.running, m.queue) }

// drop removes c.
func (m *managedMode) drop(c *managedInvocation) {
	is := func(o *managedInvocation) bool { return o == c }
	m.running, m.queue = slices.DeleteFunc(m.running, is), slices.DeleteFunc(m.queue, is)
	delete(m.serving, c.inv.ID)
}

// turnAway refuses an invocation that was not delivered to a worker.
func (m *managedMode) turnAway(c *managedInvocation, err error) {
	m.drop(c)
	c.refuse(err)
	c.over.end()
}

// finish removes an answered invocation, and reports it.
func (m *managedMode) finish(c *managedInvocation, errorType string, status telemetry.Status) {
	m.drop(c)
	m.s.drain() // the runtime's output comes before the record
	if status == telemetry.Success && c.result.FunctionError {
		errorType, status = c.result.ErrorType, telemetry.StatusOf(c.result.ErrorType)
	}
	d := time.Since(c.started)
	if status == telemetry.Timeout {
		d = min(d, m.s.cfg.Function.Timeout)
	}
	// The span runtimeOverhead of TL-45 is missing: it would end with the next call of the
	// same worker, and calls do not identify their worker.
	m.s.log.Platform(&telemetry.ManagedReport{RequestID: c.inv.ID, Status: status, ErrorType: errorType,
		Metrics: telemetry.InitMetrics{Duration: telemetry.Millis(d)}, Spans: c.spans(), Tracing: telemetry.NewTracing(c.inv.TraceID)})
	c.over.end()
}

func (m *managedMode) beginInit() (telemetry.Phase, time.Duration) {
	return telemetry.InitPhase, m.s.cfg.Settings.InitTimeout
}

func (m *managedMode) initialized(time.Duration) State { return Serving }

func (m *managedMode) initTimedOut() {
	for _, c := range m.inFlight() {
		if c.event == nil {
			m.start(c)
		}
		m.timeOut(c)
	}
}

func (m *managedMode) initFailed(f *Fault) { m.failAll(f) }

// failAll answers all invocations with the fault that ends a managed sandbox. An invocation
// that was not delivered to a worker may run in another sandbox, unless this one failed
// before it served.
func (m *managedMode) failAll(f *Fault) {
	s := m.s
	f = &Fault{f.Type, f.Message}
	if s.posted != nil { // FE-16
		f.Type = errManagedInit
	}
	for _, c := range m.inFlight() {
		if c.event == nil && s.State() == Serving {
			m.turnAway(c, ErrDead)
			continue
		}
		if c.event == nil {
			m.start(c)
		}
		if s.posted != nil {
			c.answer(s.posted.result(f.Type))
		} else {
			c.answer(faultResult(c.inv.ID, f))
		}
		m.finish(c, f.Type, telemetry.StatusOf(f.Type))
	}
}

func (m *managedMode) abandon(err error) {
	for _, c := range m.inFlight() {
		if c.event == nil {
			m.turnAway(c, err)
			continue
		}
		c.refuse(err)
		m.finish(c, errSandboxFailure, telemetry.Failure)
	}
}

// end has nothing to do: finished invocations have left serving.
func (m *managedMode) end() {}

// beginAnswer begins the answer of a worker (RT-61 to RT-63).
func (m *managedMode) beginAnswer(msg *beginAnswerMsg) {
	c := m.serving[msg.id]
	switch {
	case c == nil && m.consumeLate(msg.id):
		msg.refuse(lateAnswer)
		return
	case c == nil || c.event == nil || !c.mayAnswer(msg.head.Kind):
		msg.refuse(invalidRequestID)
		return
	case msg.head.Nonce != "" && msg.head.Nonce != c.event.Nonce: // RT-33
		msg.refuse(lateAnswer)
		return
	}
	if c.firstByte.IsZero() {
		c.firstByte = time.Now()
	}
	if msg.head.Kind == AnswerError {
		c.body = errorBody
		msg.answer(nil)
		return
	}
	c.body = responseBody
	if msg.head.badMode() { // RT-36
		c.answer(faultResult(c.inv.ID, msg.head.badModeFault()))
		m.finish(c, "", telemetry.Success)
		msg.refuse(invalidResponseMode)
		return
	}
	if msg.head.Mode == ModeStreaming && c.inv.Stream { // else RT-74
		c.openStream(msg.head.ContentType, m.s.cfg.Settings.Stream)
	}
	msg.answer(c.stream)
}

// mayAnswer reports whether an answer of kind k may begin: the first one (RT-61), or an error
// during a streamed response (RT-62).
func (c *managedInvocation) mayAnswer(k AnswerKind) bool {
	return c.body == noBody || c.body == responseBody && k == AnswerError && c.stream != nil
}

// finishAnswer completes the answer of a worker with its body.
func (m *managedMode) finishAnswer(msg *finishAnswerMsg) {
	c, a := m.serving[msg.id], &msg.body
	body := responseBody
	if a.Kind == AnswerError {
		body = errorBody
	}
	switch {
	case c == nil && m.consumeLate(msg.id):
		msg.refuse(lateAnswer)
		return
	case c == nil || c.body != body:
		msg.refuse(invalidRequestID)
		return
	}
	if a.ContentType == "" {
		a.ContentType = "application/octet-stream" // RT-31
	}
	refusal := c.complete(a, m.s.BodyLimit(a.Kind))
	if c.cut != nil && m.s.memoryRanOut() { // the exits that follow answer it
		c.cut = nil
		msg.refuse(refusal)
		return
	}
	if c.cut != nil {
		c.answer(c.cut)
	}
	m.finish(c, "", telemetry.Success)
	if refusal != nil {
		msg.refuse(refusal)
		return
	}
	msg.answer(struct{}{})
}

// consumeLate reports whether the invocation id has timed out. It returns true once for each
// invocation.
func (m *managedMode) consumeLate(id string) bool {
	i := slices.Index(m.late, id)
	if i < 0 {
		return false
	}
	m.late = slices.Delete(m.late, i, i+1)
	return true
}
