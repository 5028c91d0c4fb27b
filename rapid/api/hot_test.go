package api

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// hotAnswerHead is what aws-lambda-go sends before the body of an answer.
const hotAnswerHead = "POST /2018-06-01/runtime/invocation/id/response HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n" +
	"User-Agent: aws-lambda-go/go1.26.8\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n" +
	"Trailer: Lambda-Runtime-Function-Error-Type,Lambda-Runtime-Function-Error-Body\r\nAccept-Encoding: gzip\r\n\r\n"

const hotNext = "GET /2018-06-01/runtime/invocation/next HTTP/1.1"

// RT-01: what is hot, and what net/http has to judge.
func TestIsHot(t *testing.T) {
	for request, want := range map[string]bool{
		"GET /2018-06-01/runtime/invocation/next":          true,
		"POST /2018-06-01/runtime/invocation/id/response":  true,
		"POST /2018-06-01/runtime/invocation/id/error":     true,
		"POST /2018-06-01/runtime/invocation/next":         false,
		"GET /2018-06-01/runtime/invocation/id/response":   false,
		"POST /2018-06-01/runtime/invocation//response":    false,
		"POST /2018-06-01/runtime/invocation/id/response/": false,
		"POST /2018-06-01/runtime/init/error":              false,
		"GET /2018-06-01/ping":                             false,
		"GET //2018-06-01/runtime/invocation/next":         false,
		"POST /2020-01-01/extension/register":              false,
	} {
		method, path, _ := strings.Cut(request, " ")
		if got := isHot(method, path); got != want {
			t.Errorf("%s: %v", request, got)
		}
	}
}

// wire is a connection of which a test sees every byte.
type wire struct {
	net.Conn
	t  *testing.T
	in *bufio.Reader
}

func (w *world) wire(t *testing.T) *wire {
	c := w.dial()
	return &wire{c, t, bufio.NewReader(c)}
}

// send writes each part in a packet of its own, as far as that can be had.
func (c *wire) send(parts ...string) {
	c.t.Helper()
	for i, p := range parts {
		if i > 0 {
			time.Sleep(5 * time.Millisecond) // not for the result: it must be the same without
		}
		if _, err := io.WriteString(c, p); err != nil {
			c.t.Fatal(err)
		}
	}
}

func (c *wire) get() reply {
	c.t.Helper()
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return reply{r.StatusCode, r.Header, string(b)}
}

const (
	wireNext = hotNext + "\r\nHost: x\r\n\r\n"
	wirePing = "GET /2018-06-01/ping HTTP/1.1\r\nHost: x\r\n\r\n"
)

// RT-02, RT-05, RT-07, RT-12: one connection, on which hot requests and others follow
// each other, in one piece, in many, and before they are asked for.
func TestHotConnection(t *testing.T) {
	w := newWorld(t, setup{})
	w.running()
	c := w.wire(t)
	c.send(wireNext)
	for i, parts := range [][]string{
		{hotAnswerHead + "4\r\n\"hi\"\r\n0\r\n\r\n" + wireNext},
		{"POST " + path("id", "response") + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\"hi\"" + wireNext},
		{hotAnswerHead + "4\r\n\"hi\"\r\n", "0\r\n\r\n", wireNext},
		// A trailer that is not announced, and a line end too many, together and alone.
		{"POST " + path("id", "response") + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\"hi\"\r\n0\r\nX: y\r\n\r\n\r\n" + wireNext},
		{"POST " + path("id", "response") + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\"hi\"", "\r\n", wireNext},
		{hotAnswerHead, "4\r", "\n\"h", "i\"\r\n0\r\n", "\r\n" + wireNext[:20], wireNext[20:]}, // from here on net/http serves it
		{"POST " + path("id", "response") + " HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n\"h", "i\"", wirePing + wireNext},
	} {
		w.await(rapid.Idle)
		res := w.invoke("id")
		if e := c.get(); e.status != 200 || e.body != `{"x":1}` || e.header.Get("Content-Length") != "7" || e.header.Get("Date") == "" {
			t.Fatalf("%d: event %+v", i, e)
		}
		c.send(parts...)
		if r := c.get(); r.status != 202 || r.body != "{\"status\":\"OK\"}\n" || r.header.Get("Content-Type") != "application/json" {
			t.Fatalf("%d: answer %+v", i, r)
		}
		if r := <-res; string(r.Payload) != `"hi"` || r.FunctionError {
			t.Fatalf("%d: %+v %s", i, r, r.Payload)
		}
		if strings.Contains(parts[len(parts)-1], wirePing) {
			if r := c.get(); r.body != "pong" {
				t.Fatalf("%d: ping %+v", i, r)
			}
		}
	}
}

