//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

const telemetryPath = "/2022-07-01/telemetry"

// subscriber is an extension that subscribes to everything, and asks again with the first
// INVOKE, in a step named "late". Each batch that comes over HTTP is answered after a pause.
func subscriber(protocol string, port, timeoutMS int, pause time.Duration) []script.Step {
	destination := fmt.Sprintf(`{"protocol":"TCP","port":%d}`, port)
	if protocol == "HTTP" {
		destination = fmt.Sprintf(`{"protocol":"HTTP","URI":"http://sandbox.localdomain:%d/path"}`, port)
	}
	body := fmt.Sprintf(`{"schemaVersion":"2022-12-13","types":["platform","function","extension"],"destination":%s,"buffering":{"maxItems":1000,"maxBytes":262144,"timeoutMs":%d}}`,
		destination, timeoutMS)
	subscribe := func(name string) script.Step {
		return script.Step{Op: "call", Name: name, Method: "PUT", Path: telemetryPath, Data: body, Headers: map[string]string{"Lambda-Extension-Identifier": "{ext}"}}
	}
	return []script.Step{both, {Op: "listen", Name: "telemetry", Method: strings.ToLower(protocol), N: int64(port), MS: pause.Milliseconds()},
		subscribe("subscribed"), {Op: "serve", N: 1, Steps: []script.Step{subscribe("late")}}, {Op: "serve"}}
}

// delivery is one event that a subscriber got.
type delivery struct {
	Batch      int64 `json:"-"` // number of the POST; 1 with TCP
	Time, Type string
	Record     json.RawMessage
}

// delivered are the events that a subscriber has got, the first of them if there are very
// many.
func (d *daemon) delivered(name string) (all []delivery) {
	d.t.Helper()
	for _, e := range d.journal().By(name).Named("telemetry") {
		one := delivery{Batch: e.N}
		if err := json.Unmarshal([]byte(e.Text), &one); err != nil || e.Error != "" {
			d.t.Fatalf("%+v: %v", e, err)
		}
		all = append(all, one)
	}
	return all
}

// ACC-15, TL-13 to TL-16, TL-20, TL-23, TL-32 to TL-37: HTTP and TCP subscribers hear
// of everything from the begin of the initialization, in order; a late one is refused.
func TestACC15Telemetry(t *testing.T) {
	subscribers := layer(t, extensions{"http": subscriber("HTTP", 4323, 25, 0), "tcp": subscriber("TCP", 4324, 25, 0)})
	d := start(t, oneCPU, "--layer", subscribers, function(t, script.Step{Op: "print", Data: "said in init\n"}))
	invoked := d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "print", Data: "said in the invocation\n"}, {Op: "sleep", MS: 100}}}, withTail...)
	d.report(invoked)

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
		if m := report.Metrics; report.RequestID != invoked.id() || m.DurationMs < 100 || m.InitDurationMs <= 0 || m.MaxMemoryUsedMB <= 0 ||
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
		if len(done.Spans) != 3 || done.Spans[0].Name != "responseLatency" || done.Spans[0].DurationMs < 100 || int(done.Metrics.ProducedBytes) != len(invoked.body) {
			t.Errorf("%s: runtimeDone %s, a body of %d bytes", name, records["platform.runtimeDone"], len(invoked.body))
		}
	}
	journal := d.journal()
	for _, name := range []string{"http", "tcp"} {
		if e := first(t, journal, name, "subscribed"); e.Status != http.StatusOK {
			t.Errorf("%s: %+v; want status 200", name, e)
		}
		if e := first(t, journal, name, "late"); e.Status != http.StatusForbidden {
			t.Errorf("%s: %+v; want status 403 of a late subscription (TL-10)", name, e)
		}
	}
}

// ACC-15, TL-17 to TL-19, TL-22: batches keep their limits, a slow consumer loses
// whole batches and is told, and the function does not wait for it.
func TestACC15SlowConsumer(t *testing.T) {
	const lines = 40000
	d := start(t, oneCPU, "--timeout=30s", "--layer", layer(t, extensions{"slow": subscriber("HTTP", 4323, 1000, 300*time.Millisecond)}), function(t))
	a := d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "print", Data: strings.Repeat("x", 500) + "\n", N: lines}}}, withTail...)
	d.report(a)
	if report, err := parseReport(a.tail(t), a.id()); err != nil || report.duration > 10_000 {
		t.Errorf("the function took %v ms, %v", report.duration, err)
	}
	var all []delivery
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
	d := start(t, oneCPU, "--log-format=JSON", function(t))
	n := int(d.do(script.Step{Op: "frames", Data: "framed\ntext", N: begin}).Results[0].N)
	if n < 16 {
		t.Fatalf("%d frames", n)
	}
	for k := range n {
		want := fmt.Sprintf(`{"time":"%s","type":"function","level":"ERROR","record":"framed\ntext %d"}`,
			time.Unix(begin+int64(k), 0).UTC().Format("2006-01-02T15:04:05.000Z"), k)
		d.waitFor(want)
	}
	if c := strings.Count(d.Log.Text(), `"record":"framed\ntext`); c != n {
		t.Errorf("%d frames are %d events", n, c)
	}
}
