package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
)

// streaming starts an invocation that takes its answer as it comes, on a runtime that
// waits for it.
func (w *world) streaming(id string) <-chan *rapid.Result {
	w.t.Helper()
	w.running()
	event, _ := w.later("GET", nextPath)
	w.await(rapid.Idle)
	return w.streamingAgain(id, event)
}

func (w *world) streamingAgain(id string, event <-chan reply) <-chan *rapid.Result {
	w.t.Helper()
	got := make(chan *rapid.Result, 1)
	go func() {
		r, err := w.s.Invoke(context.Background(), &rapid.Invocation{ID: id, Payload: []byte("1"), Stream: true})
		if err != nil {
			w.t.Errorf("Invoke: %v", err)
		}
		got <- r
	}()
	<-event
	return got
}

// upload is a response that the test sends piece by piece.
type upload struct {
	*io.PipeWriter
	req  *http.Request
	resp chan *http.Response // nil when there is none
}

func (w *world) upload(id string, headers ...string) *upload {
	w.t.Helper()
	r, pw := io.Pipe()
	u := &upload{PipeWriter: pw, resp: make(chan *http.Response, 1)}
	var err error
	if u.req, err = http.NewRequest("POST", w.base+path(id, "response"), r); err != nil {
		w.t.Fatal(err)
	}
	u.req.Trailer = http.Header{"Lambda-Runtime-Function-Error-Type": nil, "Lambda-Runtime-Function-Error-Body": nil}
	for i := 0; i < len(headers); i += 2 {
		u.req.Header.Set(headers[i], headers[i+1])
	}
	go func() {
		resp, err := w.client.Do(u.req)
		if err == nil {
			_ = resp.Body.Close()
		}
		_ = r.CloseWithError(io.ErrClosedPipe)
		u.resp <- resp
	}()
	w.t.Cleanup(func() { _ = pw.Close() })
	return u
}

func (u *upload) send(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(u, text); err != nil {
		t.Fatal(err)
	}
}

var modeHeader = []string{"Lambda-Runtime-Function-Response-Mode", "streaming", "Content-Type", "text/event-stream"}

// RT-69, RT-70: each piece is with the invoker before the next is sent; 202 and
// trailers come after the last. aws-lambda-go announces trailers and sends no mode.
func TestStreaming(t *testing.T) {
	for _, fails := range []bool{false, true} {
		testStreaming(t, fails, modeHeader...)
		testStreaming(t, fails, "Content-Type", "text/event-stream")
	}
}

func testStreaming(t *testing.T, fails bool, headers ...string) {
	w := newWorld(t, setup{})
	res := w.streaming("id")
	u := w.upload("id", headers...)
	u.send(t, "first")
	r := <-res
	if r.Stream == nil || r.ContentType != "text/event-stream" {
		t.Fatalf("%+v", r)
	}
	got, next := "", []string{" second", " third"}
	for chunk := range r.Stream.Chunks() {
		got += string(chunk)
		select {
		case resp := <-u.resp:
			t.Fatalf("an answer before the last byte: %v", resp)
		default:
		}
		switch {
		case len(next) > 0:
			u.send(t, next[0])
			next = next[1:]
		default:
			if fails {
				u.req.Trailer.Set("Lambda-Runtime-Function-Error-Type", "MyError")
				u.req.Trailer.Set("Lambda-Runtime-Function-Error-Body", base64.StdEncoding.EncodeToString([]byte(`{"errorMessage":"m"}`)))
			}
			_ = u.Close()
		}
	}
	end := r.Stream.Result()
	if got != "first second third" || end.FunctionError != fails || fails && (end.Code != "MyError" || string(end.Payload) != `{"errorMessage":"m"}`) {
		t.Errorf("%q, %+v %s", got, end, end.Payload)
	}
	if resp := <-u.resp; resp == nil || resp.StatusCode != 202 {
		t.Errorf("%v, want 202", resp)
	}
	w.later("GET", nextPath)
	<-end.Done
}

