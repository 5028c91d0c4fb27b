//go:build integration

package lifecycle

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// docs/decisions/0005: what the two kinds of log descriptors are inside, that
// lines and frames come through both, and that only a pipe can be opened again.
func TestLogDescriptors(t *testing.T) {
	for kind, reopened := range map[string]syscall.Errno{"pipe": 0, "socket": syscall.ENXIO} {
		t.Run(kind, func(t *testing.T) {
			d := harness.Start(t, harness.OneCPU, "--log-descriptors="+kind, "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Watch()}), harness.Function(t))
			long := strings.Repeat("long ", 4000) // more than a pipe takes at once, less than a line may have
			r := d.Do(script.Step{Op: "fds"}, script.Step{Op: "print", Data: "said by the function\n", N: 3}, script.Step{Op: "print", Data: long + "\n"},
				script.Step{Op: "frames", Data: "framed", N: 1}, script.Step{Op: "write", Path: "/proc/self/fd/2", Data: "said to the reopened descriptor\n"})
			for _, fd := range []string{"1 ", "2 "} {
				if !slices.ContainsFunc(r.Results[0].List, func(f string) bool { return strings.HasPrefix(f, fd+kind+":[") }) {
					t.Errorf("descriptor %sis not a %s: %q", fd, kind, r.Results[0].List)
				}
			}
			if got := r.Results[4]; got.Errno != int(reopened) {
				t.Errorf("opening the descriptor again: %+v; want errno %d", got, reopened)
			}
			d.Stop() // all lines are there
			lines := strings.Split(d.Log.Text(), "\n")
			count := func(begin string) (n int) {
				for _, l := range lines {
					if strings.HasPrefix(l, begin) {
						n++
					}
				}
				return n
			}
			want := map[string]int{"said by the function": 3, long: 1, "framed ": int(r.Results[3].N), "said to the reopened descriptor": 0}
			if reopened == 0 {
				want["said to the reopened descriptor"] = 1
			}
			for line, n := range want {
				if got := count(line); got != n {
					t.Errorf("%.40q is there %d times, want %d", line, got, n)
				}
			}
			if n := d.Printed("watcher", "INVOKE"); len(n) != 1 {
				t.Errorf("the extension's line is there %d times", len(n))
			}
		})
	}
}

// LOG-40, LOG-42, LOG-44, LOG-45: in JSON every line is an object. Those of the function
// that are none become one; the others are as they were printed.
func TestLogFormatJSON(t *testing.T) {
	const own = `{"level":"INFO","message":"its own"}`
	d := harness.Start(t, harness.OneCPU, "--log-format=JSON", "--config", logLevel(t, "DEBUG"), "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Watch()}), harness.Function(t))
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "env"}, {Op: "print", Data: own + "\n"}, {Op: "print", Data: "plain text\n"}}}, harness.WithTail...)
	if env := d.Report(a).Results[0].List; !slices.Contains(env, "AWS_LAMBDA_LOG_FORMAT=JSON") {
		t.Errorf("AWS_LAMBDA_LOG_FORMAT is not JSON: %q", env)
	}
	d.Stop()

	want := []string{"platform.initStart", "platform.initRuntimeDone", "platform.extension", "platform.initReport",
		"platform.start", own, "plain text", "platform.runtimeDone", "platform.report"}
	got := slices.DeleteFunc(jsonEvents(t, d.Log.Text(), a.ID()), func(s string) bool { return !slices.Contains(want, s) })
	if !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	tail := a.Tail(t) // whole records
	if !strings.HasPrefix(tail, `{"time":`) || !strings.Contains(tail, `"type":"platform.report"`) || !strings.HasSuffix(tail, "}\n") {
		t.Errorf("tail %q", tail)
	}
}

// logLevel is a configuration file with the system's log level.
func logLevel(t *testing.T, level string) string {
	config := filepath.Join(t.TempDir(), "config.yaml")
	harness.WriteFile(t, config, []byte("system-log-level: "+level+"\n"), 0o644)
	return config
}

// jsonEvents lists what a log has: the types of the platform's events, the text of the
// others, and objects of no type as they are. A line that is no object fails the test,
// and so does an event of a request that is not id.
func jsonEvents(t *testing.T, log, id string) (events []string) {
	t.Helper()
	for line := range strings.Lines(log) {
		line = strings.TrimSpace(line)
		if line == "" { // of the log's end
			continue
		}
		var event struct {
			Time, Type string
			Record     json.RawMessage
		}
		if err := json.Unmarshal([]byte(line), &event); err != nil {
			t.Errorf("%q is no JSON: %v", line, err)
			continue
		}
		var text string
		var record struct{ RequestID string }
		switch {
		case strings.HasPrefix(event.Type, "platform."):
			if err := json.Unmarshal(event.Record, &record); err != nil || event.Time == "" || record.RequestID != "" && record.RequestID != id {
				t.Errorf("%q, %v: want a time, a record, and the id %s if it has one", line, err, id)
			}
			text = event.Type
		case event.Record != nil:
			if err := json.Unmarshal(event.Record, &text); err != nil || event.Time == "" {
				t.Errorf("%q, %v: want a time and a text", line, err)
			}
		default:
			text = line
		}
		events = append(events, text)
	}
	return events
}

// LOG-41: the system's log level leaves out what is below it.
func TestSystemLogLevel(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--log-format=JSON", "--config", logLevel(t, "WARN"), harness.Function(t))
	d.Do()
	d.Request(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}}) // what fails is a warning
	d.Stop()
	log := d.Log.Text()
	if strings.Contains(log, `"platform.start"`) || strings.Contains(log, `"status":"success"`) {
		t.Error("information is in a log of warnings")
	}
	if !strings.Contains(log, `"platform.report"`) || !strings.Contains(log, `"status":"error"`) {
		t.Error("the failed invocation is not there")
	}
}
