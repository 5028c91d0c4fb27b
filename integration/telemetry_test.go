//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

const telemetryPath = "/2022-07-01/telemetry"

// subscriberFlag makes the extension name a subscriber to everything.
func subscriberFlag(name, protocol string, port, timeoutMS int, answer time.Duration) string {
	destination := fmt.Sprintf(`{"protocol":"TCP","port":%d}`, port)
	if protocol == "HTTP" {
		destination = fmt.Sprintf(`{"protocol":"HTTP","URI":"http://sandbox.localdomain:%d/path"}`, port)
	}
	body := fmt.Sprintf(`{"schemaVersion":"2022-12-13","types":["platform","function","extension"],"destination":%s,"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":%d}}`,
		destination, timeoutMS)
	return extensionFlag(name, script.Extension{Events: both, Telemetry: &script.Telemetry{
		Path: telemetryPath, Body: body, Protocol: protocol, Port: port, AnswerMS: answer.Milliseconds()}})
}

// delivered reads back what a subscriber has got, through the test runtime.
func (d *daemon) delivered(name string) []script.Delivered {
	d.t.Helper()
	r := d.do(script.Step{Op: "read", Path: script.TelemetryLog(name)})
	var all []script.Delivered
	for line := range strings.Lines(r.Results[0].Text) {
		var one script.Delivered
		if !strings.HasSuffix(line, "\n") {
			break // being written, or beyond what is read
		}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			d.t.Fatalf("%q: %v", line, err)
		}
		all = append(all, one)
	}
	return all
}

// ACC-15, TL-13 to TL-16, TL-20, TL-23, TL-32 to TL-37: HTTP and TCP subscribers hear
// of everything from the begin of the initialization, in order; a late one is refused.
func TestACC15Telemetry(t *testing.T) {
	d := start(t, oneCPU, "--layer", extensionLayer(t, "http", "tcp"),
		subscriberFlag("http", "HTTP", 4323, 25, 0), subscriberFlag("tcp", "TCP", 4324, 25, 0),
		initFlag(script.Step{Op: "print", Data: "said in init", N: 1}), function(t, "testruntime"))
	first := d.invoke(script.Event{Steps: []script.Step{{Op: "print", Data: "said in the invocation", N: 1}, {Op: "sleep", MS: 100}}}, withTail...)
	d.report(first)

	want := []string{"platform.initStart", "said in init", "platform.initRuntimeDone",
		"platform.extension", "platform.extension", "platform.initReport", "platform.start", "said in the invocation", "platform.runtimeDone", "platform.report"}
	for _, name := range []string{"http", "tcp"} {
		var records map[string]string
		eventually(t, patience, func() string {
			records = map[string]string{}
			next, subscribed, seen := 0, 0, []string{}
			for _, e := range d.delivered(name) {
				what := e.Type
				if e.Type == "function" {
					_ = json.Unmarshal(e.Record, &what)
					what = strings.TrimSpace(what)
				}
				if e.Type == "platform.start" && next == len(want) {
					break // of a later invocation, which reads
				}
				seen = append(seen, what)
				if e.Type == "platform.telemetrySubscription" && next <= slices.Index(want, "platform.extension") {
					subscribed++ // TL-42: at once, whatever the runtime does meanwhile
				}
				if next < len(want) && what == want[next] {
					records[what] = string(e.Record)
					next++
				}
			}
			if subscribed != 2 {
				return fmt.Sprintf("%s: %d subscriptions in their place; got %q", name, subscribed, seen)
			}
			if next < len(want) {
				return fmt.Sprintf("%s: no %s in its place; got %q", name, want[next], seen)
			}
			return ""
		})
		var report struct {
			RequestID string
			Metrics   struct{ DurationMs, InitDurationMs, MaxMemoryUsedMB float64 }
			Spans     []struct{ Name string }
		}
		if err := json.Unmarshal([]byte(records["platform.report"]), &report); err != nil {
			t.Fatal(err)
		}
		if m := report.Metrics; report.RequestID != first.id() || m.DurationMs < 100 || m.InitDurationMs <= 0 || m.MaxMemoryUsedMB <= 0 ||
			len(report.Spans) != 1 || report.Spans[0].Name != "extensionOverhead" {
			t.Errorf("%s: report %s", name, records["platform.report"])
		}
		var done struct {
			Metrics struct{ DurationMs, ProducedBytes float64 }
			Spans   []struct {
				Name       string
				DurationMs float64
			}
		}
		if err := json.Unmarshal([]byte(records["platform.runtimeDone"]), &done); err != nil {
			t.Fatal(err)
		}
		if len(done.Spans) != 3 || done.Spans[0].Name != "responseLatency" || done.Spans[0].DurationMs < 100 || int(done.Metrics.ProducedBytes) != len(first.body) {
			t.Errorf("%s: runtimeDone %s, a body of %d bytes", name, records["platform.runtimeDone"], len(first.body))
		}
	}
	notes := d.notes()
	for _, name := range []string{"http", "tcp"} {
		if s := firstNote(t, notes, name, "subscribed"); s != "200" {
			t.Errorf("%s: subscribed with status %s", name, s)
		}
		if s := firstNote(t, notes, name, "late"); s != "403" {
			t.Errorf("%s: a late subscription has status %s (TL-10)", name, s)
		}
	}
}

