package invoke

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/rapid"
)

const streamPath = "/2021-11-15/functions/hello/response-streaming-invocations"

// newStreamRig is a rig with real sandboxes, whose runtime answers each event by
// serving it with handle; body is nil for an answer that is not streamed.
func newStreamRig(t *testing.T, timeout time.Duration, handle func(ctx context.Context, event string) (body io.Reader, a rapid.Answer), change func(*Config)) *rig {
	fn := rapid.Function{Name: "hello", Version: "$LATEST", ARN: testARN, MemoryMB: 128, Timeout: timeout, Bootstrap: rapid.Entry{Path: "/var/task/bootstrap"}}
	serve := func(ctx context.Context, c *rapid.Client, e *rapid.Event) bool {
		body, a := handle(ctx, string(e.Invocation.Payload))
		head := rapid.AnswerHead{Kind: a.Kind, ContentType: a.ContentType}
		if body != nil {
			head.Mode = "streaming"
		}
		st, err := c.BeginAnswer(ctx, e.Invocation.ID, head)
		if err != nil {
			return false
		}
		if body != nil {
			var err error
			a.Seen, err = st.ReadFrom(body)
			a.Truncated = err != nil
		}
		return c.FinishAnswer(ctx, e.Invocation.ID, a) == nil
	}
	r := newRig(t, 1, nil, func(c *Config) {
		c.Functions.(*single).fleet = fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return startServing(fn, serve), nil }})
		if change != nil {
			change(c)
		}
	})
	r.addr, _ = r.serve()
	return r
}

// open begins a streaming invocation.
func (r *rig) open(event string, header ...string) *http.Response {
	r.t.Helper()
	client, scheme := r.http.Client(), "http"
	if r.client != nil {
		scheme = "https"
		transport := &http.Transport{TLSClientConfig: r.client}
		r.t.Cleanup(transport.CloseIdleConnections)
		client = &http.Client{Transport: transport}
	}
	req, err := http.NewRequest("POST", scheme+"://"+r.addr+streamPath, strings.NewReader(event))
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	res, err := client.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = res.Body.Close() })
	return res
}

// read decodes a stream: the payload, and the completion, which must come once and last.
func read(t *testing.T, body io.Reader) (string, completion) {
	t.Helper()
	var payload strings.Builder
	var end completion
	complete := 0
	err := decode(body, func(m message) {
		if complete > 0 {
			t.Errorf("%+v after InvokeComplete (INV-32)", m)
		}
		switch m.event {
		case "PayloadChunk":
			payload.WriteString(m.payload)
		case "InvokeComplete":
			complete++
			if err := json.Unmarshal([]byte(m.payload), &end); err != nil {
				t.Errorf("%q: %v", m.payload, err)
			}
		}
	})
	if err != nil || complete != 1 {
		t.Errorf("%d InvokeComplete, %v", complete, err)
	}
	return payload.String(), end
}

