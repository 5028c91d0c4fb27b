package invoke

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/invoke/httpevent"
	"github.com/sandboxd/sandboxd/rapid"
)

// serveWeb serves a front of the function hello on loopback, until the end of the test.
func (r *rig) serveWeb(web Web) (addr string) {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	web.Function = "hello"
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.srv.ServeWeb(ctx, l, web) }()
	r.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			r.t.Errorf("ServeWeb: %v", err)
		}
	})
	return l.Addr().String()
}

// webEvent is what tests look at in an event.
type webEvent struct {
	RawPath, RawQueryString, Body string
	Headers                       map[string]string
	IsBase64Encoded               bool
	RequestContext                struct {
		APIID, DomainName, RequestID string
		HTTP                         struct{ Method, Path, SourceIP string }
	}
}

// ask sends a request and reads the whole response.
func ask(t *testing.T, method, url, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		}
		req.Header.Set(header[i], header[i+1])
	}
	tr := &http.Transport{DisableCompression: true, DisableKeepAlives: true}
	res, err := tr.RoundTrip(req) // follows no redirect
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// answers is a function that answers every event with the same text.
func answers(text string) function {
	return func(context.Context, *rapid.Invocation) (*rapid.Result, error) {
		return &rapid.Result{Payload: []byte(text), ContentType: "application/json"}, nil
	}
}

// INV-40 to INV-45: what the function gets.
func TestWebEvent(t *testing.T) {
	r := newRig(t, 1, answers(`{"statusCode":201,"headers":{"my-header":"a","x-amzn-requestid":"mine"},"cookies":["c=d"],"body":"done"}`), nil)
	addr := r.serveWeb(Web{})
	res, body := ask(t, "PUT", "http://"+addr+"/a%2Fb?c=d", `{"e":1}`, "Content-Type", "application/json", "X-Forwarded-For", "203.0.113.1")
	if res.StatusCode != 201 || body != "done" || res.Header.Get("My-Header") != "a" || res.Header.Get("Set-Cookie") != "c=d" || res.ContentLength != 4 {
		t.Errorf("%d %v %q", res.StatusCode, res.Header, body)
	}
	inv := r.invocations()[0]
	var e webEvent
	if err := json.Unmarshal(inv.Payload, &e); err != nil {
		t.Fatal(err)
	}
	if e.RawPath != "/a%2Fb" || e.RawQueryString != "c=d" || e.Body != `{"e":1}` || e.RequestContext.HTTP.Method != "PUT" || e.RequestContext.APIID != "hello" ||
		e.RequestContext.HTTP.SourceIP != "127.0.0.1" || e.Headers["x-forwarded-for"] != "127.0.0.1" || e.RequestContext.DomainName != addr || "127.0.0.1:"+e.Headers["x-forwarded-port"] != addr {
		t.Errorf("%s", inv.Payload)
	}
	id := res.Header.Get("X-Amzn-Requestid")
	if id != inv.ID || id != e.RequestContext.RequestID || !isUUID(id) || inv.TraceID != e.Headers["x-amzn-trace-id"] || inv.FunctionARN != testARN || !inv.Stream {
		t.Errorf("id %q, %+v", id, inv)
	}
}

// INV-42: a trace id of the client goes on.
func TestWebTraceID(t *testing.T) {
	r := newRig(t, 1, answers(`1`), nil)
	addr := r.serveWeb(Web{})
	const trace = "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1"
	if res, _ := ask(t, "GET", "http://"+addr, "", "X-Amzn-Trace-Id", trace); res.Header.Get("X-Amzn-Trace-Id") != trace || r.invocations()[0].TraceID != trace {
		t.Errorf("%v, %q", res.Header, r.invocations()[0].TraceID)
	}
}

