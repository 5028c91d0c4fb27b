//go:build integration

package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Strict mode keeps an extension from acting as the runtime. Without it the same
// extension reads the event and answers in the runtime's place.
func TestStrict(t *testing.T) {
	const forged = `"forged"`
	const done = "/tmp/intruder.done"
	forge := respond(forged)
	calls := []script.Step{{Op: "call", Method: http.MethodGet, Path: "/2018-06-01/runtime/invocation/next"}, forge}
	for i, name := range []string{"takes", "answers"} {
		calls[i].Name = name
	}
	intruder := []script.Step{both, {Op: "serve", N: 1, Steps: append(calls, script.Step{Op: "write", Path: done})}, {Op: "serve"}}
	run := func(t *testing.T, flags ...string) (*daemon, answer) {
		args := append(flags, oneCPU, "--timeout=20s", "--layer", layer(t, extensions{"intruder": intruder}), function(t))
		d := start(t, args...)
		// The runtime answers when the extension has done its worst.
		return d, d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "await", Path: done}}})
	}
	t.Run("off", func(t *testing.T) { // the control: the probe works
		d, a := run(t)
		if string(a.body) != forged {
			t.Errorf("answer %s; want the extension's", a.body)
		}
		// The runtime, whose own answer was refused, may be gone and its /tmp with it: the
		// extension has printed what it was told.
		for i, status := range []int{http.StatusOK, http.StatusAccepted} {
			d.waitPrinted("intruder", calls[i].Name, 1)
			if e := d.printed("intruder", calls[i].Name)[0]; e.Status != status {
				t.Errorf("the extension's call: %+v, want status %d", e, status)
			}
		}
	})
	t.Run("on", func(t *testing.T) {
		d, a := run(t, "--strict")
		if r := d.report(a); r.ID != a.id() {
			t.Errorf("report of %s, want %s", r.ID, a.id())
		}
		d.waitFrozen()
		journal := d.journal() // through the same sandbox, thawed
		for _, call := range calls {
			got := first(t, journal, "intruder", call.Name)
			var refusal struct{ ErrorType, ErrorMessage string }
			err := json.Unmarshal([]byte(got.Text), &refusal)
			if err != nil || got.Status != http.StatusForbidden || refusal.ErrorType != "Runtime.Forbidden" || !strings.Contains(refusal.ErrorMessage, "extension domain") {
				t.Errorf("the extension was answered %d %s; want 403 Runtime.Forbidden and why", got.Status, got.Text)
			}
		}
		d.stop()
		if n := d.printed("intruder", "INVOKE"); len(n) != 2 {
			t.Errorf("the extension heard of %d invocations, want 2", len(n))
		}
		if n := d.printed("intruder", "SHUTDOWN"); len(n) != 1 {
			t.Errorf("the extension heard of %d shutdowns, want 1", len(n))
		}
	})
	t.Run("on, with telemetry", func(t *testing.T) {
		d := start(t, oneCPU, "--strict", "--layer", layer(t, extensions{"http": subscriber("HTTP", 4323, 25, 0)}), function(t))
		d.do()
		eventually(t, patience, func() string {
			for _, e := range d.delivered("http") {
				if e.Type == "platform.report" {
					return ""
				}
			}
			return "no platform.report was delivered"
		})
	})
}
