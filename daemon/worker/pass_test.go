package worker

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// noFunctions serves nothing.
type noFunctions struct{}

func (noFunctions) Find(context.Context, string, string) (invoke.Function, error) {
	return invoke.Function{}, invoke.ErrNoFunction
}

func (noFunctions) Lease(context.Context, string, string, string) (invoke.Lease, error) {
	return nil, invoke.ErrNoFunction
}

// newEndpoint returns the address of an endpoint that passes requests on to line.
func newEndpoint(tb testing.TB, l line, parse func(*http.Request) (*sigv4.Signature, error)) string {
	tb.Helper()
	if parse == nil {
		parse = (&authorizer{scope: testScope, now: time.Now, unsigned: true}).parse
	}
	passer := newPasser(l, parse, func(err error) { tb.Log(err) })
	server := invoke.New(invoke.Config{Functions: noFunctions{}, Region: "us-east-1", AccountID: "123456789012", Pass: passer, NoEvents: true})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	tb.Cleanup(func() {
		cancel()
		passer.close()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return listener.Addr().String()
}

// send writes a request as it is, and returns the answer, whose body is closed with the
// connection at the end of the test.
func send(t *testing.T, addr, request string) (*http.Response, net.Conn) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(conn, request); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res, conn
}

// What control gets is what the client sent, except for what is for one connection.
func TestPassedAsItIs(t *testing.T) {
	type got struct {
		method, target, host, body string
		header                     http.Header
	}
	requests := make(chan got, 1)
	addr := newEndpoint(t, newFakeLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- got{r.Method, r.RequestURI, r.Host, string(body), r.Header}
		w.Header().Set("X-Amzn-Requestid", "of control")
		w.Header().Set("Connection", "X-Hop")
		w.Header().Set("X-Hop", "1")
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "answer")
	})), nil)
	mark := http.Header{message.UnsignedHeader: {"1"}}
	with := func(h http.Header) http.Header {
		for name, values := range mark {
			h[name] = values
		}
		return h
	}
	for _, tt := range []struct {
		request string
		want    got
	}{
		{"GET /2015-03-31/functions?MaxItems=1&Marker=a%2Fb&&x HTTP/1.1\r\nHost: 127.0.0.1:9000\r\n\r\n",
			got{"GET", "/2015-03-31/functions?MaxItems=1&Marker=a%2Fb&&x", "127.0.0.1:9000", "", with(http.Header{})}},
		{"GET /2015-03-31/functions/arn%3aaws%3Alambda;x=1/../%2E./?a;b&%7a HTTP/1.1\r\nHost: localhost\r\n\r\n",
			got{"GET", "/2015-03-31/functions/arn%3aaws%3Alambda;x=1/../%2E./?a;b&%7a", "localhost", "", with(http.Header{})}},
		{"GET /a? HTTP/1.1\r\nHost: localhost\r\n\r\n", got{"GET", "/a?", "localhost", "", with(http.Header{})}},
		{"GET /\xc3\xa4#b?c#d HTTP/1.1\r\nHost: localhost\r\n\r\n", got{"GET", "/\xc3\xa4#b?c#d", "localhost", "", with(http.Header{})}},
		{"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nX-Amz-A: b  c\r\nX-Amz-A:\td \r\nUser-Agent: me\r\nx-forwarded-for: 1.2.3.4\r\nForwarded: for=x\r\n\r\n{ }",
			got{"POST", "/a", "localhost", "{ }", with(http.Header{"Content-Length": {"3"}, "X-Amz-A": {"b  c", "d"}, "User-Agent": {"me"}, "X-Forwarded-For": {"1.2.3.4"}, "Forwarded": {"for=x"}})}},
		{"PUT /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n",
			got{"PUT", "/a", "localhost", "abc", with(http.Header{})}},
		{"DELETE /a HTTP/1.1\r\nHost: localhost\r\nConnection: X-One, keep-alive\r\nX-One: 1\r\nKeep-Alive: 5\r\nProxy-Authorization: p\r\nUpgrade: h2c\r\nX-Two: 2\r\n\r\n",
			got{"DELETE", "/a", "localhost", "", with(http.Header{"X-Two": {"2"}})}},
		{"GET /code/ab?Expires=1&Signature=x HTTP/1.1\r\nHost: evil.example\r\nSandboxd-Unsigned: 7\r\n\r\n", got{"GET", "/code/ab?Expires=1&Signature=x", "evil.example", "", http.Header{}}},
		{"GET /a HTTP/1.1\r\nHost: localhost\r\nSandboxd-Unsigned: 7\r\nsandboxd-x: 1\r\n\r\n", got{"GET", "/a", "localhost", "", with(http.Header{})}},
	} {
		res, _ := send(t, addr, tt.request)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusCreated || string(body) != "answer" || res.Header.Get("X-Hop") != "" || !slices.Equal(res.Header["X-Amzn-Requestid"], []string{"of control"}) {
			t.Errorf("%q: %s %v %s", tt.request, res.Status, res.Header, body)
			continue
		}
		g := <-requests
		if g.method != tt.want.method || g.target != tt.want.target || g.host != tt.want.host || g.body != tt.want.body || fmt.Sprint(g.header) != fmt.Sprint(tt.want.header) {
			t.Errorf("%q:\ncontrol got %+v,\n       want %+v", tt.request, g, tt.want)
		}
	}
}