// INV-46 to INV-50: what the client gets.
func TestWebResponses(t *testing.T) {
	for name, tt := range map[string]struct {
		res    rapid.Result
		mode   InvokeMode
		status int
		kind   string
		body   string
		logged string
	}{
		"inferred":               {rapid.Result{Payload: []byte(`{"a": 1}`)}, Auto, 200, "application/json", `{"a":1}`, ""},
		"base64":                 {rapid.Result{Payload: []byte(`{"statusCode":200,"headers":{"content-type":"image/png"},"body":"iVBORw==","isBase64Encoded":true}`)}, Buffered, 200, "image/png", "\x89PNG", ""},
		"function error":         {rapid.Result{Payload: []byte(`{"errorMessage":"secret"}`), FunctionError: true}, Auto, 502, "application/json", "Internal Server Error", ""},
		"no response":            {rapid.Result{Payload: []byte(`<html>`)}, Auto, 502, "application/json", "Internal Server Error", "is not JSON"},
		"wrong status":           {rapid.Result{Payload: []byte(`{"statusCode":99}`)}, Buffered, 502, "application/json", "Internal Server Error", "statusCode 99"},
		"buffered, streamed on":  {rapid.Result{Payload: []byte(`{"statusCode":201,"body":"b"}`), ContentType: "application/json"}, ResponseStream, 200, "application/json", `{"statusCode":201,"body":"b"}`, ""},
		"text, streamed on":      {rapid.Result{Payload: []byte(`<p>`), ContentType: "text/html"}, ResponseStream, 200, "text/html", `<p>`, ""},
		"prelude, not streamed":  {rapid.Result{Payload: []byte("{\"statusCode\":203}\x00\x00\x00\x00\x00\x00\x00\x00hi"), ContentType: httpevent.IntegrationResponse}, Buffered, 203, "application/octet-stream", "hi", ""},
		"prelude without an end": {rapid.Result{Payload: []byte(`{"statusCode":203}`), ContentType: httpevent.IntegrationResponse}, Auto, 502, "application/json", "Internal Server Error", "ends before its prelude"},
		"nothing at all":         {rapid.Result{ContentType: httpevent.IntegrationResponse}, Auto, 200, "application/octet-stream", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) { res := tt.res; return &res, nil }, nil)
			res, body := ask(t, "GET", "http://"+r.serveWeb(Web{Mode: tt.mode}), "")
			if res.StatusCode != tt.status || res.Header.Get("Content-Type") != tt.kind || body != tt.body {
				t.Errorf("%d %v %q; want %d %s %q", res.StatusCode, res.Header, body, tt.status, tt.kind, tt.body)
			}
			if logged := fmt.Sprint(r.errors()); (tt.logged == "") != (logged == "[]") || !strings.Contains(logged, tt.logged) {
				t.Errorf("logged %s, want %q", logged, tt.logged)
			}
		})
	}
}

// INV-49: responses without a body.
func TestWebWithoutBody(t *testing.T) {
	r := newRig(t, 1, func(_ context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		var e webEvent
		if err := json.Unmarshal(inv.Payload, &e); err != nil {
			return nil, err
		}
		return &rapid.Result{Payload: []byte(map[string]string{
			"/head": `{"statusCode":200,"headers":{"content-length":"1234"}}`,
			"/body": `{"statusCode":200,"headers":{"content-length":"1234"},"body":"abc"}`,
			"/204":  `{"statusCode":204,"body":"abc"}`,
			"/304":  `{"statusCode":304,"headers":{"etag":"x"},"body":"abc"}`,
		}[e.RawPath])}, nil
	}, nil)
	addr := r.serveWeb(Web{})
	for _, tt := range []struct {
		method, path string
		status       int
		length       int64
		body         string
	}{
		{"HEAD", "/head", 200, 1234, ""}, {"HEAD", "/body", 200, 1234, ""}, {"GET", "/body", 200, 3, "abc"},
		{"GET", "/204", 204, 0, ""}, {"GET", "/304", 304, -1, ""}, {"GET", "/head", 200, 0, ""},
	} {
		res, body := ask(t, tt.method, "http://"+addr+tt.path, "")
		if res.StatusCode != tt.status || body != tt.body || tt.length >= 0 && res.ContentLength != tt.length {
			t.Errorf("%s %s: %d, length %d, %q; want %+v", tt.method, tt.path, res.StatusCode, res.ContentLength, body, tt)
		}
	}
	if errs := r.errors(); len(errs) > 0 {
		t.Errorf("logged %v", errs)
	}
}

