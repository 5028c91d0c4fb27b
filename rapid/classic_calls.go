package rapid

import (
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

func (m *classicMode) admit(msg *invokeMsg) {
	if m.current != nil {
		msg.refuse(ErrBusy) // LC-20; after a failure until the reset is over
		return
	}
	// It starts at once, or after the initialization or reset in progress.
	m.current = &classicInvocation{invocation: newInvocation(msg, m.s.cfg.Function.ARN)}
}

func (m *classicMode) next(msg *nextMsg) {
	r := &m.s.runtime
	if !m.s.runtimeAsks(msg) {
		return
	}
	if r.State == rtRunning {
		msg.deliver(r.Event) // RT-26
		return
	}
	r.RequestID = ""
	if m.s.State() == Initializing && m.inline() {
		r.RequestID = m.current.inv.ID
	}
	many := len(r.waiters) >= fewWaiters // then also check for clients that have closed the connection
	r.waiters = append(slices.DeleteFunc(r.waiters, func(w *nextMsg) bool { return !w.alive() || many && !w.connected() }), msg)
}

// fewWaiters is the number of parked calls of next from which their connections are checked.
const fewWaiters = 8

func (m *classicMode) undelivered(w *nextMsg) {
	r := &m.s.runtime
	if r.State == rtRunning && w.event == r.Event {
		r.wake()
	}
}

// dispatch writes START and delivers the event to the agents, external ones first, and to
// the runtime (LC-21). It does not block: every answer goes into a buffered channel.
func (m *classicMode) dispatch() {
	c := m.current
	m.reportStart()
	e := c.newEvent()
	c.released = time.Now()
	for _, external := range []bool{true, false} {
		for _, a := range m.s.agents {
			if a.External == external && a.State == agReady && a.wants(EventInvoke) {
				a.give(e)
			}
		}
	}
	m.s.runtime.dispatch(e)
}

func (m *classicMode) beginAnswer(msg *beginAnswerMsg) {
	r := &m.s.runtime
	if msg.id == "" || msg.id != r.RequestID || m.current == nil {
		msg.refuse(invalidRequestID)
		return
	}
	if msg.head.Nonce != "" && r.Event != nil && msg.head.Nonce != r.Event.Nonce { // RT-33
		msg.refuse(lateAnswer)
		return
	}
	c := callResponse
	if msg.head.Kind == AnswerError {
		c = callError
	}
	if err := r.move(c); err != nil {
		msg.refuse(err)
		return
	}
	if msg.head.badMode() { // RT-36
		m.current.answer(faultResult(m.current.inv.ID, msg.head.badModeFault()))
		r.State = rtSent
		msg.refuse(invalidResponseMode)
		return
	}
	m.current.firstByte = time.Now()
	if msg.head.Kind == AnswerResponse && msg.head.Mode == ModeStreaming && m.current.inv.Stream { // else RT-74
		m.current.openStream(msg.head.ContentType, m.s.cfg.Settings.Stream)
	}
	msg.answer(m.current.stream)
}

func (m *classicMode) finishAnswer(msg *finishAnswerMsg) {
	r := &m.s.runtime
	if msg.id != r.RequestID || m.current == nil || (r.State != rtResponse && r.State != rtErrorResp) {
		msg.refuse(invalidRequestID)
		return
	}
	r.State = rtSent // also after an invalid body: the runtime may call next
	failpoint.Pass(failpoint.ResponseReceived)
	if refusal := m.current.complete(&msg.body, m.s.BodyLimit(msg.body.Kind)); refusal != nil {
		msg.refuse(refusal)
		return
	}
	msg.answer(struct{}{})
}
