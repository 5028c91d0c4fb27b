package api

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// handler handles the requests of one sandbox.
type handler struct{ s *rapid.Sandbox }

// request is one request with its response writer.
type request struct {
	http.ResponseWriter
	*http.Request
	sandbox *rapid.Sandbox
	client  *rapid.Client
	arrival arrival // of the body of an answer
}

func (r *request) ctx() context.Context { return r.Request.Context() }

const (
	runtimeBase   = "/2018-06-01/"
	extensionBase = "/2020-01-01/extension/"
	telemetryPath = "/2022-07-01/telemetry"
	logsPath      = "/2020-08-15/logs"

	credentialsPath = "/2021-04-23/credentials"
)

// ServeHTTP dispatches to the endpoint. It compares paths as they are, without cleaning or
// redirecting them.
func (h *handler) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	c := connOf(hr)
	if c == nil {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	r := &request{ResponseWriter: w, Request: hr, sandbox: h.s, client: c.client}
	path := hr.URL.Path
	if c.foreign != nil && (strings.HasPrefix(path, runtimeBase+"runtime/") || path == credentialsPath) {
		r.refuse(&rapid.Refusal{Type: rapid.NotTheRuntime, Message: "This path is for the function's runtime alone: " + c.foreign.Error()})
		return
	}
	if rest, ok := strings.CutPrefix(path, runtimeBase); ok {
		h.runtimePath(r, rest)
		return
	}
	if path == credentialsPath && h.s.SnapStart() {
		h.method(r, http.MethodGet, credentials)
		return
	}
	if !h.s.ExtensionsDisabled() { // EX-05
		if rest, ok := strings.CutPrefix(path, extensionBase); ok {
			h.extensionPath(r, rest)
			return
		}
		switch strings.TrimSuffix(path, "/") {
		case telemetryPath:
			h.method(r, http.MethodPut, subscribe(telemetry.TelemetryAPI))
			return
		case logsPath:
			if h.s.Rules().LogsAPI {
				h.method(r, http.MethodPut, subscribe(telemetry.LogsAPI))
				return
			}
		}
	}
	w.WriteHeader(http.StatusNotFound) // RT-09
}

func (h *handler) runtimePath(r *request, path string) {
	switch path {
	case "runtime/invocation/next":
		h.method(r, http.MethodGet, next)
		return
	case "runtime/init/error":
		h.method(r, http.MethodPost, initError((*rapid.Client).BeginInitError))
		return
	case "ping":
		h.method(r, http.MethodGet, ping)
		return
	}
	if rest, ok := strings.CutPrefix(path, "runtime/restore/"); ok && h.s.SnapStart() {
		switch rest {
		case "next":
			h.method(r, http.MethodGet, restoreNext)
			return
		case "error":
			h.method(r, http.MethodPost, initError((*rapid.Client).BeginRestoreError))
			return
		}
	}
	if rest, ok := strings.CutPrefix(path, "runtime/invocation/"); ok {
		switch id, call, _ := strings.Cut(rest, "/"); call {
		case "response":
			h.method(r, http.MethodPost, answer(id, rapid.AnswerResponse))
			return
		case "error":
			h.method(r, http.MethodPost, answer(id, rapid.AnswerError))
			return
		}
	}
	r.WriteHeader(http.StatusNotFound)
}

func (h *handler) extensionPath(r *request, path string) {
	switch path {
	case "register":
		h.method(r, http.MethodPost, register)
	case "event/next":
		h.method(r, http.MethodGet, nextEvent)
	case "init/error":
		h.method(r, http.MethodPost, failAgent(true))
	case "exit/error":
		h.method(r, http.MethodPost, failAgent(false))
	default:
		r.WriteHeader(http.StatusNotFound)
	}
}

