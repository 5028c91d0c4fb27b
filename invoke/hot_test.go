package invoke

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// INV-01, INV-28: which requests are served without net/http.
func TestIsHot(t *testing.T) {
	for request, want := range map[string]bool{
		"POST /2015-03-31/functions/function/invocations":                       true,
		"POST /2015-03-31/functions/a-b_c1/invocations":                         true,
		"POST /2021-11-15/functions/function/response-streaming-invocations":    true,
		"GET /2015-03-31/functions/function/invocations":                        false,
		"POST /2015-03-31/functions//invocations":                               false,
		"POST /2015-03-31/functions/a/b/invocations":                            false,
		"POST /2015-03-31/functions/function/invocations/":                      false,
		"POST /2014-11-13/functions/function/invoke-async":                      false,
		"POST /2014-11-13/functions/function/invoke-async/":                     false,
		"POST /2015-03-31/functions/function/response-streaming-invocations":    false,
		"POST /x/2021-11-15/functions/function/response-streaming-invocations/": false,
		"POST /": false,
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := isHot(method, path); got != want {
			t.Errorf("%s: %v", request, got)
		}
	}
}

// hotLine is how the headers of an answer begin that net/http has not written: its Date comes later.
const hotLine = "Date: "

// raw is a connection of which a test sees every byte.
type raw struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (r *rig) raw(addr string) *raw {
	c := r.dial(addr)
	return &raw{c, r.t, bufio.NewReader(c)}
}

func (c *raw) send(format string, args ...any) {
	c.t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		c.t.Fatal(err)
	}
}

// get reads an answer, and tells whether it is of a hot request.
func (c *raw) get() (a answer, isHot bool) {
	c.t.Helper()
	first, _ := c.in.Peek(100)
	_, rest, _ := strings.Cut(string(first), "\r\n")
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	if res.Close {
		res.Header.Set("Connection", "close")
	}
	return answer{res.StatusCode, res.Header, string(body)}, strings.HasPrefix(rest, hotLine)
}

