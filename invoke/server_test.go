package invoke

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testARN = "arn:aws:lambda:eu-west-1:012345678912:function:hello"

// A function is what the sandboxes of a test do. The Done of its Result is set for it.
type function func(context.Context, *rapid.Invocation) (*rapid.Result, error)

func (f function) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	res, err := f(ctx, inv)
	if err == nil && res.Done == nil {
		done := make(chan struct{})
		close(done)
		res.Done = done
	}
	return res, err
}
func (f function) ID() string                  { return "test" }
func (f function) State() rapid.State          { return rapid.Idle }
func (f function) Ready() <-chan struct{}      { return nil }
func (f function) Ended() <-chan struct{}      { return nil }
func (f function) Close(context.Context) error { return nil }

func echo(_ context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	return &rapid.Result{Payload: inv.Payload, ContentType: "application/json"}, nil
}

// single is the one function of a test, in a fleet. It is also served as "function".
type single struct {
	Function
	fleet *fleet.Fleet
}

// serves returns Functions that are the one function hello.
func serves(f *fleet.Fleet) *single {
	return &single{Function{ARN: testARN, Version: "$LATEST"}, f}
}

func (s *single) Find(_ context.Context, name, qualifier string) (Function, error) {
	if name != "hello" && name != "function" || qualifier != "" && qualifier != "$LATEST" && qualifier != s.Version {
		return Function{}, ErrNoFunction
	}
	return s.Function, nil
}

func (s *single) Lease(ctx context.Context, _, _, tenant string) (Lease, error) {
	l, err := s.fleet.Reserve(ctx, tenant)
	switch {
	case errors.Is(err, fleet.ErrTooMany):
		return nil, ErrTooMany
	case errors.Is(err, fleet.ErrClosed):
		return nil, ErrClosed
	case err != nil:
		return nil, err
	}
	return singleLease{l}, nil
}

type singleLease struct{ *fleet.Lease }

func (singleLease) Version() string { return "$LATEST" }

func (l singleLease) Invoke(inv *rapid.Invocation) (*rapid.Result, error) {
	res, err := l.Lease.Invoke(inv)
	if errors.Is(err, fleet.ErrClosed) || errors.Is(err, fleet.ErrCutShort) {
		err = fmt.Errorf("%w: %w", ErrClosed, err)
	}
	return res, err
}

// A rig is a server over a fleet of one function, and what its sandboxes got.
type rig struct {
	t    *testing.T
	srv  *Server
	http *httptest.Server
	addr string // of the server by Serve, if newStreamRig made it

	client *tls.Config // of clients of the server by Serve; nil without TLS

	mu   sync.Mutex
	got  []*rapid.Invocation
	errs []error
}

func newRig(t *testing.T, limit int, f function, change func(*Config)) *rig {
	r := &rig{t: t}
	seen := function(func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		r.mu.Lock()
		r.got = append(r.got, inv)
		r.mu.Unlock()
		return f(ctx, inv)
	})
	fl := fleet.New(fleet.Config{Max: limit, New: func(context.Context) (fleet.Sandbox, error) { return seen, nil }})
	one := serves(fl)
	cfg := Config{Functions: one, Region: "eu-west-1", AccountID: "012345678912", OnError: func(err error) {
		r.mu.Lock()
		r.errs = append(r.errs, err)
		r.mu.Unlock()
	}}
	if change != nil {
		change(&cfg)
	}
	if overTLS {
		r.client = secure(t, &cfg)
	}
	r.srv = New(cfg)
	r.http = httptest.NewServer(r.srv)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
		defer cancel()
		_ = one.fleet.Shutdown(ctx) // ends what the test left running
		r.http.Close()
		r.srv.events.Wait()
		if used := r.srv.buffered.used.Load(); used != 0 {
			t.Errorf("%d bytes of the body budget are not given back", used)
		}
	})
	return r
}

// A call is one request of a test; path "" is Invoke of hello.
type call struct {
	method, path, body string
	header             map[string]string
	chunked            bool
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (r *rig) do(c call) answer {
	r.t.Helper()
	if c.method == "" {
		c.method = http.MethodPost
	}
	if c.path == "" {
		c.path = "/2015-03-31/functions/hello/invocations"
	}
	var body io.Reader = strings.NewReader(c.body)
	if c.chunked {
		body = io.MultiReader(body)
	}
	req, err := http.NewRequest(c.method, r.http.URL+c.path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for k, v := range c.header {
		req.Header.Set(k, v)
	}
	res, err := r.http.Client().Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header, string(b)}
}

func (r *rig) invocations() []*rapid.Invocation {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got
}

func (r *rig) errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.errs
}

