package rapid

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// runtimeState is the protocol state of the runtime, with the names of section 1.8.
type runtimeState string

const (
	rtStarted      runtimeState = "Started"
	rtInitError    runtimeState = "InitError"
	rtReady        runtimeState = "Ready"
	rtRunning      runtimeState = "Running"
	rtRestoreReady runtimeState = "RestoreReady"
	rtRestoring    runtimeState = "Restoring"
	rtResponse     runtimeState = "InvocationResponse"
	rtErrorResp    runtimeState = "InvocationErrorResponse"
	rtSent         runtimeState = "RuntimeResponseSentState"
	rtRestoreError runtimeState = "RuntimeRestoreErrorState"
)

type runtimeCall int

const (
	callNext runtimeCall = iota
	callResponse
	callError
	callInitError
	callRestoreNext
	callRestoreError
)

// runtimeTarget is the state that a call asks for, as messages name it (RT-30).
var runtimeTarget = [...]runtimeState{callNext: rtReady, callResponse: rtResponse, callError: rtErrorResp, callInitError: rtInitError,
	callRestoreNext: rtRestoreReady, callRestoreError: rtRestoreError}

// runtimeMoves is the table of section 1.8: the state that a call leads to. What is
// not here is a 403.
var runtimeMoves = map[runtimeState]map[runtimeCall]runtimeState{
	rtStarted:      {callNext: rtReady, callInitError: rtInitError, callRestoreNext: rtRestoreReady},
	rtRestoreReady: {},
	rtRestoring:    {callNext: rtReady, callInitError: rtRestoreError, callRestoreError: rtRestoreError},
	rtReady:        {callNext: rtReady},
	rtRunning:      {callNext: rtRunning, callResponse: rtResponse, callError: rtErrorResp},
	rtResponse:     {},
	rtErrorResp:    {},
	rtSent:         {callNext: rtReady},
	rtInitError:    {},
	rtRestoreError: {},
}

// runtimeParty is the runtime as the Runtime API sees it.
type runtimeParty struct {
	state   runtimeState
	id      string          // current request id, "" for none: what RT-28 compares with
	event   *Event          // being worked on
	waiters []*nextMsg      // parked calls of next, oldest first
	restore *restoreNextMsg // its parked call of restore/next
}

// move makes the transition that call asks for, or says why it is not allowed.
func (r *runtimeParty) move(c runtimeCall) *Refusal {
	to, ok := runtimeMoves[r.state][c]
	if !ok {
		return &Refusal{Type: InvalidStateTransition, Message: fmt.Sprintf(
			"State transition from %s to %s failed for runtime. Error: State transition is not allowed", r.state, runtimeTarget[c])}
	}
	r.state = to
	return nil
}

// Event is what a runtime or an agent is told. It is shared and must not be changed.
type Event struct {
	Type       string      // "INVOKE" or "SHUTDOWN"
	Invocation *Invocation // of INVOKE
	Deadline   time.Time
	Nonce      string // fresh for each attempt (RT-22), of INVOKE
	Reason     string // of SHUTDOWN (LC-66)
}

// Types of events.
const (
	EventInvoke   = "INVOKE"
	EventShutdown = "SHUTDOWN"
)

type nextMsg struct {
	isAgent bool
	agentID string
	event   *Event // what it was answered with
	hungUp  func() bool
	call[*Event]
}

func (m *nextMsg) alive() bool { return m.ctx.Err() == nil }

// connected is alive, even if the context does not know of the end yet.
func (m *nextMsg) connected() bool { return m.alive() && (m.hungUp == nil || !m.hungUp()) }

func (m *nextMsg) deliver(e *Event) {
	m.event = e
	m.answer(e)
}

func (m *nextMsg) serve(s *Sandbox) {
	if m.isAgent {
		s.agentNext(m)
		return
	}
	r := &s.runtime
	if s.Managed() && len(r.waiters) >= maxIdleWorkers {
		m.refuse(ErrTooManyWorkers)
		return
	}
	if err := r.move(callNext); err != nil {
		m.refuse(err)
		return
	}
	s.closedReg = true // EX-14
	if s.Managed() {
		s.changed = true
		r.waiters = append(r.waiters, m) // RT-60
		return
	}
	if r.state == rtRunning {
		m.deliver(r.event) // RT-26
		return
	}
	r.id = ""
	if s.State() == Initializing && s.inline() {
		r.id = s.current.inv.ID
	}
	many := len(r.waiters) >= fewWaiters // whoever leaves without a word is asked for then
	r.waiters = append(slices.DeleteFunc(r.waiters, func(w *nextMsg) bool { return !w.alive() || many && !w.connected() }), m)
}

