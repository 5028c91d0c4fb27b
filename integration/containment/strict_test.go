//go:build integration

package containment

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Strict mode keeps an extension from acting as the runtime. Without it the same
// extension reads the event and answers in the runtime's place.
func TestStrict(t *testing.T) {
	const forged = `"forged"`
	const done = "/tmp/intruder.done"
	forge := harness.Respond(forged)
	calls := []script.Step{{Op: "call", Method: http.MethodGet, Path: "/2018-06-01/runtime/invocation/next"}, forge}
	for i, name := range []string{"takes", "answers"} {
		calls[i].Name = name
	}
	intruder := []script.Step{harness.Both, {Op: "serve", N: 1, Steps: append(calls, script.Step{Op: "write", Path: done})}, {Op: "serve"}}
	run := func(t *testing.T, flags ...string) (*harness.Daemon, harness.Answer) {
		args := append(flags, harness.OneCPU, "--timeout=20s", "--layer", harness.Layer(t, harness.Extensions{"intruder": intruder}), harness.Function(t))
		d := harness.Start(t, args...)
		// The runtime answers when the extension has done its worst.
		return d, d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "await", Path: done}}})
	}
	t.Run("off", func(t *testing.T) { // the control: the probe works
		d, a := run(t)
		if string(a.Body) != forged {
			t.Errorf("answer %s; want the extension's", a.Body)
		}
		// The runtime, whose own answer was refused, may be gone and its /tmp with it: the
		// extension has printed what it was told.
		for i, status := range []int{http.StatusOK, http.StatusAccepted} {
			d.WaitPrinted("intruder", calls[i].Name, 1)
			if e := d.Printed("intruder", calls[i].Name)[0]; e.Status != status {
				t.Errorf("the extension's call: %+v, want status %d", e, status)
			}
		}
	})
	t.Run("on", func(t *testing.T) {
		d, a := run(t, "--strict")
		if r := d.Report(a); r.ID != a.ID() {
			t.Errorf("report of %s, want %s", r.ID, a.ID())
		}
		d.WaitFrozen()
		journal := d.Journal() // through the same sandbox, thawed
		for _, call := range calls {
			got := harness.First(t, journal, "intruder", call.Name)
			var refusal struct{ ErrorType, ErrorMessage string }
			err := json.Unmarshal([]byte(got.Text), &refusal)
			if err != nil || got.Status != http.StatusForbidden || refusal.ErrorType != "Runtime.Forbidden" || !strings.Contains(refusal.ErrorMessage, "extension domain") {
				t.Errorf("the extension was answered %d %s; want 403 Runtime.Forbidden and why", got.Status, got.Text)
			}
		}
		d.Stop()
		if n := d.Printed("intruder", "INVOKE"); len(n) != 2 {
			t.Errorf("the extension heard of %d invocations, want 2", len(n))
		}
		if n := d.Printed("intruder", "SHUTDOWN"); len(n) != 1 {
			t.Errorf("the extension heard of %d shutdowns, want 1", len(n))
		}
	})
	t.Run("on, with telemetry", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, "--strict", "--layer", harness.Layer(t, harness.Extensions{"http": harness.Subscriber("HTTP", 4323, 25, 0)}), harness.Function(t))
		d.Do()
		harness.Eventually(t, harness.Patience, func() string {
			for _, e := range d.Delivered("http") {
				if e.Type == "platform.report" {
					return ""
				}
			}
			return "no platform.report was delivered"
		})
	})
}