// The refusals of the table of section 5.2 in the form of INV-16.
func TestRefusals(t *testing.T) {
	const mb = 1 << 20
	long := func(n int) string { return `"` + strings.Repeat("x", n-2) + `"` }
	lower := func(typ, text string) string { return fmt.Sprintf(`{"Type":%q,"message":%q}`, typ, text) }
	upper := func(typ, text string) string { return fmt.Sprintf(`{"Type":%q,"Message":%q}`, typ, text) }
	h := func(kv ...string) map[string]string { return map[string]string{kv[0]: kv[1]} }
	tests := []struct {
		name   string // with its spec id
		call   call
		status int
		etype  string
		body   string // the whole, or a prefix that ends in …
	}{
		{"INV-02 type", call{header: h("X-Amz-Invocation-Type", "event")}, 400, "InvalidParameterValueException", lower("User", "X-Amz-Invocation-Type must be RequestResponse, Event or DryRun.")},
		{"INV-03 log type", call{header: h("X-Amz-Log-Type", "tail")}, 400, "InvalidParameterValueException", lower("User", "X-Amz-Log-Type must be None or Tail.")},
		{"INV-04 base64", call{header: h("X-Amz-Client-Context", "{}")}, 400, "InvalidRequestContentException", `{"Type":"User","message":"The client context is not valid base64…`},
		{"INV-04 JSON", call{header: h("X-Amz-Client-Context", "eA==")}, 400, "InvalidRequestContentException", lower("User", "The client context is not base64 of JSON.")},
		{"INV-04 size", call{header: h("X-Amz-Client-Context", strings.Repeat("e", 3584))}, 400, "InvalidRequestContentException", lower("User", "The client context has more than 3583 bytes.")},
		{"INV-05 tenant", call{header: h("X-Amz-Tenant-Id", "blue")}, 400, "InvalidParameterValueException", `{"Type":"User","message":"The function is not configured with tenant isolation…`},
		{"INV-07 id", call{header: h("X-Amzn-RequestId", "1234")}, 400, "InvalidRequestContentException", lower("User", "The proposed x-amzn-RequestId is not a UUID.")},
		{"INV-08 sync", call{body: long(6*mb + 1)}, 413, "RequestTooLargeException", lower("User", "6291457 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)")},
		{"INV-08 sync chunked", call{body: long(7 * mb), chunked: true}, 413, "RequestTooLargeException", lower("User", "7340032 byte payload is too large for the RequestResponse invocation type (limit 6291456 bytes)")},
		{"INV-08 async", call{body: long(mb + 1), header: h("X-Amz-Invocation-Type", "Event")}, 413, "RequestTooLargeException", lower("User", "1048577 byte payload is too large for the Event invocation type (limit 1048576 bytes)")},
		{"INV-09", call{body: "hello"}, 400, "InvalidRequestContentException", `{"Type":"User","message":"Could not parse request body into json: Could not parse payload into json: …`},
		{"INV-09 cut short", call{body: `{"a":`}, 400, "InvalidRequestContentException", `{"Type":"User","message":"Could not parse request body into json: Could not parse payload into json: …`},
		{"INV-09 not UTF-8", call{body: "{\"a\":\"b\xc3(\"}"}, 400, "InvalidRequestContentException", `{"Type":"User","message":"Could not parse request body into json: Could not parse payload into json: …`},
		{"INV-09 event", call{body: "hello", header: h("X-Amz-Invocation-Type", "Event")}, 400, "InvalidRequestContentException", `{"Type":"User","message":"Could not parse request body into json: Could not parse payload into json: …`},
		{"INV-28 Event", call{path: "/2021-11-15/functions/hello/response-streaming-invocations", header: map[string]string{"X-Amz-Invocation-Type": "Event"}}, 400, "InvalidParameterValueException", `{"Type":"User","message":"X-Amz-Invocation-Type must be RequestResponse or DryRun."}`},
		{"INV-19", call{path: "/2015-03-31/functions/nope/invocations"}, 404, "ResourceNotFoundException", upper("User", "Function not found: arn:aws:lambda:eu-west-1:012345678912:function:nope:$LATEST")},
		{"INV-19 async", call{path: "/2014-11-13/functions/nope/invoke-async/"}, 404, "ResourceNotFoundException", upper("User", "Function not found: arn:aws:lambda:eu-west-1:012345678912:function:nope:$LATEST")},
		{"INV-22 media", call{header: h("Content-Encoding", "gzip")}, 415, "UnsupportedMediaTypeException", `{"Type":"User","message":"The request body has the content encoding gzip…`},
		{"path", call{path: "/"}, 404, "UnknownOperationException", `{"Type":"User","Message":"No operation…`},
		{"path of a control plane", call{path: "/2015-03-31/functions/hello"}, 404, "UnknownOperationException", `{"Type":"User","Message":"No operation…`},
		{"path below", call{path: "/2015-03-31/functions/hello/x/invocations"}, 404, "UnknownOperationException", `{"Type":"User","Message":"No operation…`},
		{"method", call{method: "PUT"}, 405, "MethodNotAllowedException", `{"Type":"User","Message":"This operation takes POST only…`},
		{"other page", call{header: h("Origin", "http://evil.example")}, 403, "AccessDeniedException", `{"Type":"User","Message":"Requests of web pages…`},
	}
	r := newRig(t, 1, echo, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := r.do(tt.call)
			if a.status != tt.status || a.header.Get("X-Amzn-ErrorType") != tt.etype {
				t.Errorf("%d %s, want %d %s", a.status, a.header.Get("X-Amzn-ErrorType"), tt.status, tt.etype)
			}
			if prefix, ok := strings.CutSuffix(tt.body, "…"); !(ok && strings.HasPrefix(a.body, prefix) || a.body == tt.body) {
				t.Errorf("body %s, want %s", a.body, tt.body)
			}
			if a.header.Get("Content-Type") != "application/json" || !isUUID(a.header.Get("X-Amzn-RequestId")) {
				t.Errorf("headers %v: want JSON and a request id", a.header)
			}
		})
	}
	if n := len(r.invocations()); n != 0 {
		t.Errorf("%d refused requests were run", n)
	}
}