// What the worker does not pass on.
func TestNotPassed(t *testing.T) {
	line := newFakeLine(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { t.Errorf("control got %s %s", r.Host, r.RequestURI) }))
	addr := newEndpoint(t, line, nil)
	signed := newEndpoint(t, line, (&authorizer{scope: testScope, now: time.Now}).parse)
	for _, tt := range []struct {
		addr, request string
		status        int
		kind          string
	}{
		{addr, "GET /switch HTTP/1.1\r\nHost: control.internal\r\n\r\n", 403, "AccessDeniedException"},
		{addr, "GET /verify HTTP/1.1\r\nHost: CONTROL.internal.:80\r\n\r\n", 403, "AccessDeniedException"},
		{addr, "GET / HTTP/1.1\r\nHost: worker.internal\r\n\r\n", 403, "AccessDeniedException"},
		{signed, "GET /code/../verify HTTP/1.1\r\nHost: control.internal\r\n\r\n", 403, "AccessDeniedException"},
		{addr, "GET http://control.internal/resolve HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "UnknownOperationException"},
		{addr, "GET //control.internal/resolve HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "UnknownOperationException"},
		{addr, "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "UnknownOperationException"},
		{addr, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 403, "AccessDeniedException"},
		{addr, "GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://example.com\r\n\r\n", 403, "AccessDeniedException"},
		{addr, "GET / HTTP/1.1\r\nHost: [fe80::1%25en0]:80\r\n\r\n", 400, "InvalidRequestContentException"},
		{addr, "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 02\r\n\r\n{}", 400, "InvalidRequestContentException"},
		{signed, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", 403, "MissingAuthenticationTokenException"},
		{signed, "GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: Basic eDp5\r\n\r\n", 403, "IncompleteSignatureException"},
		{signed, "GET / HTTP/1.1\r\nHost: localhost\r\nSandboxd-Unsigned: 1\r\n\r\n", 403, "MissingAuthenticationTokenException"},
	} {
		res, _ := send(t, tt.addr, tt.request)
		body, _ := io.ReadAll(res.Body)
		if res.StatusCode != tt.status || res.Header.Get("X-Amzn-Errortype") != tt.kind || res.Header.Get("X-Amzn-Requestid") == "" {
			t.Errorf("%q: %s %v %s, want %d %s", tt.request, res.Status, res.Header, body, tt.status, tt.kind)
		}
	}
	if n := line.opened.Load(); n != 0 {
		t.Errorf("%d connections to control", n)
	}
}

// An upload of 70 MB is streamed: little of it is in memory, and a client sends no more than
// control reads.
func TestLargeBodies(t *testing.T) {
	const size = 70 << 20
	part := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	sums := make(chan [sha256.Size]byte, 1)
	read := make(chan bool)
	addr := newEndpoint(t, newFakeLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		<-read
		h := sha256.New()
		var most uint64
		buf := make([]byte, 1<<20)
		for i := 0; ; i++ {
			n, err := r.Body.Read(buf)
			h.Write(buf[:n])
			if i%100 == 0 {
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				most = max(most, m.HeapInuse)
			}
			if err != nil {
				break
			}
		}
		if most > 40<<20 {
			t.Errorf("%d MB of heap during an upload of %d MB", most>>20, size>>20)
		}
		sums <- [sha256.Size]byte(h.Sum(nil))
		for range size / len(part) {
			if _, err := w.Write(part); err != nil {
				return
			}
		}
	})), nil)
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n", size)
	want, sent := sha256.New(), 0
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	for sent < size {
		n, err := conn.Write(part[sent%len(part):])
		want.Write(part[sent%len(part):][:n])
		if sent += n; err != nil { // nobody reads
			break
		}
	}
	if sent > size/2 {
		t.Errorf("the client could send %d MB that control does not read", sent>>20)
	}
	close(read)
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	for sent < size {
		n, err := conn.Write(part[sent%len(part):])
		if err != nil {
			t.Fatal(err)
		}
		want.Write(part[sent%len(part):][:n])
		sent += n
	}
	if got := <-sums; !bytes.Equal(got[:], want.Sum(nil)) {
		t.Error("control got another body")
	}
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := sha256.New()
	if n, err := io.Copy(got, res.Body); err != nil || n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("an answer of %d bytes, %v", n, err)
	}
}

