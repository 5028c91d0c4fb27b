package api

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// RT-12 to RT-22: what an event looks like.
func TestEventHeaders(t *testing.T) {
	w := newWorld(t, setup{})
	before := time.Now()
	e, _ := w.dispatched("id")
	deadline, err := strconv.ParseInt(e.header.Get("Lambda-Runtime-Deadline-Ms"), 10, 64)
	if off := time.UnixMilli(deadline).Sub(before) - 20*time.Second; err != nil || off < -time.Second || off > time.Second {
		t.Errorf("deadline off by %v, %v", off, err)
	}
	for name, want := range map[string]string{
		"Lambda-Runtime-Aws-Request-Id": "id", "Lambda-Runtime-Invoked-Function-Arn": "arn:fn", "Content-Type": "application/json",
		"Content-Length": "7", "Lambda-Runtime-Trace-Id": "Root=1-2-3;Parent=4;Sampled=0",
	} {
		if got := e.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"Lambda-Runtime-Client-Context", "Lambda-Runtime-Cognito-Identity", "Lambda-Runtime-Aws-Tenant-Id"} {
		if v, ok := e.header[name]; ok {
			t.Errorf("%s: %q, want it absent (RT-21)", name, v)
		}
	}
	nonce := e.header.Get("Lambda-Runtime-Invocation-Id")
	if r := w.do("POST", path("id", "response"), "1", "Lambda-Runtime-Invocation-Id", "x"+nonce); r.status != 410 || r.errorType() != "InvokeTimeout" {
		t.Errorf("foreign nonce: %d %s (RT-33)", r.status, r.body)
	}
	if r := w.do("POST", path("id", "response"), "1", "Lambda-Runtime-Invocation-Id", nonce); r.status != 202 || r.body != "{\"status\":\"OK\"}\n" {
		t.Errorf("own nonce: %d %s", r.status, r.body)
	}
}

// RT-08, RT-09, EX-05 and the paths of a control plane.
func TestPaths(t *testing.T) {
	w := newWorld(t, setup{config: func(c *rapid.Config) { c.Function.ExtensionsDisabled = true }})
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/2018-06-01/ping", 200}, {"POST", "/2018-06-01/ping", 405}, {"POST", nextPath, 405},
		{"GET", path("x", "response"), 405}, {"PUT", "/2018-06-01/runtime/init/error", 405}, {"GET", "/", 404}, {"POST", "/invoke", 404},
		{"POST", "/2015-03-31/functions/function/invocations", 404}, {"GET", "/2018-06-01/runtime/restore/next", 404},
		{"POST", "/2018-06-01/runtime/restore/error", 404}, {"GET", "/2021-04-23/credentials", 404}, {"OPTIONS", "/2018-06-01/ping", 405},
		{"POST", path("", "response"), 400}, {"POST", path("../../x", "response"), 404}, {"POST", path("%2e%2e", "response"), 400},
		{"POST", path(strings.Repeat("a", 60000), "response"), 400}, {"POST", path("x", "response/"), 404}, {"DELETE", "/2018-06-01/ping", 405},
		{"POST", extPath + "register", 404}, {"PUT", "/2022-07-01/telemetry", 404}, {"PUT", "/2020-08-15/logs", 404},
	} {
		if r := w.do(tt.method, tt.path, ""); r.status != tt.want {
			t.Errorf("%s %.60s: %d %s, want %d", tt.method, tt.path, r.status, r.body, tt.want)
		}
	}
}