// What the sandbox gets of a request.
func TestInvocation(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	const id = "8f5C2c1e-0000-4000-8000-00000000000a"
	clientContext := base64.StdEncoding.EncodeToString([]byte("{\n \"custom\": {\"a\": \"b c\"}\r\n}"))
	a := r.do(call{body: `{"x":1}`, header: map[string]string{
		"X-Amzn-RequestId": id, "X-Amz-Client-Context": clientContext,
		"X-Amzn-Trace-Id": "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1",
	}})
	inv := r.invocations()[0]
	if a.status != 200 || a.body != `{"x":1}` || a.header.Get("X-Amzn-RequestId") != id {
		t.Errorf("%+v: want the body back under the proposed id (INV-07)", a)
	}
	if inv.ID != id || string(inv.Payload) != `{"x":1}` ||
		inv.ClientContext != `{"custom":{"a":"b c"}}` || !strings.HasSuffix(inv.TraceID, "Sampled=1") || inv.FunctionARN != testARN {
		t.Errorf("the sandbox got %+v", inv)
	}
	if age := time.Since(inv.Arrived); age < 0 || age > time.Minute {
		t.Errorf("arrived %v ago", age)
	}

	a = r.do(call{})
	inv = r.invocations()[1]
	if string(inv.Payload) != "{}" || inv.ClientContext != "" { // INV-09
		t.Errorf("of an empty request the sandbox got %+v", inv)
	}
	if !isUUID(inv.ID) || inv.ID == id || a.header.Get("X-Amzn-RequestId") != inv.ID { // INV-06
		t.Errorf("id %q, header %q: want one new UUID", inv.ID, a.header.Get("X-Amzn-RequestId"))
	}
	var epoch, root uint64
	if n, err := fmt.Sscanf(inv.TraceID, "Root=1-%08x-%016x", &epoch, &root); n != 2 || err != nil {
		t.Errorf("trace id %q: %v", inv.TraceID, err)
	}
	if _, rest, _ := strings.Cut(inv.TraceID, ";"); len(rest) != len("Parent=0123456789abcdef;Sampled=0") {
		t.Errorf("trace id %q: want a parent and Sampled=0", inv.TraceID)
	}
	if d := time.Now().Unix() - int64(epoch); d < 0 || d > 60 || root == 0 {
		t.Errorf("trace id %q is of another time", inv.TraceID)
	}

	exact := `"` + strings.Repeat("x", 6<<20-2) + `"` // INV-08: the limit itself passes
	for _, chunked := range []bool{false, true} {
		if a = r.do(call{body: exact, chunked: chunked}); a.status != 200 || a.body != exact {
			t.Errorf("6 MiB, chunked %v: status %d, %d bytes", chunked, a.status, len(a.body))
		}
	}
}