// A client cannot tell whether net/http has served it.
func TestHotAnswers(t *testing.T) {
	r := newRig(t, 8, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		switch string(inv.Payload) {
		case `"error"`:
			return &rapid.Result{Payload: []byte(`{"errorType":"T"}`), FunctionError: true, ErrorType: "T"}, nil
		case `"plain"`:
			return &rapid.Result{Payload: []byte("\x00\x01")}, nil
		case `"nothing"`:
			return &rapid.Result{ContentType: "text/plain"}, nil
		}
		return echo(ctx, inv)
	}, nil)
	addr, end := r.serve()
	const stream = "POST " + streamPath + " HTTP/1.1\r\nHost: x\r\n"
	long := `"` + strings.Repeat("x", 3<<20) + `"`
	for _, head := range []string{
		requestHead + "Content-Length: 2\r\n\r\n{}",
		requestHead + "Content-Length: 0\r\n\r\n",
		requestHead + "\r\n",
		requestHead + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		requestHead + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(long), long),
		requestHead + "Content-Length: 7\r\n\r\n\"error\"",
		requestHead + "Content-Length: 7\r\n\r\n\"plain\"",
		requestHead + "Content-Length: 9\r\n\r\n\"nothing\"",
		requestHead + "Content-Length: 1\r\n\r\n{",
		requestHead + "X-Amz-Invocation-Type: DryRun\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "X-Amz-Invocation-Type: Event\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "X-Amz-Invocation-Type: Nonsense\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "X-Amz-Log-Type: Tail\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "X-Amzn-Requestid: 1\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "Origin: http://example.com\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "Content-Length: 7000000\r\n\r\n",
		strings.Replace(requestHead, "hello", "unknown", 1) + "Content-Length: 2\r\n\r\n{}",
		stream + "Content-Length: 2\r\n\r\n{}",
		stream + "Content-Length: 7\r\n\r\n\"error\"",
		stream + "X-Amz-Log-Type: Tail\r\nContent-Length: 9\r\n\r\n\"nothing\"",
	} {
		name := head[:min(len(head), 200)]
		hot, cold := r.raw(addr), r.raw(r.http.Listener.Addr().String())
		hot.send("%s", head)
		cold.send("%s", head)
		got, is := hot.get()
		want, isNot := cold.get()
		if !is || isNot {
			t.Errorf("%q: hot %v, and %v from net/http", name, is, isNot)
		}
		for _, a := range []*answer{&got, &want} {
			if !isUUID(a.header.Get("X-Amzn-Requestid")) || a.header.Get("Date") == "" {
				t.Errorf("%q: %v", name, a.header)
			}
			a.header.Del("X-Amzn-Requestid")
			a.header.Del("Date")
		}
		if got.status != want.status || got.body != want.body || !maps.EqualFunc(got.header, want.header, slices.Equal) {
			t.Errorf("%q:\n%d %v %.200q, want\n%d %v %.200q", name, got.status, got.header, got.body, want.status, want.header, want.body)
		}
		if want.header.Get("Connection") == "close" {
			if _, err := hot.in.ReadByte(); err != io.EOF {
				t.Errorf("%q: the connection goes on: %v", name, err)
			}
			continue
		}
		hot.send("%s", requestHead+"Content-Length: 2\r\n\r\n{}")
		if a, is := hot.get(); !is || a.status != 200 || a.body != "{}" {
			t.Errorf("%q: the next request: hot %v, %+v", name, is, a)
		}
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// One connection, on which hot requests and others follow each other, before they are
// asked for too; and limits that are net/http's.
func TestHotAndOthers(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) { c.HeaderTimeout = 200 * time.Millisecond })
	addr, end := r.serve()
	const ok = requestHead + "Content-Length: 2\r\n\r\n{}"
	c := r.raw(addr)
	c.send("%s", ok+ok+"\r\n"+ok+"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"+ok)
	for i, want := range []struct {
		status int
		hot    bool
	}{{200, true}, {200, true}, {200, true}, {404, false}, {200, false}} {
		if a, is := c.get(); a.status != want.status || is != want.hot {
			t.Errorf("answer %d: %d, hot %v", i, a.status, is)
		}
	}
	slow := r.raw(addr)
	slow.send("%s", ok)
	slow.get()
	slow.send("POST") // it has HeaderTimeout for the rest
	if a, is := slow.get(); a.status != 400 || is {
		t.Errorf("a head that does not end: %+v, hot %v", a, is)
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// The context of a hot request ends when its client goes, if somebody waits for that, and
// with the connection; not when the client says more.
func TestPresence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, tt := range []struct {
		name string
		do   func(client net.Conn, server *conn)
		ends bool
	}{
		{"the client goes", func(c net.Conn, _ *conn) { c.Close() }, true},
		{"the client has said all", func(c net.Conn, _ *conn) { _ = c.(*net.TCPConn).CloseWrite() }, true},
		{"the connection is closed", func(_ net.Conn, s *conn) { s.Close() }, true},
		{"the client says more", func(c net.Conn, _ *conn) { _, _ = io.WriteString(c, "POST") }, false},
		{"nothing", func(net.Conn, *conn) {}, false},
	} {
		for _, first := range []bool{false, true} { // before anybody waits
			client, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			server, err := (&hotListener{Listener: l}).Accept()
			if err != nil {
				t.Fatal(err)
			}
			c := server.(*conn)
			p := &presence{Context: c.life, conn: c.Conn, arrived: true}
			if p.Err() != nil {
				t.Fatal(p.Err())
			}
			if first {
				tt.do(client, c)
			}
			done := p.Done()
			if !first {
				tt.do(client, c)
			}
			if tt.ends {
				<-done
			}
			if ended := p.Err() != nil; ended != tt.ends {
				t.Errorf("%s, %v: ended %v", tt.name, first, ended)
			}
			p.stop()
			select {
			case <-done:
			default:
				t.Errorf("%s, %v: with the request it has not ended", tt.name, first)
			}
			client.Close()
			c.Close()
			<-p.Done()
		}
		unwatched := &presence{Context: t.Context()}
		unwatched.stop() // nothing to wait for
		if unwatched.Err() != nil {
			t.Error(unwatched.Err())
		}
	}
}

