package api

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

func managedWorld(t *testing.T) *world {
	w := newWorld(t, setup{extensions: nil, config: func(c *rapid.Config) {
		c.Initialization, c.MaxConcurrency = rapid.Managed, 3
		c.Function.Timeout = 300 * time.Millisecond
	}})
	w.running()
	return w
}

// events asks with n workers and runs an invocation for each.
func (w *world) events(n int) (ids []string, results []<-chan *rapid.Result) {
	w.t.Helper()
	var waiting []<-chan reply
	for range n {
		got, _ := w.later("GET", nextPath)
		waiting = append(waiting, got)
	}
	w.await(rapid.Serving)
	for i := range n {
		results = append(results, w.invoke(fmt.Sprint("id", i)))
	}
	seen := map[string]bool{}
	for _, c := range waiting {
		r := <-c
		seen[r.header.Get("Lambda-Runtime-Aws-Request-Id")] = true
	}
	for i := range n {
		ids = append(ids, fmt.Sprint("id", i))
		if !seen[ids[i]] {
			w.t.Fatalf("events of %v, want each of %d once (RT-60)", seen, n)
		}
	}
	return ids, results
}

// RT-60, RT-61, FE-17: three workers, each with an event of its own, answered in another order.
func TestManagedWorkers(t *testing.T) {
	w := managedWorld(t)
	ids, results := w.events(3)
	for i := 2; i >= 0; i-- {
		if r := w.do("POST", path(ids[i], "response"), ids[i]); r.status != 202 {
			t.Errorf("%d %s", r.status, r.body)
		}
		if r := <-results[i]; string(r.Payload) != ids[i] {
			t.Errorf("%s got %s", ids[i], r.Payload)
		}
		for _, again := range []string{path(ids[i], "response"), path(ids[i], "error"), path("unknown", "response")} {
			if r := w.do("POST", again, "x"); r.status != 400 || r.errorType() != "InvalidRequestID" {
				t.Errorf("%s: %d %s, want 400 (RT-61)", again, r.status, r.body)
			}
		}
	}
}

// RT-61: a second answer while the first is on its way.
func TestManagedAnswerInProgress(t *testing.T) {
	w := managedWorld(t)
	ids, _ := w.events(1)
	w.openBody(path(ids[0], "response"))
	if r := w.do("POST", path(ids[0], "response"), "x"); r.status != 400 {
		t.Errorf("response while a response is on its way: %d %s", r.status, r.body)
	}
	if r := w.do("POST", path(ids[0], "error"), "x"); r.status != 400 {
		t.Errorf("error while a buffered response is on its way: %d %s", r.status, r.body)
	}
}

// RT-63, RT-68: the first late answer is told so.
func TestManagedLate(t *testing.T) {
	w := managedWorld(t)
	ids, results := w.events(2)
	w.do("POST", path(ids[1], "response"), "x")
	if r := <-results[0]; r.ErrorType != "Sandbox.Timedout" {
		t.Errorf("%+v", r)
	}
	r := w.do("POST", path(ids[0], "response"), "x")
	if r.status != 410 || r.errorType() != "InvokeTimeout" || !strings.Contains(r.body, "Invoke timeout") {
		t.Errorf("%d %s, want 410 (RT-63)", r.status, r.body)
	}
	if r := w.do("POST", path(ids[0], "error"), "x"); r.status != 400 {
		t.Errorf("%d %s, want 400 (RT-63)", r.status, r.body)
	}
}

// RT-64, RT-66: limits of bodies, and what does not exist.
func TestManagedLimits(t *testing.T) {
	w := managedWorld(t)
	ids, results := w.events(1)
	long := strings.Repeat("x", 1<<20+1)
	if r := w.do("POST", path(ids[0], "error"), long); r.status != 413 || !strings.Contains(r.body, "1048576 bytes") {
		t.Errorf("error: %d %s", r.status, r.body)
	}
	if r := <-results[0]; r.ErrorType != "Function.ResponseSizeTooLarge" && !strings.Contains(string(r.Payload), "ResponseSizeTooLarge") {
		t.Errorf("%+v %s", r, r.Payload)
	}
	for call, want := range map[[3]string]int{
		{"GET", nextPath, "x"}:                                  413,
		{"GET", "/2018-06-01/ping", "x"}:                        413,
		{"GET", "/2018-06-01/ping", ""}:                         200,
		{"PUT", logsPath, "{}"}:                                 404,
		{"GET", restoreNextPath, ""}:                            404,
		{"POST", extPath + "register", long}:                    413,
		{"PUT", telemetryPath, long}:                            413,
		{"POST", extPath + "register", `{"events":["INVOKE"]}`}: 403,
	} {
		if r := w.do(call[0], call[1], call[2], "Lambda-Extension-Name", "internal"); r.status != want {
			t.Errorf("%s %s: %d %s, want %d", call[0], call[1], r.status, r.body, want)
		}
	}
}

// RT-66, TL-03: one schema.
func TestManagedTelemetrySchema(t *testing.T) {
	w := newWorld(t, setup{config: func(c *rapid.Config) { c.Initialization = rapid.Managed }})
	w.running()
	id := w.register("internal", `{}`).header.Get(identifier)
	for schema, want := range map[string]int{"2022-12-13": 400, "2025-01-29": 200} {
		body := `{"schemaVersion":"` + schema + `","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:1234"}}`
		if r := w.do("PUT", telemetryPath, body, identifier, id); r.status != want {
			t.Errorf("%s: %d %s, want %d", schema, r.status, r.body, want)
		}
	}
}

// RT-64: few large bodies of extensions are read at once, and they hold up no others.
func TestManagedLargeBodies(t *testing.T) {
	w := managedWorld(t)
	begin := func() (net.Conn, *bufio.Reader) {
		c := w.dial()
		_, _ = fmt.Fprintf(c, "POST %sregister HTTP/1.1\r\nHost: x\r\nLambda-Extension-Name: e\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", extPath, 1<<20)
		return c, bufio.NewReader(c)
	}
	read := func(r *bufio.Reader) { // the server says 100 when it begins to read
		t.Helper()
		if line, err := r.ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
			t.Fatalf("%q %v", line, err)
		}
	}
	first, r := begin()
	read(r)
	for range maxLarge - 1 {
		_, r := begin()
		read(r)
	}
	last, r := begin()
	if r := w.do("POST", extPath+"register", `{}`, "Lambda-Extension-Name", "small"); r.status != 200 {
		t.Errorf("a small body beside large ones: %d %s", r.status, r.body)
	}
	_ = last.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if _, err := r.Peek(1); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d large bodies are read at once: %v", maxLarge+1, err)
	}
	_ = last.SetReadDeadline(time.Now().Add(5 * time.Second))
	_ = first.Close()
	read(r)
}
