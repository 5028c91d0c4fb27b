package invoke

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// serve runs the rig's server by Serve on a socket of its own; end ends it and gives
// what Serve returns.
func (r *rig) serve() (addr string, end func() error) {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.srv.Serve(ctx, l) }()
	end = func() error { cancel(); return <-over }
	r.t.Cleanup(cancel)
	return l.Addr().String(), end
}

func (r *rig) dial(addr string) net.Conn {
	r.t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a hang is a failure, not a hung test
	if r.client != nil && addr != r.http.Listener.Addr().String() {
		secured := tls.Client(c, r.client)
		if err := secured.Handshake(); err != nil {
			r.t.Fatal(err)
		}
		return secured
	}
	return c
}

const requestHead = "POST /2015-03-31/functions/hello/invocations HTTP/1.1\r\nHost: x\r\n"

func post(c net.Conn, body string) {
	fmt.Fprintf(c, "%sContent-Length: %d\r\n\r\n%s", requestHead, len(body), body)
}

// status reads one response of c and returns its status and body; 0 if c is closed.
func status(t *testing.T, c net.Conn) (int, string) {
	t.Helper()
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatal("no answer and not closed")
		}
		return 0, ""
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(b)
}

// hostileWait is how long TestHostileSenders waits for a sender. On a busy machine, what is
// sent at once must come in time.
const hostileWait = 600 * time.Millisecond

