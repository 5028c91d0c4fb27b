//go:build integration

package lifecycle

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// wantEnd checks how the stream ended; <id> stands for the request id.
func wantEnd(s *harness.Streamed, t *testing.T, text, code, details string) {
	t.Helper()
	details = strings.ReplaceAll(details, "<id>", s.ID())
	if s.Text != text || s.End.ErrorCode != code || s.End.ErrorDetails != details {
		t.Errorf("%q, then %s %s\nwant %q, then %s %s", s.Text, s.End.ErrorCode, s.End.ErrorDetails, text, code, details)
	}
}

// endless is a stream that does not end after its part.
func endless(part string) script.Step { return harness.Streaming(time.Hour, part, "never") }

// letters is a stream of n letters.
func letters(n int64) script.Step {
	s := harness.Streaming(0)
	s.Chunks = []script.Chunk{{N: n}}
	return s
}

// RT-69, INV-28 to INV-31: the first bytes come long before the function ends.
func TestStreamComesBeforeTheEnd(t *testing.T) {
	const pause = 400 * time.Millisecond
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	d.Do() // warm
	s := d.StreamOf(harness.Answering(harness.Streaming(pause, "one ", "two ", "three")), harness.WithTail...)
	wantEnd(s, t, "one two three", "", "")
	if s.Chunks != 3 || s.Took-s.First < pause {
		t.Errorf("%d chunks, the first after %v of %v", s.Chunks, s.First, s.Took)
	}
	log, err := base64.StdEncoding.DecodeString(s.End.LogResult) // INV-31, INV-03
	if err != nil || !strings.Contains(string(log), "REPORT RequestId: "+s.ID()) {
		t.Errorf("tail %q, %v", log, err)
	}
	if r := d.Do(); r.Previous[0].Status != http.StatusAccepted {
		t.Errorf("the runtime got %+v, want 202 (RT-69)", r.Previous[0])
	}
}

// ACC-18, RT-70, INV-32.
func TestACC18Trailers(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	before := d.Do()
	const details = `{"errorType":"My.Error","errorMessage":"in the middle"}`
	failing := harness.Streaming(0, "half")
	failing.Trailers = map[string]string{
		"Lambda-Runtime-Function-Error-Type": "My.Error",
		"Lambda-Runtime-Function-Error-Body": base64.StdEncoding.EncodeToString([]byte(details)),
	}
	wantEnd(d.StreamOf(harness.Answering(failing)), t, "half", "My.Error", details)
	a := d.Invoke(harness.Answering(failing)) // RT-74: the whole is an error
	if a.Header.Get("X-Amz-Function-Error") != "Unhandled" || string(a.Body) != details {
		t.Errorf("buffered: %q %s", a.Header.Get("X-Amz-Function-Error"), a.Body)
	}
	if after := d.Do(); after.PID != before.PID {
		t.Errorf("pid %d, before %d: want the same process", after.PID, before.PID)
	}
}

// RT-73, INV-32: streams that end because the environment does.
func TestStreamIsCutOff(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--timeout=2s", harness.Function(t))
	before := d.Do()
	s := d.StreamOf(harness.Answering(endless("half")))
	wantEnd(s, t, "half", "Sandbox.Timeout", `{"errorType":"Sandbox.Timeout","errorMessage":"RequestId: <id> Error: Task timed out after 2.00 seconds"}`)
	if most := 2*time.Second + harness.Scaled(t, 2*time.Second); s.Took < 2*time.Second || s.Took > most {
		t.Errorf("it took %v, want 2s to %v", s.Took, most)
	}
	between := d.Do()
	half := endless("half")
	half.Background = true
	s = d.StreamOf(harness.Answering(half, script.Step{Op: "sleep", MS: 100}, script.Step{Op: "exit", N: 3})) // the part gets through meanwhile
	wantEnd(s, t, "half", "Runtime.ExitError", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: <id> Error: Runtime exited with error: exit status 3"}`)
	after := d.Do()
	if before.Started == between.Started || between.Started == after.Started {
		t.Errorf("processes started at %d, %d and %d: want a new one after each", before.Started, between.Started, after.Started)
	}
}

// RT-71, RT-74: 200 MiB stream, one byte more does not; a buffered invocation keeps its 6 MiB.
func TestStreamLimits(t *testing.T) {
	const limit = 200 << 20
	d := harness.Start(t, harness.OneCPU, "--timeout=120s", harness.Function(t))
	before := d.Do()
	if s := d.StreamOf(harness.Answering(letters(limit))); s.Length != limit || s.End.ErrorCode != "" {
		t.Errorf("%d bytes, %+v", s.Length, s.End)
	}
	s := d.StreamOf(harness.Answering(letters(limit + 1)))
	if s.Length != limit || s.End.ErrorCode != "Function.ResponseSizeTooLarge" {
		t.Errorf("%d bytes, %+v", s.Length, s.End)
	}
	after := d.Do()
	if after.PID != before.PID || after.Previous[0].Status != http.StatusRequestEntityTooLarge {
		t.Errorf("pid %d, before %d; the runtime got %+v", after.PID, before.PID, after.Previous[0])
	}
	a := d.Invoke(harness.Answering(letters(6<<20 + 101)))
	a.WantError(t, "Function.ResponseSizeTooLarge", "Response payload size exceeded maximum allowed payload size (6291556 bytes).")
}

// RT-74: each kind of invocation with each kind of handler.
func TestStreamAndBuffer(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	a := d.Invoke(harness.Answering(harness.Streaming(50*time.Millisecond, "one ", "two")))
	if string(a.Body) != "one two" || a.Header.Get("X-Amz-Function-Error") != "" {
		t.Errorf("a streaming handler, buffered: %q", a.Body)
	}
	s := d.StreamOf(script.Event{Report: true, Steps: []script.Step{{Op: "env"}}})
	var r script.Report
	if err := json.Unmarshal([]byte(s.Text), &r); err != nil || s.Chunks != 1 || r.ID != s.ID() {
		t.Errorf("a buffered handler, streamed: %d chunks, %v: %q", s.Chunks, err, s.Text)
	}
	const body = `{"errorType":"T","errorMessage":"m"}`
	wantEnd(d.StreamOf(harness.Answering(script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/error", Data: body})), t, "", "Unhandled", body)
}

// A client that reads nothing holds no memory to speak of, and the sandbox until the
// deadline.
func TestStreamNobodyReads(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--timeout=2s", harness.Function(t))
	d.Do()
	peak := peakMemory(d)
	resp := d.OpenStream(harness.Answering(letters(1 << 40)))
	if a, err := d.Request(script.Event{Report: true}); err != nil || a.Status != http.StatusTooManyRequests {
		t.Errorf("beside it: %d, %v", a.Status, err)
	}
	d.ReportOf(resp.Header.Get("X-Amzn-RequestId"))
	if grown := peakMemory(d) - peak; grown > 32<<20 {
		t.Errorf("the daemon has grown by %d MiB", grown>>20)
	}
	resp.Body.Close()
	for end := time.Now().Add(harness.Patience); ; time.Sleep(20 * time.Millisecond) {
		a, err := d.Request(script.Event{Report: true})
		if err == nil && a.Status == http.StatusOK {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the sandbox is still held: %d, %v", a.Status, err)
		}
	}
}

// memory is what the daemon's processes have resident at most, in bytes.
func peakMemory(d *harness.Daemon) int64 {
	d.T.Helper()
	return d.Sum("VmHWM") << 10
}