// RT-28: a refused answer is read to its end, so that the connection can go on; one that
// is too long for that ends it, and the refusal still arrives.
func TestHotRefusal(t *testing.T) {
	w := newWorld(t, setup{})
	w.running()
	post := "POST " + path("other", "response") + " HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
	c := w.wire(t)
	for _, size := range []int{0, 10, 100 << 10} {
		c.send(fmt.Sprintf(post, size) + strings.Repeat("x", size))
		if r := c.get(); r.status != 400 || r.errorType() != "InvalidRequestID" || r.header.Get("Connection") != "" {
			t.Fatalf("%d bytes: %+v", size, r)
		}
	}
	const many = 60
	c.send(strings.Repeat(fmt.Sprintf(post, 0), many)) // more than is read at once
	for i := range many {
		if r := c.get(); r.status != 400 || r.errorType() != "InvalidRequestID" {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	early := w.wire(t)
	early.send(fmt.Sprintf(post, 1<<20)) // its body is not waited for
	if r := early.get(); r.status != 400 || r.errorType() != "InvalidRequestID" {
		t.Fatalf("%+v", r)
	}
	c.send(fmt.Sprintf(post, 1<<20) + strings.Repeat("x", 400<<10))
	if r := c.get(); r.status != 400 || r.errorType() != "InvalidRequestID" {
		t.Fatalf("%+v", r)
	}
	if b, err := c.in.Peek(1); err != io.EOF {
		t.Errorf("the connection goes on with %q, %v", b, err)
	}
}

// RT-25: connections of waiting calls whose client has gone make room for others.
func TestGoneWaitersMakeRoom(t *testing.T) {
	w := newWorld(t, setup{limits: Limits{Connections: 4, HeaderTime: time.Minute}})
	w.running()
	for range 3 {
		w.wire(t).send(wireNext)
	}
	gone := w.wire(t)
	gone.send(wireNext)
	w.await(rapid.Idle)
	gone.Close()
	w.until(func() bool { // its end may be on its way
		c := w.wire(t)
		c.send(wirePing)
		_, err := http.ReadResponse(c.in, nil)
		return err == nil
	})
}

// RT-25: a client that has said something more and gone gets no event.
func TestGoneWaiterThatSpoke(t *testing.T) {
	w := newWorld(t, setup{})
	w.running()
	gone, there := w.wire(t), w.wire(t)
	gone.send(wireNext)
	w.await(rapid.Idle)
	gone.send("\n")
	gone.Close()
	there.send(wireNext)
	res := w.invoke("id")
	if e := there.get(); e.status != 200 {
		t.Fatalf("%+v", e)
	}
	there.send(hotAnswerHead + "2\r\n{}\r\n0\r\n\r\n")
	if r := <-res; string(r.Payload) != "{}" {
		t.Errorf("%+v", r)
	}
}

// RT-12: a payload that goes out apart from its head is whole.
func TestHotLargeEvent(t *testing.T) {
	w := newWorld(t, setup{})
	w.running()
	c := w.wire(t)
	c.send(wireNext)
	w.await(rapid.Idle)
	payload := strings.Repeat("0123456789", 500<<10)
	go func() {
		_, _ = w.s.Invoke(t.Context(), &rapid.Invocation{ID: "id", Payload: []byte(payload)}) // ends with the test
	}()
	if e := c.get(); e.body != payload {
		t.Errorf("%d bytes, want %d", len(e.body), len(payload))
	}
}
