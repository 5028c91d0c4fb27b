package rapid

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
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

// runtimeTarget is the state that a call requests, as error messages name it (RT-30).
var runtimeTarget = [...]runtimeState{callNext: rtReady, callResponse: rtResponse, callError: rtErrorResp, callInitError: rtInitError,
	callRestoreNext: rtRestoreReady, callRestoreError: rtRestoreError}

// runtimeMoves is the table of section 1.8: the state that a call leads to. A call that it
// does not contain is refused with status 403.
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

// runtimeParty is the Runtime API's state of the runtime: the part that can be saved, and the
// parked calls.
type runtimeParty struct {
	RuntimeState
	waiters []*nextMsg      // parked calls of next, oldest first
	restore *restoreNextMsg // parked call of restore/next; nil if there is none
}

func newRuntimeParty() runtimeParty {
	return runtimeParty{RuntimeState: RuntimeState{State: rtStarted}}
}

// move makes the transition of the call c, or returns why it is not allowed.
func (r *runtimeParty) move(c runtimeCall) *Refusal {
	to, ok := runtimeMoves[r.State][c]
	if !ok {
		return &Refusal{Type: InvalidStateTransition, Message: fmt.Sprintf(
			"State transition from %s to %s failed for runtime. Error: State transition is not allowed", r.State, runtimeTarget[c])}
	}
	r.State = to
	return nil
}

// Event is an event for the runtime or an agent. It is shared and must not be changed.
type Event struct {
	Type       string      // EventInvoke or EventShutdown
	Invocation *Invocation // EventInvoke only
	Deadline   time.Time
	Nonce      string // EventInvoke only: different for each attempt (RT-22)
	Reason     string // EventShutdown only (LC-66)
}

// Types of events.
const (
	EventInvoke   = "INVOKE"
	EventShutdown = "SHUTDOWN"
)

type nextMsg struct {
	isAgent bool
	agentID string
	event   *Event // delivered event
	hungUp  func() bool
	call[*Event]
}

func (m *nextMsg) alive() bool { return m.ctx.Err() == nil }

// connected reports whether the caller still has its connection open. It may detect the end
// before the context does.
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
	s.mode.next(m)
}

// runtimeAsks makes the transition of a call of next, or refuses the call. It reports whether
// the call is allowed.
func (s *Sandbox) runtimeAsks(m *nextMsg) (ok bool) {
	if err := s.runtime.move(callNext); err != nil {
		m.refuse(err)
		return false
	}
	s.closedReg = true // EX-14
	return true
}

// dispatch moves the runtime to Running (RT-58) and answers one live parked call (RT-27). If
// there is none, the runtime's next call gets the event. The same happens if the only parked
// call loses its connection right now, so that connection need not be checked.
func (r *runtimeParty) dispatch(e *Event) {
	r.State, r.Event, r.RequestID = rtRunning, e, e.Invocation.ID
	r.wake()
}

func (r *runtimeParty) wake() {
	for len(r.waiters) > 0 {
		w := r.waiters[0]
		r.waiters = slices.Delete(r.waiters, 0, 1)
		if last := len(r.waiters) == 0; last && w.alive() || w.connected() {
			w.deliver(r.Event)
			return
		}
		w.refuse(ErrClosed)
	}
}

// undeliveredMsg reports a parked call whose client has gone (RT-25).
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
	s.mode.undelivered(m.waiter)
}

// AnswerKind is one of the two ways in which a runtime ends an invocation.
type AnswerKind int

// The kinds of answers.
const (
	AnswerResponse AnswerKind = iota // POST …/response
	AnswerError                      // POST …/error
)

// AnswerHead is the content of an answer's headers.
type AnswerHead struct {
	Kind  AnswerKind
	Nonce string // echo of RT-22; "" if absent
	Mode  string // Lambda-Runtime-Function-Response-Mode; "" if absent (RT-36)

	ContentType string // see Answer
}