// A client gets the answer of control also if control does not read its body.
func TestAnswerBeforeTheBody(t *testing.T) {
	answer := strings.Repeat("too large ", 20<<10)
	addr := newEndpoint(t, newFakeLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		for part := range slices.Chunk([]byte(answer), 4<<10) {
			_, _ = w.Write(part)
			_ = http.NewResponseController(w).Flush()
		}
	})), nil)
	for _, size := range []int64{1 << 10, 200 << 10, 300 << 10, 20 << 20} {
		for _, chunked := range []bool{false, true} {
			body := io.LimitReader(zeros{}, size)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+addr+"/a", body)
			if err != nil {
				t.Fatal(err)
			}
			if req.ContentLength = size; chunked {
				req.ContentLength = -1
			}
			transport := &http.Transport{}
			res, err := transport.RoundTrip(req)
			if err != nil {
				t.Errorf("%d bytes, chunked %v: %v", size, chunked, err)
				continue
			}
			got, err := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusRequestEntityTooLarge || string(got) != answer || err != nil {
				t.Errorf("%d bytes, chunked %v: %s, %d bytes of %d, %v", size, chunked, res.Status, len(got), len(answer), err)
			}
			res.Body.Close()
			transport.CloseIdleConnections()
		}
	}
}

// zeros is a reader of zeros.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// A client that expects 100 Continue gets it when control reads the body, once, and never if
// control refuses the request.
func TestPassedExpectation(t *testing.T) {
	addr := newEndpoint(t, newFakeLine(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/refused" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = io.Copy(w, r.Body)
	})), nil)
	for path, want := range map[string]string{"/refused": "403", "/taken": "100"} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n", path)
		r := bufio.NewReader(conn)
		line, err := r.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "HTTP/1.1 "+want) {
			t.Errorf("%s: %q, %v; want %s", path, line, err, want)
			continue
		}
		if want == "100" {
			if blank, err := r.ReadString('\n'); err != nil || blank != "\r\n" {
				t.Errorf("after 100: %q, %v", blank, err)
			}
			fmt.Fprint(conn, "{}")
			res, err := http.ReadResponse(r, nil)
			if err != nil || res.StatusCode != 200 {
				t.Fatalf("%v, %v", res, err)
			}
			if body, err := io.ReadAll(res.Body); err != nil || string(body) != "{}" {
				t.Errorf("%s, %v", body, err)
			}
		}
	}
}

// When the client has gone, control is told; when control has gone, the client.
func TestPassedRequestsEnd(t *testing.T) {
	arrived, ended := make(chan bool, 1), make(chan error, 1)
	hold := make(chan bool)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/begun" {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "begin")
			_ = http.NewResponseController(w).Flush()
		}
		arrived <- true
		select {
		case <-r.Context().Done():
			ended <- r.Context().Err()
		case <-hold:
		}
	})
	line := newFakeLine(t, handler)
	addr := newEndpoint(t, line, nil)
	for _, request := range []string{
		"GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
	} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, request)
		<-arrived
		conn.Close()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("%q: control was not told that the client has gone", request)
		}
	}

	go func() {
		<-arrived
		line.kill()
	}()
	res, _ := send(t, addr, "POST /a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" || res.Header.Get("X-Amzn-Errortype") != "ServiceException" {
		t.Errorf("control died during a request: %s %v", res.Status, res.Header)
	}
	res, _ = send(t, addr, "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") != "1" {
		t.Errorf("without control: %s %v", res.Status, res.Header)
	}
	line.begin(handler)
	res, _ = send(t, addr, "GET /begun HTTP/1.1\r\nHost: localhost\r\n\r\n")
	line.kill()
	if body, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("an answer that control had begun ends without an error: %q", body)
	}
	line.begin(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	if res, _ = send(t, addr, "GET /a HTTP/1.1\r\nHost: localhost\r\n\r\n"); res.StatusCode != http.StatusOK {
		t.Errorf("with the next process: %s", res.Status)
	}
}