// INV-45 and the limits of the front: who sends what no function gets.
func TestWebRefusals(t *testing.T) {
	r := newRig(t, 1, answers(`1`), func(c *Config) { c.MaxBuffered = 8 << 20 })
	addr := r.serveWeb(Web{})
	for name, tt := range map[string]struct {
		request string
		status  int
		body    string
	}{
		"too large, announced":   {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 6291457\r\n\r\n", 413, "smaller than 6291456 bytes"},
		"too large, in chunks":   {"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n600001\r\n" + strings.Repeat("a", 6<<20+1) + "\r\n0\r\n\r\n", 413, "smaller than 6291456 bytes"},
		"too large in base64":    {"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5242880\r\n\r\n" + strings.Repeat("a", 5<<20), 413, "smaller than 6291456 bytes"},
		"a method of WebDAV":     {"PROPFIND / HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "GET, HEAD, POST"},
		"a tunnel":               {"CONNECT example.com:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 405, "GET, HEAD, POST"},
		"options of the server":  {"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "begin with a slash"},
		"a header too long":      {"GET / HTTP/1.1\r\nHost: localhost\r\nA: " + strings.Repeat("b", maxHeaderBytes+8<<10) + "\r\n\r\n", 431, ""},
		"a name of somebody":     {"GET / HTTP/1.1\r\nHost: evil.example:80\r\n\r\n", 403, "--http-host"},
		"the same in the target": {"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 403, "--http-host"},
		"no HTTP":                {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial(addr)
			go func() { _, _ = io.WriteString(c, tt.request) }() // the server may stop reading early
			if got, body := status(t, c); got != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("%d %q; want %d %q", got, body, tt.status, tt.body)
			}
		})
	}
	if n := len(r.invocations()); n != 0 {
		t.Errorf("%d invocations were run, want none", n)
	}
}

// SEC-04: names that nobody else can own, and those that the operator allows.
func TestWebHosts(t *testing.T) {
	r := newRig(t, 1, answers(`1`), nil)
	addr := r.serveWeb(Web{Hosts: []string{"App.Example"}})
	for host, want := range map[string]int{
		addr: 200, "localhost": 200, "LOCALHOST:1": 200, "a.localhost:8000": 200, "[::1]:8000": 200, "192.0.2.1": 200, "app.example": 200, "APP.example.:80": 200,
		"example": 403, "b.app.example": 403, "localhost.example": 403, "127.0.0.1.example": 403, "notlocalhost": 403,
	} {
		if res, body := ask(t, "GET", "http://"+addr, "", "Host", host); res.StatusCode != want {
			t.Errorf("%s: %d %s, want %d", host, res.StatusCode, body, want)
		}
	}
	if any := (&webHandler{}).check(&http.Request{Method: "GET", URL: &url.URL{Path: "/"}, Host: "example"}); any != nil {
		t.Errorf("a front that is open to the network: %v", any)
	}
}

// The front takes web pages' requests, unlike the Invoke API: it is made for browsers.
func TestWebTakesPages(t *testing.T) {
	r := newRig(t, 1, answers(`1`), nil)
	addr := r.serveWeb(Web{})
	if res, _ := ask(t, "POST", "http://"+addr, "", "Origin", "https://page.example", "Sec-Fetch-Site", "cross-site"); res.StatusCode != 200 {
		t.Errorf("%d, want 200", res.StatusCode)
	}
}

// Errors of the platform.
func TestWebUnavailable(t *testing.T) {
	running, release := make(chan struct{}), make(chan struct{})
	r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) {
		close(running)
		<-release
		return &rapid.Result{Payload: []byte(`1`)}, nil
	}, nil)
	addr := r.serveWeb(Web{})
	first := make(chan int)
	go func() {
		res, _ := ask(t, "GET", "http://"+addr, "")
		first <- res.StatusCode
	}()
	<-running
	if res, body := ask(t, "GET", "http://"+addr, ""); res.StatusCode != 429 || res.Header.Get("Retry-After") == "" {
		t.Errorf("beside one that runs: %d %s", res.StatusCode, body)
	}
	close(release)
	if got := <-first; got != 200 {
		t.Errorf("the first: %d", got)
	}
	broken := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) { return nil, errors.New("no room") }, nil)
	if res, _ := ask(t, "GET", "http://"+broken.serveWeb(Web{}), ""); res.StatusCode != 500 || len(broken.errors()) != 1 {
		t.Errorf("a fault of the platform: %d, %v", res.StatusCode, broken.errors())
	}
}