// ModeStreaming is the only valid Mode.
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

	TooLarge  bool  // the body is larger than MaxPayload (RT-34)
	Seen      int64 // bytes of the body that arrived
	Truncated bool  // the body was shorter than announced (RT-35)

	First, Last time.Time // arrival of the first and last byte (TL-45); zero means the time of BeginAnswer and FinishAnswer
}

// MaxPayload is the limit of a response body: 6 MiB and 100 bytes (RT-34).
const MaxPayload = 6<<20 + 100

// BodyLimit returns the largest body in bytes of an answer that is not streamed.
func (s *Sandbox) BodyLimit(k AnswerKind) int64 {
	if k == AnswerError {
		return s.traits.ErrorBody
	}
	return MaxPayload
}

// badMode reports whether the head has an invalid response mode (RT-36).
func (h *AnswerHead) badMode() bool {
	return h.Kind == AnswerResponse && h.Mode != "" && h.Mode != ModeStreaming
}

// badModeFault returns the fault of an answer with an invalid response mode (RT-36).
func (h *AnswerHead) badModeFault() *Fault {
	mode := h.Mode
	if len(mode) > maxQuotedMode {
		mode = mode[:maxQuotedMode] + "..."
	}
	return &Fault{errBadResponseMode, fmt.Sprintf("Invalid function response mode %q", mode)}
}

// maxQuotedMode limits the bytes of a response mode that an error repeats.
const maxQuotedMode = 64

// Refusals of answers.
var (
	invalidRequestID    = &Refusal{Type: InvalidRequestID, Message: "Invalid request ID"}
	invalidResponseMode = &Refusal{Type: InvalidFunctionResponseMode, Message: "Invalid function response mode"}
	lateAnswer          = &Refusal{Type: InvokeTimeout, Message: "Invoke timeout"}
)

type beginAnswerMsg struct {
	id   string
	head AnswerHead
	call[*Stream]
}

func (m *beginAnswerMsg) serve(s *Sandbox) { s.mode.beginAnswer(m) }

type finishAnswerMsg struct {
	id   string
	body Answer
	call[struct{}]
}

func (m *finishAnswerMsg) serve(s *Sandbox) { s.mode.finishAnswer(m) }

// InitError is a failure report that a runtime posted to init/error or restore/error.
type InitError struct {
	Body []byte
	Type string // Lambda-Runtime-Function-Error-Type, unsanitised
}

type initError struct {
	body      []byte
	errorType string
	gen       uint64 // generation in which it was posted
}

// result returns the result of an invocation that fails with e, with the content type of
// RT-50.
func (e *initError) result(errorType string) *Result {
	contentType := "application/octet-stream"
	if json.Valid(e.body) {
		contentType = "application/json"
	}
	return &Result{Payload: e.body, ContentType: contentType, FunctionError: true, ErrorType: errorType}
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
	st, r := s.State(), s.runtime.State
	if (st != Initializing || r != rtInitError) && (st != Restoring || r != rtRestoreError) {
		m.refuse(ErrClosed)
		return
	}
	s.posted = &initError{body: m.posted.Body, errorType: sanitizeType(m.posted.Type), gen: s.gen.Load()}
	s.note(&Fault{Type: s.posted.errorType})
	m.answer(struct{}{})
}

// retire ends the current invocation when a shutdown begins: a late answer is refused with
// status 400 (RT-29), and a call of next blocks until the runtime is killed.
func (r *runtimeParty) retire() {
	r.RequestID, r.Event = "", nil
	if r.State == rtRunning || r.State == rtResponse || r.State == rtErrorResp {
		r.State = rtSent
	}
}

// close refuses the parked calls and resets the state, when the generation is gone (RT-59).
func (r *runtimeParty) close() {
	for _, w := range r.waiters {
		w.refuse(ErrClosed)
	}
	if r.restore != nil {
		r.restore.refuse(ErrClosed)
	}
	*r = newRuntimeParty()
}