// FuzzPass sends the endpoint what may be requests. What control gets of them is what it would
// have got from the client itself, as far as a signature can cover it.
func FuzzPass(f *testing.F) {
	for _, seed := range []string{
		"GET /2015-03-31/functions?a=b HTTP/1.1\r\nHost: localhost\r\n\r\n",
		"POST /a%2Fb;c?d#e HTTP/1.1\r\nHost: a:1\r\nContent-Length: 2\r\nX-Amz-A: b\r\nX-Amz-A: c\r\n\r\n{}",
		"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n1\r\na\r\n0\r\nX-T: 1\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, upgrade\r\nUpgrade: y\r\nX: 1\r\nTe: trailers\r\n\r\n",
		"GET / HTTP/1.0\r\nHost: a\r\nPragma: no-cache\r\nAccept-Encoding: x\r\nUser-Agent:\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: [::1]\r\nExpect: 100-continue\r\nContent-Length: 1\r\nForwarded: a\r\nX-Forwarded-Host: b\r\n\r\nx",
		"PUT / HTTP/1.0\r\nHost: a\r\n\r\n",
		"GET /\xff\x80 HTTP/1.1\r\nHost: a\r\nA:  b \t c \r\nB:\r\n\r\n",
	} {
		f.Add([]byte(seed))
	}
	type seen struct {
		method, target, host string
		header               http.Header
		body                 string
		whole                bool
	}
	none := func(*http.Request) (*sigv4.Signature, error) { return nil, nil }
	// exchange sends a request to h, and one that ends the connection, and waits for the end.
	exchange := func(t *testing.T, h http.Handler, request []byte) {
		s := httptest.NewServer(h)
		defer s.Close()
		conn, err := net.Dial("tcp", s.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(200 * time.Millisecond)) // of a body that does not end
		_, _ = conn.Write(append(slices.Clone(request), "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"...))
		_, _ = io.Copy(io.Discard, conn)
	}
	f.Fuzz(func(t *testing.T, request []byte) {
		if bytes.Count(request, []byte("HTTP/")) > 1 || len(request) > 8<<10 { // one request
			return
		}
		var mu sync.Mutex
		record := func(list *[]seen) http.Handler {
			return http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				*list = append(*list, seen{r.Method, r.RequestURI, r.Host, r.Header, string(body), err == nil})
			})
		}
		var want, got []seen
		exchange(t, record(&want), request)
		line := &fakeLine{}
		line.begin(record(&got))
		defer line.kill()
		passer := newPasser(line, none, func(error) {})
		exchange(t, passer, request)
		passer.close()
		if err := line.server.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, g := range got {
			if !g.whole { // the client learns that it failed
				continue
			}
			i := slices.IndexFunc(want, func(w seen) bool { // some may have been refused
				return w.method == g.method && w.target == g.target && w.host == g.host && w.body == g.body
			})
			if i < 0 {
				t.Fatalf("control got %+v, want one of %+v", g, want)
			}
			w := want[i]
			want = want[i+1:]
			hop := hopHeaders(w.header)
			for name, values := range w.header {
				if slices.Contains(hop, name) || strings.HasPrefix(name, message.HeaderPrefix) || name == "User-Agent" && w.header.Get(name) == "" {
					continue
				}
				if !slices.Equal(values, g.header[name]) {
					t.Errorf("%s is %q, was %q", name, g.header[name], values)
				}
			}
			for name := range g.header {
				// That a PUT or POST has no body is said by its length, as RFC 9110 wants it.
				empty := name == "Content-Length" && g.header.Get(name) == "0" && g.body == ""
				if w.header[name] == nil && !slices.Contains(hop, name) && name != message.UnsignedHeader && !empty {
					t.Errorf("%s was added", name)
				}
			}
		}
	})
}