// INV-29, INV-31: chunks are with the client while the function still runs.
func TestStreamComesAsItIsSent(t *testing.T) {
	parts := make(chan string)
	r := newStreamRig(t, time.Minute, func(context.Context, string) (io.Reader, rapid.Answer) {
		pr, pw := io.Pipe()
		go func() {
			for p := range parts {
				_, _ = io.WriteString(pw, p)
			}
			_ = pw.Close()
		}()
		return pr, rapid.Answer{}
	}, nil)
	res := r.open(`{}`)
	for name, want := range map[string]string{"Content-Type": "application/vnd.amazon.eventstream", "X-Amz-Executed-Version": "$LATEST"} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if res.StatusCode != 200 || !isUUID(res.Header.Get("X-Amzn-RequestId")) {
		t.Errorf("%d %v", res.StatusCode, res.Header)
	}
	var got []message
	parts <- "part 0"
	if a := r.do(call{path: streamPath}); a.status != 429 || a.header.Get("X-Amzn-ErrorType") != "TooManyRequestsException" { // INV-33
		t.Errorf("beside a stream that runs: %+v", a)
	}
	err := decode(res.Body, func(m message) {
		got = append(got, m)
		switch {
		case len(got) < 3:
			parts <- fmt.Sprintf("part %d", len(got))
		case len(got) == 3:
			close(parts)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range got {
		want := message{"PayloadChunk", "application/octet-stream", fmt.Sprintf("part %d", i)}
		if i == 3 {
			want = message{"InvokeComplete", "application/json", "{}"}
		}
		if m != want || len(got) != 4 {
			t.Errorf("message %d of %d: %q, want %q", i, len(got), m, want)
		}
	}
}

// INV-32, RT-70, RT-73, RT-74, RT-75: how streams end.
func TestStreamEnds(t *testing.T) {
	prelude := `{"statusCode":418,"headers":{"A":"b"},"cookies":[]}` + strings.Repeat("\x00", 8) + "teapot"
	handle := func(ctx context.Context, event string) (io.Reader, rapid.Answer) {
		switch event {
		case `"buffered"`:
			return nil, rapid.Answer{Payload: []byte(strings.Repeat("x", rapid.MaxPayload))}
		case `"nothing"`:
			return nil, rapid.Answer{}
		case `"error"`:
			return nil, rapid.Answer{Kind: rapid.AnswerError, Payload: []byte(`{"errorType":"T","errorMessage":"<m>"}`), ErrorType: "Function.Mine"}
		case `"trailers"`:
			return strings.NewReader("half"), rapid.Answer{TrailerType: "MyError", TrailerBody: []byte(`{"errorMessage":"m"}`)}
		case `"prelude"`:
			return strings.NewReader(prelude), rapid.Answer{}
		case `"timeout"`:
			pr, pw := io.Pipe()
			go func() { _, _ = io.WriteString(pw, "half"); <-ctx.Done(); _ = pw.CloseWithError(ctx.Err()) }()
			return pr, rapid.Answer{}
		}
		<-ctx.Done() // never answers
		return nil, rapid.Answer{}
	}
	r := newStreamRig(t, 300*time.Millisecond, handle, nil)
	for _, tt := range []struct{ event, payload, code, details string }{
		{"buffered", strings.Repeat("x", rapid.MaxPayload), "", ""},
		{"nothing", "", "", ""},
		{"error", "", "Unhandled", `{"errorType":"T","errorMessage":"<m>"}`},
		{"trailers", "half", "MyError", `{"errorMessage":"m"}`},
		{"prelude", prelude, "", ""},
		{"timeout", "half", "Sandbox.Timeout", `{"errorType":"Sandbox.Timeout","errorMessage":"RequestId: <id> Error: Task timed out after 0.30 seconds"}`},
		{"silence", "", "Sandbox.Timedout", `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: <id> Error: Task timed out after 0.30 seconds"}`},
	} {
		t.Run(tt.event, func(t *testing.T) {
			res := r.open(`"` + tt.event + `"`)
			payload, end := read(t, res.Body)
			want := completion{Code: tt.code, Details: strings.ReplaceAll(tt.details, "<id>", res.Header.Get("X-Amzn-RequestId"))}
			if res.StatusCode != 200 || payload != tt.payload || end != want {
				t.Errorf("%d, %d bytes, %+v, want %d bytes and %+v", res.StatusCode, len(payload), end, len(tt.payload), want)
			}
		})
	}
}

// INV-31, INV-03: with Tail the completion waits for REPORT, streamed or not.
func TestStreamTail(t *testing.T) {
	r := newStreamRig(t, time.Minute, func(_ context.Context, event string) (io.Reader, rapid.Answer) {
		if event == "1" {
			return nil, rapid.Answer{Payload: []byte("x")}
		}
		return strings.NewReader("x"), rapid.Answer{}
	}, nil)
	for _, event := range []string{"1", "2"} {
		res := r.open(event, "X-Amz-Log-Type", "Tail")
		payload, end := read(t, res.Body)
		log, err := base64.StdEncoding.DecodeString(end.Log)
		if id := res.Header.Get("X-Amzn-RequestId"); err != nil || payload != "x" || !strings.HasPrefix(string(log), "START RequestId: "+id) || !strings.Contains(string(log), "REPORT RequestId: "+id) {
			t.Errorf("%q, tail %q, %v", payload, log, err)
		}
	}
}

// INV-28: DryRun.
func TestStreamDryRun(t *testing.T) {
	r := newRig(t, 1, echo, nil)
	if a := r.do(call{path: streamPath, header: map[string]string{"X-Amz-Invocation-Type": "DryRun"}}); a.status != 204 || len(r.invocations()) != 0 {
		t.Errorf("%+v", a)
	}
}

// INV-33: what fails before the first byte is an ordinary error.
func TestStreamServiceError(t *testing.T) {
	r := newRig(t, 1, nil, func(c *Config) {
		c.Functions.(*single).fleet = fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return nil, io.ErrUnexpectedEOF }})
	})
	if a := r.do(call{path: streamPath}); a.status != 500 || a.header.Get("X-Amzn-ErrorType") != "ServiceException" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%+v", a)
	}
}

// SEC-62: a client that goes, or that reads nothing, lets the function run to its
// end, and the sandbox serves on.
func TestStreamWithoutReader(t *testing.T) {
	const size = 32 << 20 // more than the sockets hold
	for _, goes := range []bool{true, false} {
		r := newStreamRig(t, time.Minute, func(_ context.Context, event string) (io.Reader, rapid.Answer) {
			if event == `"big"` {
				return io.LimitReader(zeros{}, size), rapid.Answer{}
			}
			return strings.NewReader("good"), rapid.Answer{}
		}, func(c *Config) { c.WriteTimeout = 300 * time.Millisecond })
		addr, end := r.serve()
		slow := r.dial(addr)
		fmt.Fprintf(slow, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n\"big\"", streamPath)
		if _, err := slow.Read(make([]byte, 1)); err != nil { // the answer has begun
			t.Fatal(err)
		}
		if goes {
			slow.Close()
		}
		var payload string
		for limit := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			res := r.open(`{}`)
			if res.StatusCode == 200 {
				payload, _ = read(t, res.Body)
				break
			}
			if time.Now().After(limit) {
				t.Fatalf("goes %v: the sandbox is still held: %d", goes, res.StatusCode)
			}
		}
		if payload != "good" {
			t.Errorf("%q", payload)
		}
		if !goes {
			n, _ := io.Copy(io.Discard, bufio.NewReader(slow))
			if n >= size {
				t.Errorf("the slow reader got all %d bytes: the test shows nothing", n)
			}
		}
		if err := end(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