// RT-31, RT-34 to RT-36, RT-40, RT-70: bodies.
func TestAnswers(t *testing.T) {
	big := strings.Repeat("x", rapid.MaxPayload)
	for _, tt := range []struct {
		name, call, body   string
		headers            []string
		status             int
		payload, errorType string
		isError            bool
	}{
		{"plain", "response", "not json", []string{"Content-Type", "text/html"}, 202, "not json", "", false},
		{"empty", "response", "", nil, 202, "", "", false},
		{"streaming is buffered", "response", "s", []string{"Lambda-Runtime-Function-Response-Mode", "streaming"}, 202, "s", "", false},
		{"bad mode", "response", "s", []string{"Lambda-Runtime-Function-Response-Mode", "x"}, 400,
			`{"errorType":"Runtime.InvalidResponseModeHeader","errorMessage":"RequestId: id Error: Invalid function response mode \"x\""}`, "Runtime.InvalidResponseModeHeader", true},
		{"largest", "response", big, nil, 202, big, "", false},
		{"too large", "response", big + "x", nil, 413, `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"Response payload size exceeded maximum allowed payload size (6291556 bytes)."}`, "Function.ResponseSizeTooLarge", true},
		{"error", "error", `{"a":1}`, []string{"Lambda-Runtime-Function-Error-Type", "Function.Mine"}, 202, `{"a":1}`, "Function.Mine", true},
		{"error without type", "error", `x`, nil, 202, `x`, "Runtime.Unknown", true},
		{"error with cause", "error", `{"errorMessage":"m","errorType":"t","stackTrace":["s"],"more":1,"errorCause":{"message":"c"}}`,
			[]string{"Content-Type", "application/vnd.aws.lambda.error.cause+json"}, 202, `{"errorMessage":"m","errorType":"t","stackTrace":["s"]}`, "Runtime.Unknown", true},
		{"unparsable cause", "error", `{`, []string{"Content-Type", "application/vnd.aws.lambda.error.cause+json"}, 202, `"Invalid error body"`, "Runtime.Unknown", true},
		{"bad X-Ray cause", "error", `x`, []string{"Lambda-Runtime-Function-XRay-Error-Cause", "{"}, 202, `x`, "Runtime.Unknown", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, setup{})
			_, res := w.dispatched("id")
			r := w.do("POST", path("id", tt.call), tt.body, tt.headers...)
			if r.status != tt.status {
				t.Errorf("%d %s, want %d", r.status, r.body, tt.status)
			}
			got := <-res
			if string(got.Payload) != tt.payload || got.FunctionError != tt.isError || got.ErrorType != tt.errorType {
				t.Errorf("result %v %q %.200s", got.FunctionError, got.ErrorType, got.Payload)
			}
			w.later("GET", nextPath) // legal after each of them
			<-got.Done
		})
	}
}

