package invoke

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/httpfast"
)

// said is what a client sees that has sent everything: the answers, and what follows
// them if that is none.
func said(t *testing.T, addr string, b []byte) (seen []string) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second)) // a hang is a failure, not a hung test
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, _ = c.Write(b) // the server may stop reading early
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	all, _ := io.ReadAll(c) // a reset, if the server has not read all
	<-sent
	in := bufio.NewReader(bytes.NewReader(all))
	for {
		if _, err := in.Peek(1); err != nil {
			return seen
		}
		res, err := http.ReadResponse(in, nil)
		if err != nil {
			return append(seen, err.Error())
		}
		body, err := io.ReadAll(res.Body)
		res.Header.Del("Date")
		if res.StatusCode == http.StatusBadRequest { // not from the handler; less than 4 bytes and no more are none to net/http
			continue
		}
		closes := res.Close && !bytes.Contains(body, []byte(broken)) // then net/http closes without a word
		seen = append(seen, fmt.Sprint(res.StatusCode, res.Header, closes, res.ContentLength, res.TransferEncoding, string(body), err))
	}
}

// broken is what a handler says of a body that has no good end.
const broken = " broken "

// handlers use bodies and answers as ours do, and others as they might.
func handlers(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	var body []byte
	var err error
	switch {
	case strings.Contains(r.URL.Path, "/unread/"):
	case strings.Contains(r.URL.Path, "/close/"):
		w.Header().Set("Connection", "close")
	case strings.Contains(r.URL.Path, "/part/"):
		body = make([]byte, 1)
		_, err = io.ReadFull(r.Body, body)
	default:
		body, err = io.ReadAll(r.Body)
	}
	seen := fmt.Sprint(r.Method, r.URL, r.RequestURI, r.Proto, r.Host, r.Header, r.ContentLength, r.TransferEncoding, r.Close, r.Trailer, string(body))
	if err != nil {
		seen += broken
	}
	if !strings.Contains(r.URL.Path, "/flush/") {
		w.Header().Set("Content-Length", strconv.Itoa(len(seen)))
		_, _ = io.WriteString(w, seen)
		return
	}
	for _, part := range []string{"", seen, "end"} {
		_, _ = io.WriteString(w, part)
		_ = http.NewResponseController(w).Flush()
	}
}