// INV-51 to INV-53: streamed answers, by what the runtime sends.
func TestWebStreams(t *testing.T) {
	nul := strings.Repeat("\x00", 8)
	handle := func(_ context.Context, event string) (io.Reader, rapid.Answer) {
		var e webEvent
		_ = json.Unmarshal([]byte(event), &e)
		switch e.RawPath {
		case "/prelude":
			return io.MultiReader(strings.NewReader(`{"statusCode":418,"headers":{"Content-Type":"text/plain"},"cookies":["a=b"]}`+nul), strings.NewReader("tea"), strings.NewReader("pot")),
				rapid.Answer{ContentType: httpevent.IntegrationResponse}
		case "/redirect":
			return strings.NewReader(`{"statusCode":302,"headers":{"Location":"/"}}` + nul), rapid.Answer{ContentType: httpevent.IntegrationResponse}
		case "/empty":
			return strings.NewReader(""), rapid.Answer{ContentType: httpevent.IntegrationResponse}
		case "/wrong":
			return strings.NewReader("no prelude" + nul), rapid.Answer{ContentType: httpevent.IntegrationResponse}
		case "/endless":
			return io.LimitReader(zeroes{'a'}, 1<<20), rapid.Answer{ContentType: httpevent.IntegrationResponse}
		case "/early":
			return strings.NewReader(`{"statusCode":200`), rapid.Answer{ContentType: httpevent.IntegrationResponse, TrailerType: "E"}
		case "/late":
			return strings.NewReader(`{"statusCode":200}` + nul + "half"), rapid.Answer{ContentType: httpevent.IntegrationResponse, TrailerType: "E"}
		case "/json": // aws-lambda-go sends all that it answers so
			return strings.NewReader(`{"statusCode":202,"body":"ok"}`), rapid.Answer{ContentType: "application/json"}
		case "/large":
			return io.LimitReader(zeroes{' '}, maxCollected+1), rapid.Answer{ContentType: "application/json"}
		case "/html":
			return strings.NewReader("<p>"), rapid.Answer{ContentType: "text/html"}
		case "/error":
			return nil, rapid.Answer{Kind: rapid.AnswerError, Payload: []byte(`{}`)}
		}
		return nil, rapid.Answer{Payload: []byte(`{"statusCode":203,"body":"plain"}`), ContentType: "application/json"}
	}
	type want struct {
		status int
		kind   string
		body   string
	}
	failed := want{502, "application/json", "Internal Server Error"}
	all := map[string]want{
		"/prelude": {418, "text/plain", "teapot"}, "/redirect": {302, httpevent.StreamType, ""}, "/empty": {200, httpevent.StreamType, ""},
		"/wrong": failed, "/endless": failed, "/early": failed, "/error": failed, "/html": {200, "text/html", "<p>"},
	}
	for mode, more := range map[InvokeMode]map[string]want{
		Auto:           {"/json": {202, "application/json", "ok"}, "/large": failed, "/": {203, "application/json", "plain"}},
		ResponseStream: {"/json": {200, "application/json", `{"statusCode":202,"body":"ok"}`}, "/": {200, "application/json", `{"statusCode":203,"body":"plain"}`}},
	} {
		t.Run(string(mode), func(t *testing.T) {
			r := newStreamRig(t, time.Minute, handle, nil)
			addr := r.serveWeb(Web{Mode: mode})
			// A client may have its response before the function has come to its end.
			whenFree := func(method, path string) (*http.Response, string) {
				for {
					if res, body := ask(t, method, "http://"+addr+path, ""); res.StatusCode != 429 {
						return res, body
					}
				}
			}
			check := func(path string, w want) {
				t.Helper()
				res, body := whenFree("GET", path)
				if res.StatusCode != w.status || res.Header.Get("Content-Type") != w.kind || body != w.body {
					t.Errorf("%s: %d %v %q; want %+v", path, res.StatusCode, res.Header, body, w)
				}
			}
			for path, w := range all {
				check(path, w)
			}
			for path, w := range more {
				check(path, w)
			}
			if res, body := whenFree("HEAD", "/prelude"); res.StatusCode != 418 || body != "" {
				t.Errorf("HEAD: %d %q", res.StatusCode, body)
			}
			res, err := http.Get("http://" + addr + "/late")
			for err == nil && res.StatusCode == 429 {
				res.Body.Close()
				res, err = http.Get("http://" + addr + "/late")
			}
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if body, err := io.ReadAll(res.Body); res.StatusCode != 200 || !errors.Is(err, io.ErrUnexpectedEOF) || !strings.HasPrefix("half", string(body)) {
				t.Errorf("an answer that fails halfway: %d %q, %v; want it cut off", res.StatusCode, body, err)
			}
			check("/html", all["/html"])
		})
	}
}