// RT-33, RT-36: what is refused does not begin a stream.
func TestStreamingRefused(t *testing.T) {
	w := newWorld(t, setup{})
	res := w.streaming("id")
	if r := w.do("POST", path("id", "response"), "x", append([]string{"Lambda-Runtime-Invocation-Id", "other"}, modeHeader...)...); r.status != 410 {
		t.Errorf("foreign nonce: %d %s", r.status, r.body)
	}
	if r := w.do("POST", path("other", "response"), "x", modeHeader...); r.status != 400 {
		t.Errorf("foreign id: %d %s", r.status, r.body)
	}
	if r := w.do("POST", path("id", "response"), "x", "Lambda-Runtime-Function-Response-Mode", "Streaming"); r.errorType() != "InvalidFunctionResponseMode" {
		t.Errorf("bad mode: %d %s", r.status, r.body)
	}
	if r := <-res; r.Stream != nil || r.ErrorType != "Runtime.InvalidResponseModeHeader" || !strings.Contains(string(r.Payload), `Invalid function response mode \"Streaming\"`) {
		t.Errorf("%+v", r)
	}
}

// RT-74: a streaming invocation of a handler that does not stream.
func TestStreamingBufferedHandler(t *testing.T) {
	w := newWorld(t, setup{})
	res := w.streaming("id")
	if r := w.do("POST", path("id", "response"), "whole"); r.status != 202 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := <-res; r.Stream != nil || string(r.Payload) != "whole" {
		t.Errorf("%+v", r)
	}
}

// RT-71: above the limit the invoker hears of it at once and the runtime gets 413, and goes on.
func TestStreamingLimit(t *testing.T) {
	w := newWorld(t, setup{config: func(c *rapid.Config) { c.Settings.Stream.Bytes = 1 << 20 }})
	res := w.streaming("one")
	post := func(id string, size int) chan reply {
		got := make(chan reply, 1)
		go func() { got <- w.do("POST", path(id, "response"), strings.Repeat("x", size), modeHeader...) }()
		return got
	}
	for _, tt := range []struct {
		id           string
		size, status int
	}{{"one", 1<<20 + 1, 413}, {"two", 1 << 20, 202}} {
		answer := post(tt.id, tt.size)
		r, n := <-res, 0
		for chunk := range r.Stream.Chunks() {
			n += len(chunk)
		}
		if end := r.Stream.Result(); n != 1<<20 || end.FunctionError != (tt.status == 413) {
			t.Errorf("%d of %d bytes came, %+v", n, tt.size, end)
		}
		if a := <-answer; a.status != tt.status {
			t.Errorf("%d %s, want %d", a.status, a.body, tt.status)
		}
		event, _ := w.later("GET", nextPath)
		<-r.Done
		if tt.id == "one" {
			res = w.streamingAgain("two", event)
		}
	}
}

// RT-73: at the deadline the connection of the response is closed, whether the runtime
// is in the middle of a piece or waits for an invoker that reads nothing.
func TestStreamingTimeout(t *testing.T) {
	for _, reads := range []bool{true, false} {
		w := newWorld(t, setup{config: func(c *rapid.Config) { c.Function.Timeout = time.Second }})
		res := w.streaming("id")
		u := w.upload("id", modeHeader...)
		go func() { _, _ = io.Copy(u, io.LimitReader(zeros{}, 100<<20)) }() // blocks if nobody reads
		r := <-res
		if r.Stream == nil {
			t.Fatalf("no stream: %+v %s", r, r.Payload)
		}
		if reads {
			for range r.Stream.Chunks() {
				time.Sleep(time.Millisecond) // so that it cannot all come in time
			}
		}
		<-r.Stream.Ended()
		if end := r.Stream.Result(); end.ErrorType != "Sandbox.Timeout" {
			t.Errorf("%+v %s", end, end.Payload)
		}
		select {
		case resp := <-u.resp:
			if resp != nil {
				t.Errorf("an answer to the runtime: %v", resp.Status)
			}
		case <-time.After(5 * time.Second):
			t.Error("the connection is still open")
		}
		<-r.Done
	}
}