// FuzzServing: whatever a client sends, neither it nor the handler can tell whether
// net/http alone serves.
func FuzzServing(f *testing.F) {
	const two, stream = "Content-Length: 2\r\n\r\n{}", "POST " + streamPath + " HTTP/1.1\r\nHost: x\r\n"
	to := func(name string) string { return strings.Replace(requestHead, "hello", name, 1) }
	for _, s := range []string{
		requestHead + two + requestHead + two,
		requestHead + two + "\r\n\r\n" + requestHead + two,
		requestHead + two + "\r\n\r\n\n" + requestHead + two,
		requestHead + two + "GET /x HTTP/1.1\r\nHost: x\r\n\r\n" + requestHead + two,
		requestHead + "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
		requestHead + "Content-Length: +2\r\n\r\n{}",
		requestHead + "Content-Length: 2, 2\r\n\r\n{}",
		requestHead + "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
		requestHead + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
		requestHead + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
		requestHead + "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
		requestHead + "Transfer-Encoding: \tchunked\r\n\r\n0\r\n\r\n" + requestHead + two,
		requestHead + "Transfer-Encoding: chunked\r\n\r\n2;a=b\r\n{}\r\n0;\r\nTrailer-X: y\r\n\r\n" + requestHead + two,
		requestHead + "Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n" + requestHead + two,
		requestHead + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}x\r\n0\r\n\r\n" + requestHead + two,
		requestHead + "Transfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n" + requestHead + two,
		requestHead + "Trailer: X\r\nContent-Length: 2\r\n\r\n{}",
		requestHead + "A: b\r\n c\r\n" + two,
		requestHead + "A: b\n" + two,
		requestHead + "A: b\rc\r\n" + two,
		requestHead + "A: \x00\r\n" + two,
		requestHead + "A: \x7f\r\n" + two,
		requestHead + "A: \xff\r\n" + two,
		requestHead + ": b\r\n" + two,
		requestHead + "Host: x\r\n" + two,
		requestHead + "Host: y\r\n" + two,
		requestHead + "Expect: 100-continue\r\n" + two + requestHead + two,
		requestHead + "Expect: x\r\n" + two,
		requestHead + "Connection: close\r\n" + two + requestHead + two,
		requestHead + "Connection: keep-alive, close\r\n" + two + requestHead + two,
		requestHead + "Connection: keep-alive\r\nConnection: close\r\n" + two + requestHead + two,
		requestHead + "Connection: Upgrade\r\nUpgrade: h2c\r\n" + two,
		requestHead + "Origin: http://x\r\n" + two + requestHead + two,
		requestHead + "Origin: http://x\r\nContent-Length: 20\r\n\r\n{}",
		requestHead + "Sec-Fetch-Site: cross-site\r\n" + two + requestHead + two,
		requestHead + "Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n{}",
		requestHead + "Content-Length: 9000000\r\n\r\n" + requestHead + two,
		requestHead + "X-Amz-Invocation-Type: DryRun\r\n" + two + requestHead + two,
		requestHead + "X-Amz-Invocation-Type: Event\r\n" + two + requestHead + two,
		requestHead + "Content-Length: 1\r\n\r\n{" + requestHead + two,
		requestHead + "Content-Length: 3\r\n\r\n{}",
		strings.Replace(requestHead, "Host: x", "Host: a/b", 1) + two,
		strings.Replace(requestHead, "Host: x", "Host:", 1) + two,
		strings.Replace(requestHead, "Host: x", "X: y", 1) + two,
		strings.Replace(requestHead, "/1.1", "/1.0", 1) + two + requestHead + two,
		strings.Replace(requestHead, "/1.1", "/1.0", 1) + "Connection: keep-alive\r\n" + two + requestHead + two,
		strings.Replace(requestHead, "/1.1", "/2.0", 1) + two,
		strings.Replace(requestHead, " /", " http://127.0.0.1/", 1) + two,
		strings.Replace(requestHead, " /", " //", 1) + two,
		strings.Replace(requestHead, "hello", "hell%6f", 1) + two,
		strings.Replace(requestHead, "hello", "..", 1) + two,
		strings.Replace(requestHead, "hello/invocations", "hello/invocations?Qualifier=2", 1) + two,
		strings.Replace(requestHead, "POST", "HEAD", 1) + two + requestHead + two,
		strings.Replace(requestHead, "POST", "OPTIONS", 1) + two + requestHead + two,
		strings.Replace(requestHead, "POST ", "POST  ", 1) + two,
		strings.Replace(requestHead, "POST", "post", 1) + two,
		"\r\n" + requestHead + two,
		stream + two + stream + two,
		to("unread") + two + requestHead + two,
		to("unread") + "Content-Length: 9\r\n\r\n{}",
		to("unread") + "Content-Length: 300000\r\n\r\n" + strings.Repeat(" ", 300000) + requestHead + two,
		to("unread") + "Content-Length: 200000\r\n\r\n" + strings.Repeat(" ", 200000) + requestHead + two,
		to("unread") + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n" + requestHead + two,
		to("unread") + "Transfer-Encoding: chunked\r\n\r\nx\r\n{}\r\n0\r\n\r\n" + requestHead + two,
		to("unread") + "Transfer-Encoding: chunked\r\n\r\n41000\r\n" + strings.Repeat(" ", 0x41000) + "\r\n0\r\n\r\n" + requestHead + two,
		to("close") + two + requestHead + two,
		to("close") + "\r\n" + requestHead + two,
		to("part") + two + requestHead + two,
		to("part") + "Content-Length: 200000\r\n\r\n" + strings.Repeat(" ", 200000) + requestHead + two,
		to("flush") + two + requestHead + two,
		to("flush") + "Content-Length: 3\r\n\r\n{}",
		stream + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n" + requestHead + two,
		requestHead + "A: " + strings.Repeat("b", 5000) + "\r\n" + two,
		requestHead + strings.Repeat("A: b\r\n", 50) + two,
	} {
		f.Add([]byte(s))
	}
	serve := func(listener func(net.Listener, *conns) net.Listener) (addr string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.Fatal(err)
		}
		conns := newConns(256)
		var open sync.WaitGroup
		observe := func(c net.Conn, state http.ConnState) {
			conns.observe(c, state)
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Done()
			}
		}
		srv := &http.Server{Handler: http.HandlerFunc(handlers), ConnState: observe, MaxHeaderBytes: maxHeaderBytes,
			DisableGeneralOptionsHandler: true, ErrorLog: log.New(io.Discard, "", 0)}
		over := make(chan error, 1)
		go func() { over <- srv.Serve(listener(l, conns)) }()
		f.Cleanup(func() { srv.Close(); <-over; open.Wait() })
		return l.Addr().String()
	}
	ours := serve(func(l net.Listener, c *conns) net.Listener {
		return &hotListener{l, c, &httpfast.Server{Handler: http.HandlerFunc(handlers), Wants: isHot}, time.Minute, time.Minute, nil}
	})
	theirs := serve(func(l net.Listener, _ *conns) net.Listener { return l })
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := said(t, ours, b), said(t, theirs, b)
		if !slices.Equal(got, want) {
			t.Errorf("%q:\n%q, want\n%q", b, got, want)
		}
	})
}
