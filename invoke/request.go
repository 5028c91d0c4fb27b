package invoke

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
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

// parse parses and checks a request, except for its body.
func (s *Server) parse(r *http.Request, op operation, name string) (req request, err *refusal) {
	h := r.Header
	if v := h.Get("Content-Encoding"); v != "" && v != "identity" {
		return req, &refusal{status: http.StatusUnsupportedMediaType, name: "UnsupportedMediaTypeException",
			text: "The request body has the content encoding " + v + ". Send plain JSON."}
	}
	fn, err := s.resolve(&req, name, r.URL)
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
		req.clientContext, err = decodeClientContext(h.Get("X-Amz-Client-Context"))
	}
	return req, err
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

// resolve finds the function of a request (INV-01, INV-19), and sets name and arn of req.
// encoded is a name, name:qualifier, account:function:name[:qualifier] or an ARN; the query may
// have a qualifier too.
func (s *Server) resolve(req *request, encoded string, u *url.URL) (Function, *refusal) {
	if u.RawQuery == "" { // the usual case
		if fn, ok := s.cfg.Functions.Find(encoded); ok {
			req.name, req.arn = encoded, fn.ARN
			return fn, nil
		}
	}
	full, err := url.PathUnescape(encoded)
	parts := strings.Split(full, ":")
	account := "arn:aws:lambda:" + s.cfg.Region + ":"
	base := account + s.cfg.AccountID
	prefix := base
	var rest []string
	switch {
	case err != nil:
	case len(parts) <= 2:
		rest = parts
	case len(parts) <= 4 && parts[1] == "function":
		prefix = account + parts[0]
		rest = parts[2:]
	case (len(parts) == 7 || len(parts) == 8) && parts[0] == "arn" && parts[2] == "lambda" && parts[5] == "function":
		prefix = strings.Join(parts[:5], ":")
		rest = parts[6:]
	}
	if len(rest) == 0 || !isName(rest[0], 64) || !isPrefix(prefix) {
		return Function{}, badParameter("The function name must be a name of at most 64 letters, digits, - and _, name:qualifier, account:function:name or an ARN.")
	}
	name, qualifier := rest[0], ""
	if u.RawQuery != "" {
		qualifier = u.Query().Get("Qualifier")
	}
	if len(rest) == 2 {
		if qualifier != "" && qualifier != rest[1] {
			return Function{}, badParameter("The qualifier of the function name is not the one of the query.")
		}
		qualifier = rest[1]
		if qualifier == "" {
			return Function{}, badParameter("The qualifier after the function name is empty.")
		}
	}
	if qualifier != "" && qualifier != "$LATEST" && !isName(qualifier, 128) {
		return Function{}, badParameter("The qualifier must be $LATEST or at most 128 letters, digits, - and _.")
	}
	suffix := ""
	if qualifier != "" {
		suffix = ":" + qualifier
	}
	fn, known := s.cfg.Functions.Find(name)
	if prefix != base || !known || qualifier != "" && qualifier != "$LATEST" && qualifier != fn.Version {
		return Function{}, notFound(prefix + ":function:" + name + suffix)
	}
	req.name, req.arn = name, fn.ARN+suffix
	return fn, nil
}

func isName(s string, longest int) bool {
	return s != "" && len(s) <= longest && onlyOf(s, letters+"0123456789-_")
}

// isPrefix reports whether s is valid before ":function:" in an ARN that a response repeats.
func isPrefix(s string) bool {
	return len(s) <= 128 && onlyOf(s, letters+"0123456789-:")
}

const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

func onlyOf(s, set string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return !strings.ContainsRune(set, r) }) < 0
}
