package invoke

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/invoke/httpevent"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxCollected is the most bytes of a streamed answer that is read to its end before it is
// written: as many as a buffered answer may have (RT-34).
const maxCollected = 6<<20 + 100

// webAnswer is the HTTP response to one request of a Web.
type webAnswer struct {
	h        *webHandler
	w        http.ResponseWriter
	conn     *http.ResponseController
	id       string        // of the request
	head     bool          // the request is HEAD
	patience time.Duration // for the client to read what is written

	begun bool  // status and headers are written
	ended bool  // the whole response is written
	gone  error // the client has gone, or does not read
}

// write writes the response that the result describes (INV-46 to INV-53).
func (a *webAnswer) write(res *rapid.Result) {
	integration := res.ContentType == httpevent.IntegrationResponse
	switch {
	case res.FunctionError:
		a.fail(nil) // its log says why
	case res.Stream == nil && integration:
		a.withPrelude(func(yield func([]byte) bool) { yield(res.Payload) }, nil)
	case res.Stream == nil && a.h.web.Mode == ResponseStream: // INV-52: no format of its own
		a.whole(&httpevent.Response{Status: http.StatusOK, Header: contentType(res.ContentType), Body: res.Payload}, nil)
	case res.Stream == nil:
		a.whole(httpevent.ParseResponse(res.Payload))
	case integration:
		a.withPrelude(res.Stream.Chunks(), res.Stream)
	case a.h.web.Mode != ResponseStream && isJSON(res.ContentType):
		a.collect(res.Stream)
	default:
		a.begin(&httpevent.Response{Status: http.StatusOK, Header: contentType(res.ContentType)}, false)
		for chunk := range res.Stream.Chunks() {
			a.send(chunk)
		}
		a.finish(res.Stream, nil)
	}
}

// isJSON reports whether a streamed answer may be one in payload format 2.0: aws-lambda-go
// sends every answer as a stream (RT-69).
func isJSON(contentType string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	return kind == "" || kind == "application/json"
}

// contentType returns the headers of an answer that gives nothing but its content type.
func contentType(t string) http.Header {
	return http.Header{"Content-Type": {cmp.Or(t, httpevent.StreamType)}}
}

// fail responds that the function has failed (INV-50). The reason is for the log: the client
// learns nothing of the function.
func (a *webAnswer) fail(reason error) {
	if reason != nil {
		a.h.cfg.OnError(fmt.Errorf("request %s: the function's answer is no HTTP response: %w", a.id, reason))
	}
	a.whole(&httpevent.Response{Status: http.StatusBadGateway, Header: contentType("application/json"), Body: []byte("Internal Server Error")}, nil)
}

// whole writes a response whose body is complete.
func (a *webAnswer) whole(r *httpevent.Response, err error) {
	if err != nil {
		a.fail(err)
		return
	}
	a.ended = true
	if n := int64(len(r.Body)); a.h.buffered.take(n) {
		defer a.h.buffered.give(n)
	} else {
		a.patience = min(a.patience, overBudgetTimeout)
	}
	if bodyAllowed(r.Status) && (!a.head || r.Length == "") {
		r.Length = strconv.Itoa(len(r.Body))
	}
	if bodyAllowed(r.Status) {
		r.Header.Set("Content-Length", r.Length)
	}
	a.begin(r, true)
	if bodyAllowed(r.Status) {
		_, _ = a.w.Write(r.Body) // fails only if the client has gone
	}
}

// bodyAllowed reports whether a response with that status, of those that a function may
// give, has a body (RFC 9110, section 6.4.1).
func bodyAllowed(status int) bool {
	return status != http.StatusNoContent && status != http.StatusNotModified
}

// begin writes status and headers; if the body is not complete, at once.
func (a *webAnswer) begin(r *httpevent.Response, complete bool) {
	a.begun = true
	h := a.w.Header()
	for name, values := range r.Header {
		if h[name] == nil { // those of the front stay
			h[name] = values
		}
	}
	_ = a.conn.SetWriteDeadline(time.Now().Add(a.patience)) // if it fails, the write fails too
	a.w.WriteHeader(r.Status)
	if !complete {
		a.gone = a.conn.Flush()
	}
}

// send writes a part of a streamed body. After the first one that the client does not take
// in time it writes nothing more; the caller goes on reading, so that the function is not
// blocked.
func (a *webAnswer) send(chunk []byte) {
	if a.gone != nil || len(chunk) == 0 {
		return
	}
	_ = a.conn.SetWriteDeadline(time.Now().Add(a.patience))
	if _, a.gone = a.w.Write(chunk); a.gone == nil {
		a.gone = a.conn.Flush()
	} else if errors.Is(a.gone, http.ErrBodyNotAllowed) {
		a.gone = nil
	}
}

// withPrelude writes an answer that begins with a prelude (INV-51). s is its stream, or nil
// if the answer is complete.
func (a *webAnswer) withPrelude(chunks iter.Seq[[]byte], s *rapid.Stream) {
	var prelude httpevent.Prelude
	for chunk := range chunks {
		if a.begun {
			a.send(chunk)
			continue
		}
		r, rest, err := prelude.Add(chunk)
		if err != nil {
			a.fail(err)
			break // Chunks reads the rest
		}
		if r != nil {
			a.begin(r, false)
			a.send(rest)
		}
	}
	var bad error
	if !prelude.Empty() {
		bad = errors.New("it ends before its prelude does")
	}
	a.finish(s, bad)
}

// finish ends a streamed response. bad says why there is none yet. If the answer has failed,
// the client must not take what it has for all of it, so the connection is closed in the
// middle of the response (INV-53).
func (a *webAnswer) finish(s *rapid.Stream, bad error) {
	failed := s != nil && s.Result().FunctionError
	switch {
	case a.ended:
	case failed && !a.begun:
		a.fail(nil)
	case !a.begun && bad != nil:
		a.fail(bad)
	case !a.begun: // an answer without a byte
		a.whole(&httpevent.Response{Status: http.StatusOK, Header: contentType("")}, nil)
	case failed, a.gone != nil:
		panic(http.ErrAbortHandler)
	}
}

// collect writes an answer that arrives in pieces but is to be read as a whole.
func (a *webAnswer) collect(s *rapid.Stream) {
	var answer []byte
	var held int64
	defer func() { a.h.buffered.give(held) }()
	var bad error
	for chunk := range s.Chunks() {
		if bad != nil {
			continue
		}
		if need := len(answer) + len(chunk); need > cap(answer) {
			size := min(max(2*cap(answer), need), maxCollected)
			switch grown := int64(size - cap(answer)); {
			case need > maxCollected:
				bad = fmt.Errorf("it has more than %d bytes", maxCollected)
				continue
			case !a.h.buffered.take(grown):
				bad = errNoBuffer
				continue
			default:
				held += grown
			}
			answer = append(make([]byte, 0, size), answer...)
		}
		answer = append(answer, chunk...)
	}
	switch {
	case s.Result().FunctionError:
		a.fail(nil)
	case bad != nil:
		a.fail(bad)
	default:
		a.whole(httpevent.ParseResponse(answer))
	}
}