// INV-06, INV-10 to INV-14, RT-31: what the caller gets of a result.
func TestAnswers(t *testing.T) {
	died := `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: x Error: Runtime exited with error: exit status 1"}`
	tests := []struct {
		name     string
		result   rapid.Result
		wantType []string
		wantFE   string
	}{
		{"success", rapid.Result{Payload: []byte(`{"a":1}`), ContentType: "application/json"}, []string{"application/json"}, ""},
		{"RT-31 other type, not JSON", rapid.Result{Payload: []byte("<p>"), ContentType: "text/html"}, []string{"text/html"}, ""},
		{"RT-31 no type", rapid.Result{Payload: []byte("<html>")}, nil, ""},
		{"empty", rapid.Result{}, nil, ""},
		{"INV-11 posted error", rapid.Result{Payload: []byte(`odd`), ContentType: "text/plain", FunctionError: true}, []string{"text/plain"}, "Unhandled"},
		{"INV-12 died", rapid.Result{Payload: []byte(died), FunctionError: true, ErrorType: "Runtime.ExitError"}, []string{"application/json"}, "Unhandled"},
		{"hostile type", rapid.Result{Payload: []byte(`1`), ContentType: "a/b\r\nX-Amz-Log-Result: eA=="}, []string{"a/b  X-Amz-Log-Result: eA=="}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) { return &tt.result, nil }, nil)
			a := r.do(call{})
			if a.status != 200 || a.body != string(tt.result.Payload) {
				t.Errorf("%d %q, want 200 %q", a.status, a.body, tt.result.Payload)
			}
			if fmt.Sprint(a.header["Content-Type"]) != fmt.Sprint(tt.wantType) || a.header.Get("X-Amz-Function-Error") != tt.wantFE {
				t.Errorf("headers %v, want Content-Type %q and function error %q", a.header, tt.wantType, tt.wantFE)
			}
			if a.header.Get("X-Amz-Executed-Version") != "$LATEST" || len(a.header["X-Amz-Log-Result"]) != 0 || len(a.header["X-Amzn-Errortype"]) != 0 {
				t.Errorf("headers %v", a.header)
			}
		})
	}
}

// INV-02: DryRun checks and runs nothing.
func TestDryRun(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	a := r.do(call{body: "{}", header: map[string]string{"X-Amz-Invocation-Type": "DryRun"}})
	if a.status != 204 || a.body != "" || len(r.invocations()) != 0 {
		t.Errorf("%d %q, %d invocations", a.status, a.body, len(r.invocations()))
	}
}

// INV-02, INV-34: Event is answered at once and runs in the background; above the
// limit it is 429, like any other.
func TestEvent(t *testing.T) {
	for _, tt := range []struct {
		name, path, want string
		header           map[string]string
	}{
		{"Event", "", "", map[string]string{"X-Amz-Invocation-Type": "Event", "X-Amz-Client-Context": "not base64", "X-Amz-Log-Type": "Tail"}},
		{"invoke-async", "/2014-11-13/functions/hello/invoke-async/", `{"Status":202}`, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			started, finish := make(chan struct{}), make(chan struct{})
			r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
				close(started)
				<-finish
				return echo(ctx, inv)
			}, nil)
			a := r.do(call{path: tt.path, body: `{"e":1}`, header: tt.header})
			if a.status != 202 || a.body != tt.want || !isUUID(a.header.Get("X-Amzn-RequestId")) {
				t.Errorf("%d %q %v", a.status, a.body, a.header)
			}
			<-started
			if inv := r.invocations()[0]; string(inv.Payload) != `{"e":1}` || inv.ClientContext != "" { // INV-04
				t.Errorf("the sandbox got %+v", inv)
			}
			if a := r.do(call{path: tt.path, header: tt.header}); a.status != 429 {
				t.Errorf("a second one: %d, want 429", a.status)
			}
			close(finish)
		})
	}
}