// Who is refused for good hears so at once: a body that is not wanted is not waited for.
func TestHotRefusalIsNotLate(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	addr, end := r.serve()
	c := r.raw(addr)
	c.send("%s", requestHead+"Origin: http://example.com\r\nContent-Length: 2\r\n\r\n")
	if a, is := c.get(); a.status != 403 || !is || a.header.Get("Connection") != "close" {
		t.Errorf("hot %v, %+v", is, a)
	}
	if err := end(); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A drain takes no more requests, hot or not, also while it waits for a hot one.
func TestDrainOfBothKinds(t *testing.T) {
	started, finish := make(chan struct{}, 3), map[string]chan struct{}{`"hot"`: make(chan struct{}), `"cold"`: make(chan struct{})}
	r := newRig(t, 3, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		started <- struct{}{}
		select {
		case <-finish[string(inv.Payload)]:
			return echo(ctx, inv)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}, nil)
	addr, end := r.serve()
	idle, hot, cold := r.raw(addr), r.raw(addr), r.raw(addr)
	hot.send("%s", requestHead+"Content-Length: 5\r\n\r\n\"hot\"")
	<-started
	other := strings.Replace(requestHead, "invocations", "invocations?Qualifier=$LATEST", 1)
	cold.send("%s", other+"Content-Length: 6\r\n\r\n\"cold\"")
	<-started
	ended := make(chan error, 1)
	go func() { ended <- end() }()
	if _, err := idle.in.ReadByte(); err != io.EOF { // the drain has begun
		t.Errorf("an idle connection: %v", err)
	}
	close(finish[`"cold"`])
	if a, is := cold.get(); a.status != 200 || is {
		t.Errorf("hot %v, %+v", is, a)
	}
	_, _ = io.WriteString(cold, other+"Content-Length: 6\r\n\r\n\"cold\"") // fails if it is closed
	if res, err := http.ReadResponse(cold.in, nil); err == nil {
		t.Errorf("a request while draining: %s", res.Status)
	}
	close(finish[`"hot"`])
	if a, is := hot.get(); a.status != 200 || !is || a.header.Get("Connection") != "close" {
		t.Errorf("hot %v, %+v", is, a)
	}
	if err := <-ended; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A client that has said all before its request could be run gets no answer that looks
// like the function's.
func TestNoAnswerWithoutInvocation(t *testing.T) {
	for _, kind := range []string{"", "?Qualifier=$LATEST"} { // hot and not
		done := make(chan struct{})
		r := newRig(t, 1, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
			return &rapid.Result{Payload: inv.Payload, Done: done}, nil
		}, nil)
		addr, end := r.serve()
		first, second := r.raw(addr), r.raw(addr)
		head := strings.Replace(requestHead, "invocations", "invocations"+kind, 1) + "Content-Length: 2\r\n\r\n{}"
		first.send("%s", head)
		first.get()
		second.send("%s", head) // waits for the sandbox
		_ = second.Conn.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(second.in); len(b) > 0 || err != nil {
			t.Errorf("%q: %q, %v", kind, b, err)
		}
		close(done)
		if err := end(); err != nil || len(r.errors()) > 0 {
			t.Errorf("Serve: %v, %v", err, r.errors())
		}
	}
}

// pipes is a listener of connections in memory, on which a write waits for its reader.
type pipes struct {
	net.Listener // of which only the address and the end are used
	next         chan net.Conn
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.next:
		return c, nil
	default:
		return p.Listener.Accept() // until the end: nobody dials
	}
}

// SEC-62: what net/http itself answers has its limit of time too.
func TestSlowReaderOfNetHTTP(t *testing.T) {
	r := newRig(t, 1, echo, func(c *Config) { c.WriteTimeout = 100 * time.Millisecond })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	client, server := net.Pipe()
	defer client.Close()
	p := &pipes{l, make(chan net.Conn, 1)}
	p.next <- server
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.srv.Serve(ctx, p) }()
	if _, err := io.WriteString(client, "POST / HTTP/1.1\r\n\r\n"); err != nil { // without a host: a 400
		t.Fatal(err)
	}
	_ = client.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := client.Write([]byte("x")); err != io.ErrClosedPipe {
		t.Errorf("who does not take a refusal: %v, want it closed", err)
	}
	client.Close()
	cancel()
	if err := <-over; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