// RT-70: aws-lambda-go reports the error of a reader in trailers.
func TestTrailers(t *testing.T) {
	w := newWorld(t, setup{})
	_, res := w.dispatched("id")
	req, err := http.NewRequest("POST", w.base+path("id", "response"), io.MultiReader(strings.NewReader("half")))
	if err != nil {
		t.Fatal(err)
	}
	req.Trailer = http.Header{"Lambda-Runtime-Function-Error-Type": {"Function.Broken"},
		"Lambda-Runtime-Function-Error-Body": {base64.StdEncoding.EncodeToString([]byte(`{"errorMessage":"m"}`))}}
	resp, err := w.client.Do(req)
	if err != nil || resp.StatusCode != 202 {
		t.Fatalf("%v %v", resp, err)
	}
	_ = resp.Body.Close()
	if r := <-res; !r.FunctionError || r.ErrorType != "Function.Broken" || string(r.Payload) != `{"errorMessage":"m"}` {
		t.Errorf("%+v %s", r, r.Payload)
	}
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

// RT-35: a body that ends too early.
func TestTruncatedBody(t *testing.T) {
	w := newWorld(t, setup{})
	_, res := w.dispatched("id")
	c := w.dial()
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf", path("id", "response"))
	_ = c.(*net.TCPConn).CloseWrite()
	b, _ := io.ReadAll(c)
	if !strings.HasPrefix(string(b), "HTTP/1.1 400") || !strings.Contains(string(b), "TruncatedHTTPRequest") {
		t.Errorf("%s", b)
	}
	if r := <-res; r.ErrorType != "Runtime.TruncatedResponse" {
		t.Errorf("%+v", r)
	}
}

// RT-25, RT-27: an event goes to a live waiter, not to one whose client has gone.
func TestDeadWaiterGetsNoEvent(t *testing.T) {
	for range 20 { // the server may see the end of a connection before the event is there, or not
		w := newWorld(t, setup{})
		w.running()
		first := w.dial()
		if _, err := fmt.Fprintf(first, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", nextPath); err != nil {
			t.Fatal(err)
		}
		w.await(rapid.Idle) // it waits
		second, _ := w.later("GET", nextPath)
		time.Sleep(20 * time.Millisecond) // the other waits too, or comes later, which is as good
		first.Close()
		w.invoke("id")
		select {
		case r := <-second:
			if r.header.Get("Lambda-Runtime-Aws-Request-Id") != "id" {
				t.Errorf("%+v", r)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("the event is lost")
		}
	}
}

// RT-04: request line and headers have a limit, idle connections and waiting calls none.
func TestHeaderTime(t *testing.T) {
	w := newWorld(t, setup{limits: Limits{Connections: 10, HeaderTime: 200 * time.Millisecond},
		config: func(c *rapid.Config) { c.Settings.Linger = time.Hour }})
	idle, waiting, slow := w.dial(), w.dial(), w.dial()
	_, _ = fmt.Fprintf(waiting, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", nextPath)
	_, _ = io.WriteString(slow, "GET /2018-06-01/ping HTTP/1.1\r\nHo")
	begin := time.Now()
	b, err := io.ReadAll(slow)
	if d := time.Since(begin); err != nil || d < 150*time.Millisecond || d > 3*time.Second || strings.Contains(string(b), "pong") {
		t.Errorf("slow headers: closed after %v with %q, %v", d, b, err)
	}
	time.Sleep(300 * time.Millisecond)
	_, _ = io.WriteString(idle, "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n")
	answer := make([]byte, 4096)
	if n, err := idle.Read(answer); err != nil || !strings.Contains(string(answer[:n]), "pong") {
		t.Errorf("an idle connection was closed: %v %q", err, answer[:n])
	}
	_ = waiting.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := waiting.Read(answer); err == nil || err == io.EOF {
		t.Errorf("a waiting next was ended: %v", err)
	}
}

// RT-04: the time in which the sandbox is frozen does not count.
func TestHeaderTimeStandsStillWhileFrozen(t *testing.T) {
	w := newWorld(t, setup{limits: Limits{Connections: 10, HeaderTime: time.Second},
		config: func(c *rapid.Config) { c.Settings.Linger = 0 }})
	w.later("GET", nextPath)
	w.await(rapid.Idle)
	w.until(func() bool { return slices.Contains(w.sup.Calls(), "freeze") })
	slow := w.dial()
	_, _ = io.WriteString(slow, "GET /2018-06-01/ping HTTP/1.1\r\nHo")
	time.Sleep(1300 * time.Millisecond)
	w.invoke("id") // thaws; who is frozen sends nothing
	w.await(rapid.Invoking)
	_, _ = io.WriteString(slow, "st: x\r\n\r\n")
	answer := make([]byte, 4096)
	if n, err := slow.Read(answer); err != nil || !strings.Contains(string(answer[:n]), "pong") {
		t.Errorf("%v %q", err, answer[:n])
	}
}

// Connections are capped; hoarded idle ones do not keep a good request out.
func TestConnectionCap(t *testing.T) {
	w := newWorld(t, setup{limits: Limits{Connections: 8, HeaderTime: time.Minute}})
	for range 50 {
		_, _ = io.WriteString(w.dial(), "GET /half")
	}
	begin := time.Now()
	if r := w.do("GET", "/2018-06-01/ping", ""); r.body != "pong" || time.Since(begin) > 3*time.Second {
		t.Errorf("%+v after %v", r, time.Since(begin))
	}
}

// RT-05: headers just under 1 MiB are taken, 8 MiB are not.
func TestHeaderSize(t *testing.T) {
	w := newWorld(t, setup{})
	if r := w.do("GET", "/2018-06-01/ping", "", "X-Long", strings.Repeat("a", 1<<20-500)); r.status != 200 {
		t.Errorf("1 MiB: %d", r.status)
	}
	r, err := w.try(context.Background(), "GET", "/2018-06-01/ping", "", "X-Long", strings.Repeat("a", 8<<20))
	if err == nil && r.status != 431 {
		t.Errorf("8 MiB: %d", r.status)
	}
}

// Headers of requests that wait are held: all connections together have a limit, and
// room again once such requests are over.
func TestHeadersTogether(t *testing.T) {
	w := newWorld(t, setup{})
	large := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n", nextPath, "X-Long: "+strings.Repeat("a", 1<<20-500)+"\r\n")
	conns, refused := make([]net.Conn, 12), atomic.Int32{}
	for i := range conns {
		c := w.dial()
		conns[i] = c
		go func() {
			_, _ = io.WriteString(c, large) // fails if the server has closed it already
			b, err := io.ReadAll(c)
			if strings.Contains(string(b), "400 Bad Request") || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
				refused.Add(1)
			}
		}()
	}
	w.until(func() bool { return refused.Load() >= 8 })
	if r := w.do("GET", "/2018-06-01/ping", ""); r.body != "pong" {
		t.Errorf("an ordinary request beside them: %+v", r)
	}
	for _, c := range conns {
		_ = c.Close()
	}
	w.until(func() bool {
		r, err := w.try(context.Background(), "GET", "/2018-06-01/ping", "", "X-Long", strings.Repeat("a", 1<<20-500))
		return err == nil && r.status == 200
	})
	for range 8 { // what one request has held is free for the one after it
		if r := w.do("GET", "/2018-06-01/ping", "", "X-Long", strings.Repeat("a", 1<<20-500)); r.status != 200 {
			t.Errorf("a large request after others: %d", r.status)
		}
	}
}