// SEC-62: who sends slowly or too much is closed or refused, never runs, and
// never holds the one sandbox.
func TestHostileSenders(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) {
		c.HeaderTimeout, c.BodyTimeout, c.MaxBuffered = hostileWait, hostileWait, 2<<20
	})
	addr, end := r.serve()
	tests := []struct {
		name, send string
		status     int
		body       string
	}{
		{"half a request line", "POST /2015", 400, ""},
		{"headers without end", requestHead + "A: b\r\n", 0, ""},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, ""},
		{"a header line too long", requestHead + "A: " + strings.Repeat("b", maxHeaderBytes+8<<10) + "\r\n\r\n", 431, ""},
		{"too many headers", requestHead + strings.Repeat("A: b\r\n", maxHeaderBytes/4) + "\r\n", 431, ""},
		{"two lengths", requestHead + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, ""},
		{"half a body", requestHead + "Content-Length: 100\r\n\r\n{\"a\":", 400, "did not come in time"},
		{"half a chunked body", requestHead + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"a\":\r\n", 400, "did not come in time"},
		{"broken chunks", requestHead + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "ends before"},
		{"more than is announced", requestHead + "Content-Length: 2\r\n\r\n{}garbage\r\n\r\n", 200, "{}"},
		{"announced and never sent", requestHead + "Content-Length: 6291456\r\n\r\n", 400, "did not come in time"},
		{"too long to start with", requestHead + "Content-Length: 99999999999\r\n\r\n", 413, "99999999999 byte payload"},
		{"more than the buffers", requestHead + "Content-Length: 6291456\r\n\r\n" + strings.Repeat(" ", 3<<20), 429, "CallerRateLimitExceeded"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := r.dial(addr)
			go func() { _, _ = io.WriteString(c, tt.send) }() // the server may stop reading early
			got, body := status(t, c)
			if got != tt.status || !strings.Contains(body, tt.body) {
				t.Errorf("status %d %q, want %d %q", got, body, tt.status, tt.body)
			}
			good := r.dial(addr)
			post(good, `{"good":1}`)
			if got, body := status(t, good); got != 200 || body != `{"good":1}` {
				t.Errorf("the next good request: %d %q", got, body)
			}
		})
	}
	if n := len(r.invocations()); n != len(tests)+1 { // the good ones, and "more than is announced"
		t.Errorf("%d invocations were run, want %d", n, len(tests)+1)
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// The control: a server without bounds, as net/http makes one by default, is held by who
// sends slowly, and takes a body of any size.
func TestHostileSendersControl(t *testing.T) {
	naive := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // of a sender who goes
	}))
	defer naive.Close()
	addr := naive.Listener.Addr().String()
	for name, send := range map[string]string{
		"headers without end": requestHead + "A: b\r\n",
		"half a body":         requestHead + "Content-Length: 100\r\n\r\n{\"a\":",
	} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, send); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(3 * hostileWait))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want neither an answer nor an end", name, err)
		}
	}
	resp, err := http.Post(naive.URL, "", strings.NewReader(strings.Repeat(" ", 64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("64 MiB: status %d", resp.StatusCode)
	}
}

// SEC-62: connections without a request, however many, keep nobody out.
func TestIdleConnections(t *testing.T) {
	const limit = 16
	r := newRig(t, 1, echo, func(c *Config) { c.MaxConns = limit })
	addr, end := r.serve()
	var idlers []net.Conn
	for i := range 10 * limit {
		c := r.dial(addr)
		if i%2 == 0 {
			_, _ = io.WriteString(c, "POST /") // half a request
		}
		idlers = append(idlers, c)
	}
	used := r.dial(addr) // a kept-alive one is as good as idle
	post(used, "{}")
	if got, _ := status(t, used); got != 200 {
		t.Errorf("behind %d idle connections: %d, want 200", len(idlers), got)
	}
	for i, c := range idlers[:9*limit] { // the oldest were closed
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("connection %d is still open: %v", i, err)
		}
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestConnsAllBusy(t *testing.T) {
	c := newConns(2)
	pair := func() (net.Conn, net.Conn) { return net.Pipe() }
	a, _ := pair()
	b, _ := pair()
	late, peer := pair()
	for _, conn := range []net.Conn{a, b} {
		c.observe(conn, http.StateNew)
		c.observe(conn, http.StateActive)
	}
	c.observe(late, http.StateNew)
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection above the limit: %v, want it closed", err)
	}
	c.observe(late, http.StateClosed)
	c.observe(a, http.StateIdle)
	next, _ := pair()
	c.observe(next, http.StateNew)
	if len(c.open) != 2 || c.open[a] || !c.open[next] {
		t.Error("a new connection must take the place of an idle one")
	}
	c.observe(a, http.StateActive) // it may have been on its way
	c.observe(a, http.StateIdle)
	c.observe(a, http.StateClosed)
	c.observe(next, http.StateActive)
	for _, conn := range []net.Conn{b, next} {
		c.observe(conn, http.StateIdle)
		c.observe(conn, http.StateClosed)
	}
	if len(c.open) != 0 || len(c.waiting) != 0 {
		t.Errorf("%d connections and %d waiting are left", len(c.open), len(c.waiting))
	}
}

// A client that does not take its answer holds no sandbox, and not its connection for ever.
func TestSlowReader(t *testing.T) {
	big := []byte(`"` + strings.Repeat("x", 32<<20) + `"`) // more than the sockets hold
	first := true
	r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		if first {
			first = false
			return &rapid.Result{Payload: big}, nil
		}
		return echo(ctx, inv)
	}, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
	addr, end := r.serve()
	slow := r.dial(addr)
	post(slow, "{}")
	if _, err := slow.Read(make([]byte, 1)); err != nil { // the answer has begun
		t.Fatal(err)
	}
	good := r.dial(addr)
	post(good, "{}")
	if got, _ := status(t, good); got != 200 {
		t.Errorf("beside a slow reader: %d, want 200", got)
	}
	if err := end(); err != nil { // waits for the slow one's deadline, not longer
		t.Errorf("Serve: %v", err)
	}
	rest, err := io.Copy(io.Discard, slow)
	if rest >= int64(len(big)) {
		t.Errorf("the slow reader got all %d bytes (%v): the test shows nothing", rest, err)
	}
}