// An event that has waited longer for its sandbox than a request has time to come and be
// answered is told that it was accepted all the same.
func TestEventThatWaited(t *testing.T) {
	const limit = 50 * time.Millisecond
	busy := make(chan struct{})
	r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) {
		return &rapid.Result{Done: busy}, nil // its extensions, say, have not ended yet
	}, func(c *Config) { c.BodyTimeout, c.WriteTimeout = limit, limit })
	if a := r.do(call{body: "{}"}); a.status != 200 {
		t.Errorf("the first: %d", a.status)
	}
	time.AfterFunc(4*limit, func() { close(busy) })
	if a := r.do(call{body: "{}", header: map[string]string{"X-Amz-Invocation-Type": "Event"}}); a.status != 202 {
		t.Errorf("the event: %d %s", a.status, a.body)
	}
}

// INV-23, INV-26.
func TestTooMany(t *testing.T) {
	started, finish := make(chan struct{}), make(chan struct{})
	r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		close(started)
		<-finish
		return echo(ctx, inv)
	}, nil)
	first := make(chan answer, 1)
	go func() { first <- r.do(call{}) }()
	<-started
	a := r.do(call{})
	want := `{"Reason":"ReservedFunctionConcurrentInvocationLimitExceeded","Type":"User","message":"Rate Exceeded."}`
	if a.status != 429 || a.body != want || a.header.Get("Retry-After") != "1" || a.header.Get("X-Amzn-ErrorType") != "TooManyRequestsException" {
		t.Errorf("%+v, want 429 %s", a, want)
	}
	close(finish)
	if a := <-first; a.status != 200 {
		t.Errorf("the first one: %+v", a)
	}
}

// INV-24: the platform's fault is a 500 that tells the client nothing of the host.
func TestServiceError(t *testing.T) {
	secret := errors.New("mount /var/lib/secret: no space")
	r := newRig(t, 1, nil, func(c *Config) {
		c.Functions.(*single).fleet = fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return nil, secret }})
	})
	a := r.do(call{})
	if a.status != 500 || a.header.Get("X-Amzn-ErrorType") != "ServiceException" || !strings.HasPrefix(a.body, `{"Type":"Service","Message":"`) {
		t.Errorf("%+v, want a ServiceException", a)
	}
	if strings.Contains(a.body, "secret") {
		t.Errorf("%s tells of the host", a.body)
	}
	if errs := r.errors(); len(errs) != 1 || !errors.Is(errs[0], secret) || !strings.Contains(errs[0].Error(), a.header.Get("X-Amzn-RequestId")) {
		t.Errorf("OnError got %v, want the cause with the request id", errs)
	}
	a = r.do(call{header: map[string]string{"X-Amz-Invocation-Type": "Event"}})
	if r.srv.events.Wait(); a.status != 202 || len(r.errors()) != 2 {
		t.Errorf("Event: %d and errors %v, want 202 and the cause told", a.status, r.errors())
	}
	if err := r.srv.cfg.Functions.(*single).fleet.Shutdown(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a = r.do(call{}); a.status != 500 || a.header.Get("X-Amzn-ErrorType") != "ServiceException" {
		t.Errorf("after the fleet's shutdown: %+v", a)
	}
}

// INV-05, RT-19: a function with tenant isolation.
func TestTenants(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) { c.Functions.(*single).Tenants = true })
	for _, tt := range []struct {
		tenant string
		status int
		want   string
	}{
		{"blue", 200, ""},
		{strings.Repeat("x", 256), 200, ""},
		{strings.Repeat("x", 257), 400, "InvalidParameterValueException"},
		{"", 400, "InvalidParameterValueException"},
	} {
		header := map[string]string{}
		if tt.tenant != "" {
			header["X-Amz-Tenant-Id"] = tt.tenant
		}
		a := r.do(call{header: header})
		if a.status != tt.status || !strings.HasPrefix(a.header.Get("X-Amzn-Errortype"), tt.want) {
			t.Errorf("%.10s: %d %s", tt.tenant, a.status, a.body)
		}
		if tt.status == 200 && r.got[len(r.got)-1].TenantID != tt.tenant {
			t.Errorf("the function was told %q, want %q", r.got[len(r.got)-1].TenantID, tt.tenant)
		}
	}
}