// TL-45: the first byte is the body's, not the header's; for a streamed answer and one that is not.
func TestTimesOfTheBody(t *testing.T) {
	const pause = 100 * time.Millisecond
	for _, mode := range []string{"", "Lambda-Runtime-Function-Response-Mode: streaming\r\n"} {
		var log bytes.Buffer
		t.Run(mode, func(t *testing.T) { // at its end the log is complete
			w := newWorld(t, setup{config: func(c *rapid.Config) { c.Sink = telemetry.NewWriter(&log, telemetry.JSON) }})
			res := w.streaming("id")
			answered := make(chan *rapid.Result, 1)
			go func() { // takes the bytes as they come
				r := <-res
				if r.Stream != nil {
					for range r.Stream.Chunks() {
					}
				}
				answered <- r
			}()
			c := w.dial()
			for i, part := range []string{
				"POST " + path("id", "response") + " HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + mode + "\r\n",
				"3\r\nabc\r\n", "2\r\nde\r\n", "0\r\n\r\n",
			} {
				if i > 0 {
					time.Sleep(pause)
				}
				_, _ = io.WriteString(c, part)
			}
			r := <-answered
			w.later("GET", nextPath)
			<-r.Done
		})
		var record struct {
			Metrics struct{ ProducedBytes int }
			Spans   []struct{ DurationMs float64 }
		}
		_, line, _ := bytes.Cut(log.Bytes(), []byte(`"type":"platform.runtimeDone","record":`))
		if err := json.NewDecoder(bytes.NewReader(line)).Decode(&record); err != nil || len(record.Spans) != 3 {
			t.Fatalf("%v in %s", err, log.Bytes())
		}
		least := float64(pause.Milliseconds())
		latency, duration := record.Spans[0].DurationMs, record.Spans[1].DurationMs
		// The first byte may be read late, but not early, and the last one not early either.
		if record.Metrics.ProducedBytes != 5 || latency < least || latency+duration < 3*least-0.01 || duration < least {
			t.Errorf("mode %q: %+v", mode, record)
		}
	}
}

// Trailers that net/http does not take are not lost in silence: the answer is an error.
func TestTrailersTooLong(t *testing.T) {
	w := newWorld(t, setup{})
	res := w.streaming("id")
	u := w.upload("id", modeHeader...)
	u.send(t, "half")
	r := <-res
	u.req.Trailer.Set("Lambda-Runtime-Function-Error-Body", strings.Repeat("A", 5000))
	_ = u.Close()
	for range r.Stream.Chunks() {
	}
	if end := r.Stream.Result(); end.ErrorType != "Runtime.TruncatedResponse" {
		t.Errorf("%+v", end)
	}
	if resp := <-u.resp; resp == nil || resp.StatusCode != 400 {
		t.Errorf("%v, want 400", resp)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }

// FuzzAnswerBody sends arbitrary bytes as the chunked body and trailers of a response.
func FuzzAnswerBody(f *testing.F) {
	for _, s := range []string{
		"0\r\n\r\n",
		"3\r\nabc\r\n0\r\n\r\n",
		"3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Type: T\r\nLambda-Runtime-Function-Error-Body: e30=\r\n\r\n",
		"3\r\nabc\r\n0\r\nLambda-Runtime-Function-Error-Body: ***\r\n\r\n",
		"ffffffffffffffff\r\nabc", "3;x=y\r\nabc\r\n0\r\n\r\n", "3\r\nabc", "zz\r\n", "0\r\nA: b\r\n",
	} {
		f.Add([]byte(s))
	}
	const head = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" +
		"Trailer: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body\r\n\r\n"
	f.Fuzz(func(t *testing.T, body []byte) {
		read := func() (seen []byte, failed bool, trailer http.Header) {
			hr, err := http.ReadRequest(bufio.NewReader(io.MultiReader(strings.NewReader(head), bytes.NewReader(body))))
			if err != nil {
				t.Fatalf("the head is good: %v", err)
			}
			r := &request{Request: hr}
			b, n, tooLarge, truncated := r.body(1 << 10)
			if tooLarge != (n > 1<<10) || tooLarge != (b == nil && n > 0) || !tooLarge && n != int64(len(b)) || n > int64(len(body)) {
				t.Errorf("%d bytes, counted %d, too large %v", len(b), n, tooLarge)
			}
			return b, tooLarge || truncated, hr.Trailer
		}
		first, failed, trailer := read()
		again, _, _ := read()
		if !bytes.Equal(first, again) {
			t.Errorf("%q and %q of the same bytes", first, again)
		}
		kind, errorBody := trailers(trailer)
		if failed && trailer.Get("Lambda-Runtime-Function-Error-Type") == "" && kind != "" {
			t.Errorf("a type %q from nowhere", kind)
		}
		if text := trailer.Get("Lambda-Runtime-Function-Error-Body"); (text == "") != (errorBody == nil) || strings.ContainsAny(kind, "\r\n") {
			t.Errorf("%q became %q; type %q", text, errorBody, kind)
		}
	})
}