// SEC-62: clients that do not take their answers hold no more than MaxBuffered of them
// for long.
func TestHeldAnswers(t *testing.T) {
	big := []byte(`"` + strings.Repeat("x", 32<<20) + `"`) // more than the sockets hold
	for _, tt := range []struct {
		name   string
		room   int64
		send   string
		gotAll bool
	}{
		{"room", 64 << 20, requestHead, true},
		{"none", 1 << 20, requestHead, false},
		{"none for one piece of a stream", 1 << 20, strings.Replace(requestHead, "2015-03-31/functions/hello/invocations", "2021-11-15/functions/hello/response-streaming-invocations", 1), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 1, func(context.Context, *rapid.Invocation) (*rapid.Result, error) {
				return &rapid.Result{Payload: big}, nil
			}, func(c *Config) { c.MaxBuffered, c.WriteTimeout = tt.room, time.Hour })
			addr, end := r.serve()
			slow := r.dial(addr)
			if _, err := io.WriteString(slow, tt.send+"Content-Length: 2\r\n\r\n{}"); err != nil {
				t.Fatal(err)
			}
			if _, err := slow.Read(make([]byte, 1)); err != nil { // the answer has begun
				t.Fatal(err)
			}
			read := func() {
				n, err := io.Copy(io.Discard, slow)
				if all := n >= int64(len(big)); all != tt.gotAll {
					t.Errorf("the slow reader got %d of %d bytes (%v)", n, len(big), err)
				}
			}
			if tt.gotAll {
				time.Sleep(overBudgetTimeout + overBudgetTimeout/2) // it has longer
				_ = slow.SetReadDeadline(time.Now().Add(20 * time.Second))
				go func() { _ = end() }() // and is closed then
				read()
				return
			}
			if err := end(); err != nil { // waits for the connection, not as long as WriteTimeout
				t.Errorf("Serve: %v", err)
			}
			read()
		})
	}
}

// The invocation of a client that has gone runs to its end, and its sandbox serves on.
func TestClientGoes(t *testing.T) {
	started, finish := make(chan struct{}, 2), make(chan struct{})
	r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		started <- struct{}{}
		select {
		case <-finish:
			return echo(ctx, inv)
		case <-ctx.Done():
			t.Error("the invocation was cancelled")
			return nil, ctx.Err()
		}
	}, nil)
	addr, end := r.serve()
	c := r.dial(addr)
	post(c, "{}")
	<-started
	c.Close()
	if a := r.do(call{}); a.status != 429 {
		t.Errorf("while it runs: %d, want 429", a.status)
	}
	close(finish)
	if err := end(); err != nil { // Serve waits for it
		t.Errorf("Serve: %v", err)
	}
	if a := r.do(call{}); a.status != 200 {
		t.Errorf("afterwards: %d, want 200", a.status)
	}
}

// SIGTERM drains: what runs is answered, Event invocations included.
func TestServeDrains(t *testing.T) {
	started, finish := make(chan struct{}, 2), make(chan struct{})
	r := newRig(t, 2, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		started <- struct{}{}
		select {
		case <-finish:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return echo(ctx, inv)
	}, nil)
	addr, end := r.serve()
	c := r.dial(addr)
	post(c, `{"last":1}`)
	<-started
	if a := r.do(call{header: map[string]string{"X-Amz-Invocation-Type": "Event"}}); a.status != 202 {
		t.Fatalf("Event: %d", a.status)
	}
	<-started
	idle := r.dial(addr)
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	if n, err := idle.Read(make([]byte, 1)); n != 0 || err == nil { // it is closed first: the drain has begun
		t.Errorf("an idle connection read %d, %v", n, err)
	}
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("a new connection is taken while draining")
	}
	select {
	case err := <-ended:
		t.Fatalf("Serve returned %v before its requests ended", err)
	default:
	}
	close(finish)
	if got, body := status(t, c); got != 200 || body != `{"last":1}` {
		t.Errorf("the running request: %d %q", got, body)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeDrainTimeout(t *testing.T) {
	for _, header := range []map[string]string{nil, {"X-Amz-Invocation-Type": "Event"}} {
		started := make(chan struct{})
		r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
			close(started)
			<-ctx.Done() // until the fleet's Shutdown
			return nil, rapid.ErrDead
		}, func(c *Config) { c.DrainTimeout = 50 * time.Millisecond })
		addr, end := r.serve()
		c := r.dial(addr)
		extra := ""
		for k, v := range header {
			extra += k + ": " + v + "\r\n"
		}
		_, _ = io.WriteString(c, requestHead+extra+"Content-Length: 0\r\n\r\n")
		<-started
		if err := end(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v: Serve: %v, want the deadline", header, err)
		}
	}
}

func TestServeTellsThatTheListenerFailed(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := r.srv.Serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve: %v, want the listener's error", err)
	}
}