// fewWaiters is how many calls of next may wait before their clients are asked for.
const fewWaiters = 8

// dispatch moves the runtime to Running (RT-58) and wakes one live waiter (RT-27).
// If there is none, the runtime's next call gets the event; so does it if the only
// waiter hangs up at this very moment, which is why it is not asked whether it has.
func (r *runtimeParty) dispatch(e *Event) {
	r.state, r.event, r.id = rtRunning, e, e.Invocation.ID
	r.wake()
}

func (r *runtimeParty) wake() {
	for len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = slices.Delete(r.waiters, 0, 1)
		if last := len(r.waiters) == 0; last && w.alive() || w.connected() {
			w.deliver(r.event)
			return
		}
		w.refuse(ErrClosed)
	}
}

// undeliveredMsg takes a waiter back whose client is gone (RT-25).
type undeliveredMsg struct {
	waiter *nextMsg
	call[struct{}]
}

func (m *undeliveredMsg) serve(s *Sandbox) {
	if m.waiter.isAgent {
		s.agentUndelivered(m.waiter)
		return
	}
	r := &s.runtime
	r.waiters = slices.DeleteFunc(r.waiters, func(w *nextMsg) bool { return w == m.waiter })
	if s.Managed() {
		s.takeBack(m.waiter)
		return
	}
	if r.state == rtRunning && m.waiter.event == r.event {
		r.wake()
	}
}

// AnswerKind tells the two ways apart in which a runtime ends an invocation.
type AnswerKind int

// The kinds of answers.
const (
	AnswerResponse AnswerKind = iota // POST …/response
	AnswerError                      // POST …/error
)

// AnswerHead is what the headers of an answer say.
type AnswerHead struct {
	Kind  AnswerKind
	Nonce string // echo of RT-22, "" if not echoed
	Mode  string // Lambda-Runtime-Function-Response-Mode, "" if absent (RT-36)

	ContentType string // as of Answer
}

// ModeStreaming is the one Mode that there is.
const ModeStreaming = "streaming"

// Answer is a complete answer of the runtime.
type Answer struct {
	Kind        AnswerKind
	Payload     []byte // nil if it went into a Stream
	ContentType string
	ErrorType   string // Lambda-Runtime-Function-Error-Type of AnswerError, unsanitised
	Cause       []byte // Lambda-Runtime-Function-XRay-Error-Cause, unsanitised

	TrailerType string // trailers of RT-70, decoded; "" if the stream did not fail
	TrailerBody []byte

	TooLarge  bool // the body passed MaxPayload; Seen bytes of it were seen (RT-34)
	Seen      int64
	Truncated bool // the body was shorter than announced (RT-35)

	First, Last time.Time // when its first and last byte came (TL-45); zero means at the calls themselves
}

// MaxPayload is the limit of a response body: 6 MiB and 100 bytes (RT-34).
const MaxPayload = 6<<20 + 100

// maxManagedBody is the limit of all other bodies in managed mode (RT-64).
const maxManagedBody = 1 << 20

// BodyLimit is how many bytes the body of an answer may have that is no stream.
func (s *Sandbox) BodyLimit(k AnswerKind) int64 {
	if k == AnswerError && s.Managed() {
		return maxManagedBody
	}
	return MaxPayload
}

type beginAnswerMsg struct {
	id   string
	head AnswerHead
	call[*Stream]
}

func (m *beginAnswerMsg) serve(s *Sandbox) {
	if s.Managed() {
		s.beginManaged(m)
		return
	}
	r := &s.runtime
	if m.id == "" || m.id != r.id {
		m.refuse(&Refusal{Type: InvalidRequestID, Message: "Invalid request ID"})
		return
	}
	if m.head.Nonce != "" && r.event != nil && m.head.Nonce != r.event.Nonce { // RT-33
		m.refuse(&Refusal{Type: InvokeTimeout, Message: "Invoke timeout"})
		return
	}
	c := callResponse
	if m.head.Kind == AnswerError {
		c = callError
	}
	if err := r.move(c); err != nil {
		m.refuse(err)
		return
	}
	if m.head.Kind == AnswerResponse && m.head.Mode != "" && m.head.Mode != ModeStreaming { // RT-36
		s.answer(&Result{FunctionError: true, ErrorType: "Runtime.InvalidResponseModeHeader"})
		r.state = rtSent
		m.refuse(&Refusal{Type: InvalidFunctionResponseMode, Message: "Invalid function response mode"})
		return
	}
	s.current.firstByte = time.Now()
	if m.head.Kind == AnswerResponse && m.head.Mode == ModeStreaming && s.current.inv.Stream { // else RT-74
		s.current.openStream(m.head.ContentType, s.cfg.Settings.Stream)
	}
	m.answer(s.current.stream)
}