// method calls do if r has the method of the endpoint (RT-09).
func (h *handler) method(r *request, method string, do func(*request) error) {
	if r.Method != method {
		r.Header().Set("Allow", method)
		r.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if method == http.MethodGet && h.s.Rules().EmptyGET && r.ContentLength != 0 { // RT-64
		r.refuse(&rapid.Refusal{Type: rapid.RequestEntityTooLarge, Message: "Exceeded maximum allowed payload size (0 bytes)."})
		return
	}
	if err := do(r); err != nil {
		r.refuse(err)
	}
}

// statuses are the status codes of refusals. Others have status 403.
var statuses = map[rapid.RefusalType]int{
	rapid.InvalidRequestID:            http.StatusBadRequest,
	rapid.InvalidFunctionResponseMode: http.StatusBadRequest,
	rapid.TruncatedHTTPRequest:        http.StatusBadRequest,
	rapid.RequestEntityTooLarge:       http.StatusRequestEntityTooLarge,
	rapid.InvokeTimeout:               http.StatusGone,
	rapid.ValidationError:             http.StatusBadRequest, // TL-09
	rapid.LogsValidationError:         http.StatusBadRequest,
}

// refuse responds with the error of a call. If the caller's generation is gone, refuse closes
// the connection instead (RT-59).
func (r *request) refuse(err error) {
	var refusal *rapid.Refusal
	switch {
	case errors.As(err, &refusal):
		status, ok := statuses[refusal.Type]
		if !ok {
			status = http.StatusForbidden
		}
		r.json(status, map[string]string{"errorMessage": refusal.Message, "errorType": string(refusal.Type)})
	case errors.Is(err, rapid.ErrClosed), r.ctx().Err() != nil:
		_ = connOf(r.Request).Close() // no client is left to respond to
	default:
		r.json(http.StatusInternalServerError, map[string]string{"errorMessage": "Internal Server Error", "errorType": "InternalServerError"})
	}
}

// json responds with v and a newline (RT-06).
func (r *request) json(status int, v any) {
	body, err := json.Marshal(v)
	if err != nil { // maps of strings and plain structs cannot fail
		r.WriteHeader(http.StatusInternalServerError)
		return
	}
	r.send(status, "application/json", append(body, '\n'))
}

func (r *request) send(status int, contentType string, body []byte) {
	r.Header().Set("Content-Type", contentType)
	r.WriteHeader(status)
	_, _ = r.Write(body) // fails only if the client has gone
}

// Header returns the header of the response. The request's is Request.Header.
func (r *request) Header() http.Header { return r.ResponseWriter.Header() }

// Write writes to the response.
func (r *request) Write(p []byte) (int, error) { return r.ResponseWriter.Write(p) }

// get returns a header of the request; an empty one counts as absent (RT-10).
func (r *request) get(name string) string { return r.Request.Header.Get(name) }

var accepted = []byte("{\"status\":\"OK\"}\n")

// accept responds to an accepted POST (RT-07).
func (r *request) accept() { r.send(http.StatusAccepted, "application/json", accepted) }

func ping(r *request) error {
	r.send(http.StatusOK, "text/plain", []byte("pong")) // RT-08
	return nil
}

// body reads the request's body, up to limit bytes. If there are more, tooLarge is true, and
// seen is how many arrived. truncated reports whether the body ended before its announced
// length.
func (r *request) body(limit int64) (b []byte, seen int64, tooLarge, truncated bool) {
	var err error
	if n := r.ContentLength; n >= 0 && n <= limit {
		b = make([]byte, n)
		var got int
		got, err = io.ReadFull(r.Body, b)
		b, seen = b[:got], int64(got)
		if err == nil { // reading the end of the body also reads the trailers
			_, err = io.ReadFull(r.Body, make([]byte, 1))
			if errors.Is(err, io.EOF) {
				err = nil
			}
		}
	} else if n > limit { // too large, unless truncated: do not keep it in memory
		seen, err = io.Copy(io.Discard, io.LimitReader(r.Body, limit+1+maxDiscard))
		return nil, seen, seen > limit, seen <= limit && err != nil
	} else {
		b, err = io.ReadAll(io.LimitReader(r.Body, limit+1))
		seen = int64(len(b))
		if seen > limit {
			return nil, seen + r.discard(), true, false
		}
	}
	return b, seen, false, err != nil
}

// discard reads the rest of a body that is too large, because many clients read the response
// only after they have sent everything. It returns the number of bytes read.
func (r *request) discard() int64 {
	n, _ := io.Copy(io.Discard, io.LimitReader(r.Body, maxDiscard)) // the response does not depend on the rest
	return n
}

// maxDiscard is the most bytes that are read and discarded of a body that is too large.
const maxDiscard = 64 << 20
