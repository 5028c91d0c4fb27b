package rapid

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// invocation is the state of one invocation, from its admission to Done, that both modes
// have.
type invocation struct {
	msg      *invokeMsg
	inv      *Invocation
	over     *over     // closes Result.Done
	result   *Result   // set once the caller has been answered
	started  time.Time // time of the dispatch, or begin of the inline initialization (LC-23); zero until begin
	deadline time.Time // zero until begin
	stream   *Stream   // the caller's stream, if the answer is streamed (RT-69)
	cut      *Result   // result for a truncated body, until the caller gets it

	released, firstByte, lastByte time.Time // times of TL-45; zero if not reached
	produced                      int64     // bytes of the answer
}

func newInvocation(m *invokeMsg, arn string) invocation {
	inv := *m.inv
	if inv.FunctionARN == "" {
		inv.FunctionARN = arn
	}
	return invocation{msg: m, inv: &inv, over: &over{done: make(chan struct{})}}
}

// begin starts the time limit of the function (LC-23).
func (c *invocation) begin(now time.Time, timeout time.Duration) {
	c.started, c.deadline = now, now.Add(timeout)
}

func (c *invocation) newEvent() *Event {
	return &Event{Type: EventInvoke, Invocation: c.inv, Deadline: c.deadline, Nonce: uuid.NewString()}
}

// answer gives the caller its result. Calls after the first have no effect.
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

// openStream gives the caller a stream for an answer that has begun.
func (c *invocation) openStream(contentType string, limits StreamLimits) {
	c.stream = newStream(c.msg.left, limits)
	c.msg.answer(&Result{Stream: c.stream, ContentType: contentType, Done: c.over.done, over: c.over})
}

// refuse gives the caller an error instead of a result. If the caller has a stream, the
// stream ends with a failure (RT-73).
func (c *invocation) refuse(err error) {
	if c.stream != nil {
		c.answer(failure(errSandboxFailure, "RequestId: "+c.inv.ID+" Error: the sandbox ended before the response was complete"))
		return
	}
	c.result = &Result{Done: c.over.done} // marks the invocation as answered
	c.msg.refuse(err)
}

// timeOut answers an invocation that has passed its limit, and returns the record for it.
func (c *invocation) timeOut(limit time.Duration) *telemetry.TimedOut {
	t := &telemetry.TimedOut{RequestID: c.inv.ID, Timeout: limit}
	errorType := errSandboxTimedout
	if c.stream != nil {
		errorType = errSandboxTimeout // FE-14
	}
	c.answer(failure(errorType, "RequestId: "+c.inv.ID+" Error: "+t.Message()))
	return t
}

// complete gives the caller what the runtime has posted. limit is the largest body of an
// answer that is not streamed. A returned refusal is for the runtime; the caller is answered
// all the same.
func (c *invocation) complete(a *Answer, limit int64) *Refusal {
	c.noteTimes(a)
	switch {
	case a.TooLarge:
		if c.stream != nil {
			limit = c.stream.limits.Bytes
		}
		f := &Fault{errResponseTooLarge, fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit)}
		r := failure(f.Type, f.Message) // without the request id
		r.fault = f
		c.answer(r)
		return &Refusal{Type: RequestEntityTooLarge, Message: fmt.Sprintf("Exceeded maximum allowed payload size (%d bytes).", limit)}
	case a.Truncated:
		c.cut = faultResult(c.inv.ID, &Fault{errTruncated, "HTTP request detected as truncated"})
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

// noteTimes records the size and the times of an answer (TL-45).
func (c *invocation) noteTimes(a *Answer) {
	c.produced, c.lastByte = a.Seen, a.Last
	if !a.First.IsZero() {
		c.firstByte = a.First
	}
	if c.lastByte.IsZero() {
		c.lastByte = time.Now()
	}
}

// spans returns the spans of TL-45 that both modes have, or nil if there was no answer.
func (c *invocation) spans() []telemetry.Span {
	if c.firstByte.IsZero() || c.lastByte.IsZero() {
		return nil
	}
	return append(make([]telemetry.Span, 0, 3),
		span("responseLatency", c.released, c.firstByte),
		span("responseDuration", c.firstByte, c.lastByte))
}

func span(name string, from, to time.Time) telemetry.Span {
	return telemetry.Span{Name: name, Start: telemetry.Timestamp(from), Duration: telemetry.Millis(to.Sub(from))}
}

// reportStart writes START.
func (s *Sandbox) reportStart(c *invocation) {
	s.log.Platform(&telemetry.Start{RequestID: c.inv.ID, Version: s.cfg.Function.Version, Tracing: telemetry.NewTracing(c.inv.TraceID),
		TenantID: c.inv.TenantID, FunctionARN: s.recordARN()})
}

// recordARN returns the ARN for records of managed mode (TL-32, TL-35), else "".
func (s *Sandbox) recordARN() string {
	if s.traits.recordARN {
		return s.cfg.Function.ARN
	}
	return ""
}

// maxMemoryMB returns the most memory of the sandbox in MB, at most its size (LOG-26).
func (s *Sandbox) maxMemoryMB() int {
	peak, err := s.sup.MemoryUsed()
	if err != nil { // the domains are gone, most likely because memory ran out
		return s.cfg.Function.MemoryMB
	}
	const mb = 1 << 20
	return min(int((peak+mb-1)/mb), s.cfg.Function.MemoryMB)
}