type finishAnswerMsg struct {
	id   string
	body Answer
	call[struct{}]
}

func (m *finishAnswerMsg) serve(s *Sandbox) {
	if s.Managed() {
		s.finishManaged(m)
		return
	}
	r, a := &s.runtime, &m.body
	if m.id != r.id || s.current == nil || (r.state != rtResponse && r.state != rtErrorResp) {
		m.refuse(&Refusal{Type: InvalidRequestID, Message: "Invalid request ID"})
		return
	}
	r.state = rtSent // whatever the body was: the following next is legal
	failpoint.Pass(failpoint.ResponseReceived)
	c := s.current
	if refusal := s.complete(c, a); refusal != nil {
		m.refuse(refusal)
		return
	}
	m.answer(struct{}{})
}

// complete gives the caller of c what the runtime has posted. The refusal is for the
// runtime, whose answer counts all the same.
func (s *Sandbox) complete(c *invocation, a *Answer) *Refusal {
	c.came(a)
	switch {
	case a.TooLarge:
		limit := s.BodyLimit(a.Kind)
		if c.stream != nil {
			limit = c.stream.limits.Bytes
		}
		c.answer(failure("Function.ResponseSizeTooLarge",
			fmt.Sprintf("Response payload size (%d bytes) exceeded maximum allowed payload size (%d bytes).", a.Seen, limit)))
		return &Refusal{Type: RequestEntityTooLarge, Message: fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", limit)}
	case a.Truncated:
		c.cut = failure("Runtime.TruncatedResponse", fmt.Sprintf("RequestId: %s Error: HTTP request detected as truncated", c.inv.ID))
		return &Refusal{Type: TruncatedHTTPRequest, Message: "HTTP request detected as truncated"}
	case a.Kind == AnswerError:
		c.answer(errorResult(a))
	case a.TrailerType != "" || a.TrailerBody != nil:
		c.answer(trailerResult(a))
	default:
		c.answer(&Result{Payload: a.Payload, ContentType: a.ContentType})
	}
	return nil
}

// InitError is what a runtime posted to init/error.
type InitError struct {
	Body []byte
	Type string // Lambda-Runtime-Function-Error-Type, unsanitised
}

type initError struct {
	body      []byte
	errorType string
	gen       uint64 // in which it was posted
}

// contentType is RT-50's.
func (e *initError) contentType() string {
	if json.Valid(e.body) {
		return "application/json"
	}
	return "application/octet-stream"
}

type beginInitErrorMsg struct {
	restore bool // restore/error, else init/error
	call[struct{}]
}

func (m *beginInitErrorMsg) serve(s *Sandbox) {
	c := callInitError
	if m.restore {
		c = callRestoreError
	}
	if err := s.runtime.move(c); err != nil {
		m.refuse(err)
		return
	}
	m.answer(struct{}{})
}

type finishInitErrorMsg struct {
	posted InitError
	call[struct{}]
}

func (m *finishInitErrorMsg) serve(s *Sandbox) {
	st, r := s.State(), s.runtime.state
	if (st != Initializing || r != rtInitError) && (st != Restoring || r != rtRestoreError) {
		m.refuse(ErrClosed)
		return
	}
	s.posted = &initError{body: m.posted.Body, errorType: sanitizeType(m.posted.Type), gen: s.gen.Load()}
	s.note(&Fault{Type: s.posted.errorType})
	m.answer(struct{}{})
}

// retire ends what the runtime was doing when a shutdown begins: a late answer is a
// 400 (RT-29), and its next blocks until it is killed.
func (r *runtimeParty) retire() {
	r.id, r.event = "", nil
	if r.state == rtRunning || r.state == rtResponse || r.state == rtErrorResp {
		r.state = rtSent
	}
}

// close ends the parked calls of a generation that is gone (RT-59).
func (r *runtimeParty) close() {
	for _, w := range r.waiters {
		w.refuse(ErrClosed)
	}
	if r.restore != nil {
		r.restore.refuse(ErrClosed)
	}
	*r = runtimeParty{state: rtStarted}
}
