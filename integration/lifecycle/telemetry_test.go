//go:build integration

package lifecycle

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// ACC-15, TL-13 to TL-16, TL-20, TL-23, TL-32 to TL-37: HTTP and TCP subscribers hear
// of everything from the begin of the initialization, in order; a late one is refused.
func TestACC15Telemetry(t *testing.T) {
	subscribers := harness.Layer(t, harness.Extensions{"http": harness.Subscriber("HTTP", 4323, 25, 0), "tcp": harness.Subscriber("TCP", 4324, 25, 0)})
	d := harness.Start(t, harness.OneCPU, "--layer", subscribers, harness.Function(t, script.Step{Op: "print", Data: "said in init\n"}))
	invoked := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "print", Data: "said in the invocation\n"}, {Op: "sleep", MS: 100}}}, harness.WithTail...)
	d.Report(invoked)

	want := []string{"platform.initStart", "said in init", "platform.initRuntimeDone",
		"platform.extension", "platform.extension", "platform.initReport", "platform.start", "said in the invocation", "platform.runtimeDone", "platform.report"}
	for _, name := range []string{"http", "tcp"} {
		var records map[string]string
		harness.Eventually(t, harness.Patience, func() string {
			records = map[string]string{}
			next, subscribed, seen := 0, 0, []string{}
			for _, e := range d.Delivered(name) {
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
		if m := report.Metrics; report.RequestID != invoked.ID() || m.DurationMs < 100 || m.InitDurationMs <= 0 || m.MaxMemoryUsedMB <= 0 ||
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
		if len(done.Spans) != 3 || done.Spans[0].Name != "responseLatency" || done.Spans[0].DurationMs < 100 || int(done.Metrics.ProducedBytes) != len(invoked.Body) {
			t.Errorf("%s: runtimeDone %s, a body of %d bytes", name, records["platform.runtimeDone"], len(invoked.Body))
		}
	}
	journal := d.Journal()
	for _, name := range []string{"http", "tcp"} {
		if e := harness.First(t, journal, name, "subscribed"); e.Status != http.StatusOK {
			t.Errorf("%s: %+v; want status 200", name, e)
		}
		if e := harness.First(t, journal, name, "late"); e.Status != http.StatusForbidden {
			t.Errorf("%s: %+v; want status 403 of a late subscription (TL-10)", name, e)
		}
	}
}

// ACC-15, TL-17 to TL-19, TL-22: batches keep their limits, a slow consumer loses
// whole batches and is told, and the function does not wait for it.
func TestACC15SlowConsumer(t *testing.T) {
	const lines = 40000
	d := harness.Start(t, harness.OneCPU, "--timeout=30s", "--layer", harness.Layer(t, harness.Extensions{"slow": harness.Subscriber("HTTP", 4323, 1000, 300*time.Millisecond)}), harness.Function(t))
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "print", Data: strings.Repeat("x", 500) + "\n", N: lines}}}, harness.WithTail...)
	d.Report(a)
	if report, err := harness.ParseReport(a.Tail(t), a.ID()); err != nil || report.Duration > 10_000 {
		t.Errorf("the function took %v ms, %v", report.Duration, err)
	}
	var all []harness.Delivery
	harness.Eventually(t, 2*harness.Patience, func() string {
		d.Do(script.Step{Op: "sleep", MS: 300}) // time that is not frozen
		all = d.Delivered("slow")
		for _, e := range all {
			if e.Type == "platform.logsDropped" {
				return ""
			}
		}
		return fmt.Sprintf("no platform.logsDropped in %d events", len(all))
	})
	batches := map[int64]int{}
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
	d := harness.Start(t, harness.OneCPU, "--log-format=JSON", harness.Function(t))
	n := int(d.Do(script.Step{Op: "frames", Data: "framed\ntext", N: begin}).Results[0].N)
	if n < 16 {
		t.Fatalf("%d frames", n)
	}
	for k := range n {
		want := fmt.Sprintf(`{"time":"%s","type":"function","level":"ERROR","record":"framed\ntext %d"}`,
			time.Unix(begin+int64(k), 0).UTC().Format("2006-01-02T15:04:05.000Z"), k)
		d.WaitFor(want)
	}
	if c := strings.Count(d.Log.Text(), `"record":"framed\ntext`); c != n {
		t.Errorf("%d frames are %d events", n, c)
	}
}