// zeroes is an endless reader of one byte.
type zeroes struct{ b byte }

func (z zeroes) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = z.b
	}
	return len(p), nil
}

// INV-51: the client has each part while the function still runs.
func TestWebStreamComesAsItIsSent(t *testing.T) {
	parts := make(chan string)
	r := newStreamRig(t, time.Minute, func(context.Context, string) (io.Reader, rapid.Answer) {
		pr, pw := io.Pipe()
		go func() {
			for p := range parts {
				_, _ = io.WriteString(pw, p)
			}
			_ = pw.Close()
		}()
		return pr, rapid.Answer{ContentType: httpevent.IntegrationResponse}
	}, nil)
	addr := r.serveWeb(Web{})
	go func() {
		parts <- `{"statusCode":200,"headers":{"content-type":"text/event-stream"}}` + strings.Repeat("\x00", 8)
	}()
	res, err := http.Get("http://" + addr) // returns with the headers
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	lines := bufio.NewReader(res.Body)
	for i := range 3 {
		want := fmt.Sprintf("data: %d\n", i)
		parts <- want
		if got, err := lines.ReadString('\n'); got != want || err != nil {
			t.Fatalf("%q, %v; want %q", got, err, want)
		}
	}
	close(parts)
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

// SEC-62: a client that reads nothing of a stream holds neither the sandbox nor the front.
func TestWebSlowReader(t *testing.T) {
	r := newStreamRig(t, time.Minute, func(_ context.Context, event string) (io.Reader, rapid.Answer) {
		if strings.Contains(event, `"rawPath":"/much"`) {
			return io.LimitReader(zeroes{'a'}, 64<<20), rapid.Answer{ContentType: "text/plain"}
		}
		return nil, rapid.Answer{Payload: []byte(`"free"`)}
	}, func(c *Config) {
		c.WriteTimeout = time.Second
	})
	addr := r.serveWeb(Web{})
	c := r.dial(addr)
	if _, err := io.WriteString(c, "GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil { // the response has begun
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; {
		res, body := ask(t, "GET", "http://"+addr+"/", "")
		if res.StatusCode == 200 && body == "free" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d %s", res.StatusCode, body)
		}
	}
}
