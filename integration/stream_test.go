//go:build integration

package integration

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// streamed is a response stream as the AWS SDK's decoder reads it, which checks the
// CRCs of every message.
type streamed struct {
	answer
	chunks int
	first  time.Duration // from the request to the first chunk
	length int64
	text   string // the first 64 KiB of the payload
	end    struct{ ErrorCode, ErrorDetails, LogResult string }
}

// openStream begins an invocation by InvokeWithResponseStream.
func (d *daemon) openStream(payload any, header ...string) *http.Response {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	d.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.Addr+"/2021-11-15/functions/function/response-streaming-invocations",
		strings.NewReader(script.Encode(payload)))
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { resp.Body.Close() })
	if kind := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || kind != "application/vnd.amazon.eventstream" {
		text, _ := io.ReadAll(resp.Body)
		d.t.Fatalf("status %d, content type %q: %s (INV-29)", resp.StatusCode, kind, text)
	}
	return resp
}

// streamOf reads the whole stream that a payload is answered with.
func (d *daemon) streamOf(payload any, header ...string) *streamed {
	d.t.Helper()
	begin := time.Now()
	resp := d.openStream(payload, header...)
	s := &streamed{answer: answer{status: resp.StatusCode, header: resp.Header}}
	complete := 0
	decoder := eventstream.NewDecoder()
	for buffer := make([]byte, 64<<10); ; {
		m, err := decoder.Decode(resp.Body, buffer[:0])
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			d.t.Fatalf("after %d chunks: %v (INV-30)", s.chunks, err)
		}
		if complete > 0 {
			d.t.Fatalf("a message after InvokeComplete (INV-32)")
		}
		switch kind := m.Headers.Get(":event-type").String(); kind {
		case "PayloadChunk":
			if s.chunks == 0 {
				s.first = time.Since(begin)
			}
			s.chunks++
			s.length += int64(len(m.Payload))
			if len(s.text) < 64<<10 {
				s.text += string(m.Payload)
			}
		case "InvokeComplete":
			complete++
			if err := json.Unmarshal(m.Payload, &s.end); err != nil {
				d.t.Fatalf("InvokeComplete %q: %v", m.Payload, err)
			}
		default:
			d.t.Fatalf("event type %q", kind)
		}
	}
	if complete != 1 {
		d.t.Fatalf("%d InvokeComplete (INV-32)", complete)
	}
	s.took = time.Since(begin)
	return s
}

// wantEnd checks how the stream ended; <id> stands for the request id.
func (s *streamed) wantEnd(t *testing.T, text, code, details string) {
	t.Helper()
	details = strings.ReplaceAll(details, "<id>", s.id())
	if s.text != text || s.end.ErrorCode != code || s.end.ErrorDetails != details {
		t.Errorf("%q, then %s %s\nwant %q, then %s %s", s.text, s.end.ErrorCode, s.end.ErrorDetails, text, code, details)
	}
}

// streaming is a step that answers the current invocation with a stream of parts, with a
// pause before each but the first.
func streaming(pause time.Duration, parts ...string) script.Step {
	s := respond("")
	s.Headers = map[string]string{"Lambda-Runtime-Function-Response-Mode": "streaming"}
	for i, part := range parts {
		chunk := script.Chunk{Data: part}
		if i > 0 {
			chunk.AfterMS = pause.Milliseconds()
		}
		s.Chunks = append(s.Chunks, chunk)
	}
	return s
}

// endless is a stream that does not end after its part.
func endless(part string) script.Step { return streaming(time.Hour, part, "never") }

// letters is a stream of n letters.
func letters(n int64) script.Step {
	s := streaming(0)
	s.Chunks = []script.Chunk{{N: n}}
	return s
}

// answering is an event whose steps answer it.
func answering(steps ...script.Step) script.Event {
	return script.Event{Report: true, Steps: steps, Answered: true}
}

// RT-69, INV-28 to INV-31: the first bytes come long before the function ends.
func TestStreamComesBeforeTheEnd(t *testing.T) {
	const pause = 400 * time.Millisecond
	d := start(t, oneCPU, function(t))
	d.do() // warm
	s := d.streamOf(answering(streaming(pause, "one ", "two ", "three")), withTail...)
	s.wantEnd(t, "one two three", "", "")
	if s.chunks != 3 || s.took-s.first < 2*pause-pause/10 {
		t.Errorf("%d chunks, the first after %v of %v", s.chunks, s.first, s.took)
	}
	log, err := base64.StdEncoding.DecodeString(s.end.LogResult) // INV-31, INV-03
	if err != nil || !strings.Contains(string(log), "REPORT RequestId: "+s.id()) {
		t.Errorf("tail %q, %v", log, err)
	}
	if r := d.do(); r.Previous[0].Status != http.StatusAccepted {
		t.Errorf("the runtime got %+v, want 202 (RT-69)", r.Previous[0])
	}
}

