package invoke

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// An operation of the Lambda API.
type operation int

const (
	invoke       operation = iota // INV-01
	invokeAsync                   // INV-34
	invokeStream                  // INV-28
)

var paths = []struct {
	prefix, suffix string
	op             operation
}{
	{"/2015-03-31/functions/", "/invocations", invoke},
	{"/2014-11-13/functions/", "/invoke-async/", invokeAsync},
	{"/2014-11-13/functions/", "/invoke-async", invokeAsync},
	{"/2021-11-15/functions/", "/response-streaming-invocations", invokeStream},
}

// route returns the operation and the function's name, still URL-encoded.
func route(r *http.Request) (operation, string, *refusal) {
	path := r.URL.EscapedPath()
	for _, p := range paths {
		rest, ok := strings.CutPrefix(path, p.prefix)
		if !ok {
			continue
		}
		name, ok := strings.CutSuffix(rest, p.suffix)
		if !ok || name == "" || strings.Contains(name, "/") {
			continue
		}
		if r.Method != http.MethodPost {
			return 0, "", errMethod
		}
		return p.op, name, nil
	}
	return 0, "", errUnknownPath
}

// A kind is an invocation type (INV-02), with the name that the API uses.
type kind string

const (
	requestResponse kind = "RequestResponse"
	event           kind = "Event"
	dryRun          kind = "DryRun"
)

// limit returns the largest payload in bytes (INV-08).
func (k kind) limit() int {
	if k == event {
		return 1 << 20
	}
	return 6 << 20
}

// A request is an invocation request without its body.
type request struct {
	kind          kind
	legacy        bool   // invoke-async
	stream        bool   // InvokeWithResponseStream
	tail          bool   // the response has the tail of the log
	name          string // of the function
	qualifier     string // "" if the request has none
	arn           string // as invoked
	version       string // version that has run the invocation
	clientContext string // decoded
	traceID       string // "" if the request has none
	tenant        string // "" without tenant isolation
}

// Limits of header values.
const (
	maxClientContext = 3583 // base64 characters (INV-04)
	maxTenantID      = 256  // INV-05
	maxTraceID       = 512  // a CHOICE: root, parent, sampled and a lineage are less than 200
)

// parse parses and checks a request, except for its body. The error is a *refusal, or one of
// Functions.Find.
func (s *Server) parse(r *http.Request, op operation, t *target) (req request, err error) {
	h := r.Header
	if v := h.Get("Content-Encoding"); v != "" && v != "identity" {
		return req, &refusal{status: http.StatusUnsupportedMediaType, name: "UnsupportedMediaTypeException",
			text: "The request body has the content encoding " + v + ". Send plain JSON."}
	}
	if s.cfg.NoEvents && (op == invokeAsync || h.Get("X-Amz-Invocation-Type") == string(event)) {
		return req, errNoEvents
	}
	fn, err := s.resolve(r.Context(), &req, t)
	if err != nil {
		return req, err
	}
	req.tenant = h.Get("X-Amz-Tenant-Id")
	switch n := len(req.tenant); { // INV-05
	case !fn.Tenants && n > 0:
		return req, badParameter("The function is not configured with tenant isolation: remove X-Amz-Tenant-Id.")
	case fn.Tenants && n == 0:
		return req, badParameter("The function is configured with tenant isolation: X-Amz-Tenant-Id is missing.")
	case n > maxTenantID:
		return req, badParameter(fmt.Sprintf("X-Amz-Tenant-Id has more than %d characters.", maxTenantID))
	}
	if v := h.Get("X-Amzn-Trace-Id"); len(v) <= maxTraceID {
		req.traceID = v
	}
	if op == invokeAsync {
		req.kind, req.legacy = event, true
		return req, nil
	}
	req.stream = op == invokeStream
	switch k := kind(h.Get("X-Amz-Invocation-Type")); {
	case k == "":
		req.kind = requestResponse
	case k == requestResponse, k == dryRun, k == event && !req.stream:
		req.kind = k
	case req.stream: // INV-28
		return req, badParameter("X-Amz-Invocation-Type must be RequestResponse or DryRun.")
	default:
		return req, badParameter("X-Amz-Invocation-Type must be RequestResponse, Event or DryRun.")
	}
	switch h.Get("X-Amz-Log-Type") {
	case "", "None":
	case "Tail":
		req.tail = req.kind == requestResponse
	default:
		return req, badParameter("X-Amz-Log-Type must be None or Tail.")
	}
	if req.kind != event { // INV-04: not passed for Event
		var bad *refusal
		if req.clientContext, bad = decodeClientContext(h.Get("X-Amz-Client-Context")); bad != nil {
			return req, bad
		}
	}
	return req, nil
}

// decodeClientContext returns the JSON of INV-04 on one line, because it becomes the value of
// a header (RT-17).
func decodeClientContext(v string) (string, *refusal) {
	if v == "" {
		return "", nil
	}
	if len(v) > maxClientContext {
		return "", badContent("The client context has more than 3583 bytes.")
	}
	decoded, err := base64.StdEncoding.DecodeString(v)
	if err != nil {
		return "", badContent("The client context is not valid base64: " + err.Error() + ".")
	}
	if !json.Valid(decoded) {
		return "", badContent("The client context is not base64 of JSON.")
	}
	if bytes.ContainsAny(decoded, "\r\n") { // between tokens only: strings hold none
		var line bytes.Buffer
		if err := json.Compact(&line, decoded); err != nil {
			return "", badContent("The client context is not base64 of JSON.")
		}
		decoded = line.Bytes()
	}
	return string(decoded), nil
}
