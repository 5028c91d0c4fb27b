package rapid

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// managedMode is the mode of many invocations at once (section 1.9). The runtime has no state of
// its own once it is ready: each of its workers asks for an event and answers it by its id.
// The one state of this mode is Serving. It is never frozen (LC-84), a timeout ends one
// invocation only, and the end of any process ends the sandbox (RT-68).
type managedMode struct {
	s *Sandbox

	serving map[string]*managedInvocation // by id: those in queue and those that run
	queue   []*managedInvocation          // those that wait for a worker, oldest first
	running []*managedInvocation          // those that a worker has, oldest first
	late    []string                      // ids of the last that timed out (RT-63)
	changed bool                          // there is something that makeStep has not seen
}

// managedInvocation is an invocation of managed mode.
type managedInvocation struct {
	invocation
	event    *Event     // what its worker was given; nil before
	patience time.Time  // until when it waits for a worker
	body     answerBody // which answer has begun
}

// answerBody says which answer of an invocation has begun.
type answerBody int

const (
	noBody answerBody = iota
	responseBody
	errorBody
)

const (
	maxIdleWorkers = 10000 // RT-60
	maxLate        = 1000  // RT-63

	// workerPatience is how long an invocation waits for a worker. One that has
	// answered asks for its next event in far less.
	workerPatience = 100 * time.Millisecond
)

// ErrTooManyWorkers says that no more calls of next can wait (RT-60).
var ErrTooManyWorkers = errors.New("Runtime.TooManyIdleRuntimes: too many calls of next wait")

func newManaged(s *Sandbox) mode {
	return &managedMode{s: s, serving: map[string]*managedInvocation{}}
}

// run is Serving: it hands invocations to the workers of the runtime until the sandbox ends.
func (m *managedMode) run(ctx context.Context, _ State) State {
	s := m.s
	if err := s.throttle(ctx); err != nil {
		return s.giveUp(ctx, err)
	}
	for _, c := range m.queue { // they have waited for the initialization
		c.patience = time.Now().Add(workerPatience)
	}
	isChanged := func() bool { return m.changed }
	for {
		m.makeStep()
		switch s.waitStepping(ctx, isChanged, m.makeStep) {
		case limitPassed:
			m.expire(time.Now())
		case failed:
			s.reportFault("")
			m.failAll(s.fatal())
			return Resetting
		case cancelled:
			m.abandon(ErrDead)
			return ShuttingDown
		}
	}
}

// makeStep hands out what it can, and sets the limit to the next that can expire. Mostly
// the goroutine calls it that has delivered an invocation or the call of a worker: see token.
func (m *managedMode) makeStep() bool {
	m.changed = false
	m.handOut()
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

// handOut gives what is in queue to workers that wait.
func (m *managedMode) handOut() {
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

// start begins an invocation's time and log.
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

// limit is the end of an invocation's patience or time.
func (c *managedInvocation) limit() time.Time {
	if c.event == nil {
		return c.patience
	}
	return c.deadline
}

// nextLimit is how long nothing can expire.
func (m *managedMode) nextLimit() time.Duration {
	d := time.Hour
	for _, c := range m.serving {
		d = min(d, time.Until(c.limit()))
	}
	return d
}

// expire ends what has waited for a worker, or has run, for too long (RT-65, RT-68).
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

// timeOut ends one invocation; its worker goes on, and may answer late (RT-63).
func (m *managedMode) timeOut(c *managedInvocation) {
	m.late = append(m.late, c.inv.ID)
	if len(m.late) > maxLate {
		m.late = slices.Delete(m.late, 0, 1)
	}
	c.timeOut(m.s.cfg.Function.Timeout)
	m.finish(c, "", telemetry.Timeout)
}

// inFlight lists what is served, what a worker has first.
func (m *managedMode) inFlight() []*managedInvocation { return slices.Concat(m.running, m.queue) }

// drop forgets c.
func (m *managedMode) drop(c *managedInvocation) {
	is := func(o *managedInvocation) bool { return o == c }
	m.running, m.queue = slices.DeleteFunc(m.running, is), slices.DeleteFunc(m.queue, is)
	delete(m.serving, c.inv.ID)
}

// turnAway refuses an invocation that no worker has seen.
func (m *managedMode) turnAway(c *managedInvocation, err error) {
	m.drop(c)
	c.refuse(err)
	c.over.end()
}

// finish reports an invocation that is answered, and makes room for another.
func (m *managedMode) finish(c *managedInvocation, errorType string, status telemetry.Status) {
	m.drop(c)
	m.s.drain() // what the runtime has said is before it
	if status == telemetry.Success && c.result.FunctionError {
		errorType, status = c.result.ErrorType, telemetry.StatusOf(c.result.ErrorType)
	}
	d := time.Since(c.started)
	if status == telemetry.Timeout {
		d = min(d, m.s.cfg.Function.Timeout)
	}
	// Of the spans of TL-45 runtimeOverhead is missing: nobody can tell which worker's next
	// call ends it.
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

// failAll answers everything with the fault that ends a managed sandbox. What no
// worker has seen may run in another sandbox, unless this one never came to serve.
func (m *managedMode) failAll(f *Fault) {
	s := m.s
	f = &Fault{f.Type, f.Message}
	if s.posted != nil { // FE-16
		f.Type = errManagedInit
	}
	if s.lost { // FE-16, INV-14
		f.Type = errOutOfMemory
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

// end has nothing to close: whatever is over has left serving.
func (m *managedMode) end() {}

// beginAnswer opens a worker's answer (RT-61 to RT-63).
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
		c.answer(badModeResult())
		m.finish(c, "", telemetry.Success)
		msg.refuse(invalidResponseMode)
		return
	}
	if msg.head.Mode == ModeStreaming && c.inv.Stream { // else RT-74
		c.openStream(msg.head.ContentType, m.s.cfg.Settings.Stream)
	}
	msg.answer(c.stream)
}

// mayAnswer reports whether an answer of that kind may begin (RT-61): one, and an error
// in the middle of a streamed response (RT-62).
func (c *managedInvocation) mayAnswer(k AnswerKind) bool {
	return c.body == noBody || c.body == responseBody && k == AnswerError && c.stream != nil
}

// finishAnswer takes the body of a worker's answer.
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

// consumeLate reports whether id is that of an invocation that timed out; it does so once
// for each.
func (m *managedMode) consumeLate(id string) bool {
	i := slices.Index(m.late, id)
	if i < 0 {
		return false
	}
	m.late = slices.Delete(m.late, i, i+1)
	return true
}