func firstNote(t *testing.T, notes []script.Note, who, what string) string {
	t.Helper()
	return first(t, notes, who, what).Values["status"]
}

// ACC-15, TL-17 to TL-19, TL-22: batches keep their limits, a slow consumer loses
// whole batches and is told, and the function does not wait for it.
func TestACC15SlowConsumer(t *testing.T) {
	const lines = 40000
	d := start(t, oneCPU, "--timeout=30s", "--layer", extensionLayer(t, "slow"),
		subscriberFlag("slow", "HTTP", 4323, 1000, 300*time.Millisecond), function(t, "testruntime"))
	a := d.invoke(script.Event{Steps: []script.Step{{Op: "print", Data: strings.Repeat("x", 500), N: lines}}}, withTail...)
	d.report(a)
	if report, err := parseReport(a.tail(t), a.id()); err != nil || report.duration > 10_000 {
		t.Errorf("the function took %v ms, %v", report.duration, err)
	}
	var all []script.Delivered
	eventually(t, 2*patience, func() string {
		d.do(script.Step{Op: "sleep", MS: 300}) // time that is not frozen
		all = d.delivered("slow")
		for _, e := range all {
			if e.Type == "platform.logsDropped" {
				return ""
			}
		}
		return fmt.Sprintf("no platform.logsDropped in %d events", len(all))
	})
	batches := map[int]int{}
	functions := 0
	var dropped struct {
		DroppedRecords, DroppedBytes int
		Reason                       string
	}
	for _, e := range all {
		batches[e.Batch]++
		switch e.Type {
		case "function":
			functions++
		case "platform.logsDropped":
			if err := json.Unmarshal(e.Record, &dropped); err != nil {
				t.Fatal(err)
			}
		}
	}
	if dropped.DroppedRecords < 1 || dropped.DroppedBytes < 500*dropped.DroppedRecords || !strings.HasPrefix(dropped.Reason, "Some logs were dropped") ||
		functions+dropped.DroppedRecords > lines+100 {
		t.Errorf("%+v and %d lines delivered of %d", dropped, functions, lines)
	}
	for n, items := range batches {
		if items > 1000 {
			t.Errorf("batch %d has %d events", n, items)
		}
	}
}

// ACC-19, LOG-01 to LOG-07: frames split at every byte are one event each, with
// their own time and level.
func TestACC19Frames(t *testing.T) {
	const begin = 1_000_000_000
	d := start(t, oneCPU, "--log-format=JSON", function(t, "testruntime"))
	n := int(d.do(script.Step{Op: "frames", Data: "framed\ntext", N: begin}).Results[0].N)
	if n < 16 {
		t.Fatalf("%d frames", n)
	}
	for k := range n {
		want := fmt.Sprintf(`{"time":"%s","type":"function","level":"ERROR","record":"framed\ntext %d"}`,
			time.Unix(begin+int64(k), 0).UTC().Format("2006-01-02T15:04:05.000Z"), k)
		d.waitFor(want)
	}
	if c := strings.Count(d.log.text(), `"record":"framed\ntext`); c != n {
		t.Errorf("%d frames are %d events", n, c)
	}
}