// ACC-18, RT-70, INV-32.
func TestACC18Trailers(t *testing.T) {
	d := start(t, oneCPU, function(t))
	before := d.do()
	const details = `{"errorType":"My.Error","errorMessage":"in the middle"}`
	failing := streaming(0, "half")
	failing.Trailers = map[string]string{
		"Lambda-Runtime-Function-Error-Type": "My.Error",
		"Lambda-Runtime-Function-Error-Body": base64.StdEncoding.EncodeToString([]byte(details)),
	}
	d.streamOf(answering(failing)).wantEnd(t, "half", "My.Error", details)
	a := d.invoke(answering(failing)) // RT-74: the whole is an error
	if a.header.Get("X-Amz-Function-Error") != "Unhandled" || string(a.body) != details {
		t.Errorf("buffered: %q %s", a.header.Get("X-Amz-Function-Error"), a.body)
	}
	if after := d.do(); after.PID != before.PID {
		t.Errorf("pid %d, before %d: want the same process", after.PID, before.PID)
	}
}

// RT-73, INV-32: streams that end because the environment does.
func TestStreamIsCutOff(t *testing.T) {
	d := start(t, oneCPU, "--timeout=2s", function(t))
	before := d.do()
	s := d.streamOf(answering(endless("half")))
	s.wantEnd(t, "half", "Sandbox.Timeout", `{"errorType":"Sandbox.Timeout","errorMessage":"RequestId: <id> Error: Task timed out after 2.00 seconds"}`)
	if most := 2*time.Second + scaled(t, 500*time.Millisecond); s.took < 2*time.Second || s.took > most {
		t.Errorf("it took %v, want 2s to %v", s.took, most)
	}
	between := d.do()
	half := endless("half")
	half.Background = true
	s = d.streamOf(answering(half, script.Step{Op: "sleep", MS: 100}, script.Step{Op: "exit", N: 3})) // the part gets through meanwhile
	s.wantEnd(t, "half", "Runtime.ExitError", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: exit status 3"}`)
	after := d.do()
	if before.Started == between.Started || between.Started == after.Started {
		t.Errorf("processes started at %d, %d and %d: want a new one after each", before.Started, between.Started, after.Started)
	}
}

// RT-71, RT-74: 200 MiB stream, one byte more does not; a buffered invocation keeps its 6 MiB.
func TestStreamLimits(t *testing.T) {
	const limit = 200 << 20
	d := start(t, oneCPU, "--timeout=120s", function(t))
	before := d.do()
	if s := d.streamOf(answering(letters(limit))); s.length != limit || s.end.ErrorCode != "" {
		t.Errorf("%d bytes, %+v", s.length, s.end)
	}
	s := d.streamOf(answering(letters(limit + 1)))
	if s.length != limit || s.end.ErrorCode != "Function.ResponseSizeTooLarge" {
		t.Errorf("%d bytes, %+v", s.length, s.end)
	}
	after := d.do()
	if after.PID != before.PID || after.Previous[0].Status != http.StatusRequestEntityTooLarge {
		t.Errorf("pid %d, before %d; the runtime got %+v", after.PID, before.PID, after.Previous[0])
	}
	a := d.invoke(answering(letters(6<<20 + 101)))
	a.wantError(t, "Function.ResponseSizeTooLarge", "Response payload size (6291557 bytes) exceeded maximum allowed payload size (6291556 bytes).")
}

// RT-74: each kind of invocation with each kind of handler.
func TestStreamAndBuffer(t *testing.T) {
	d := start(t, oneCPU, function(t))
	a := d.invoke(answering(streaming(50*time.Millisecond, "one ", "two")))
	if string(a.body) != "one two" || a.header.Get("X-Amz-Function-Error") != "" {
		t.Errorf("a streaming handler, buffered: %q", a.body)
	}
	s := d.streamOf(script.Event{Report: true, Steps: []script.Step{{Op: "env"}}})
	var r script.Report
	if err := json.Unmarshal([]byte(s.text), &r); err != nil || s.chunks != 1 || r.ID != s.id() {
		t.Errorf("a buffered handler, streamed: %d chunks, %v: %q", s.chunks, err, s.text)
	}
	const body = `{"errorType":"T","errorMessage":"m"}`
	d.streamOf(answering(script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/error", Data: body})).
		wantEnd(t, "", "Unhandled", body)
}

// A client that reads nothing holds no memory to speak of, and the sandbox until the
// deadline.
func TestStreamNobodyReads(t *testing.T) {
	d := start(t, oneCPU, "--timeout=2s", function(t))
	d.do()
	peak := d.memory()
	resp := d.openStream(answering(letters(1 << 40)))
	if a, err := d.request(script.Event{Report: true}); err != nil || a.status != http.StatusTooManyRequests {
		t.Errorf("beside it: %d, %v", a.status, err)
	}
	d.reportOf(resp.Header.Get("X-Amzn-RequestId"))
	if grown := d.memory() - peak; grown > 32<<20 {
		t.Errorf("the daemon has grown by %d MiB", grown>>20)
	}
	resp.Body.Close()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		a, err := d.request(script.Event{Report: true})
		if err == nil && a.status == http.StatusOK {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the sandbox is still held: %d, %v", a.status, err)
		}
	}
}

// memory is what the daemon's processes have resident at most, in bytes.
func (d *daemon) memory() int64 {
	d.t.Helper()
	return d.sum("VmHWM") << 10
}
