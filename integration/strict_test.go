//go:build integration

package integration

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/script"
)

// Strict mode keeps an extension from acting as the runtime. Without it the same
// extension reads the event and answers in the runtime's place.
func TestStrict(t *testing.T) {
	const forged = `"forged"`
	intruder := script.Extension{Events: both, Calls: []script.Step{
		{Method: http.MethodGet, Path: "/2018-06-01/runtime/invocation/next"},
		{Method: http.MethodPost, Path: "/2018-06-01/runtime/invocation/{id}/response", Data: forged},
	}}
	calls := script.CallLog("intruder")
	run := func(t *testing.T, flags ...string) (*daemon, answer) {
		args := append(flags, oneCPU, "--timeout=20s", "--layer", extensionLayer(t, "intruder"), extensionFlag("intruder", intruder), function(t, "testruntime"))
		d := start(t, args...)
		// The runtime answers when the extension has done its worst.
		return d, d.invoke(script.Event{Steps: []script.Step{{Op: "await", Path: calls}}})
	}
	answers := func(t *testing.T, d *daemon) (results []script.Result) {
		t.Helper()
		text := d.do(script.Step{Op: "read", Path: calls}).Results[0].Text
		if err := json.Unmarshal([]byte(text), &results); err != nil || len(results) != len(intruder.Calls) {
			t.Fatalf("the extension's calls: %q, %v", text, err)
		}
		return results
	}

	t.Run("off", func(t *testing.T) { // the control: the probe works
		d, a := run(t)
		if string(a.body) != forged {
			t.Errorf("answer %s; want the extension's", a.body)
		}
		// The runtime, whose own answer was refused, may be gone and its /tmp with it: the
		// extension has printed what it was told.
		for i, status := range []string{"200", "202"} {
			d.waitFor("path=" + intruder.Calls[i].Path + " status=" + status)
		}
	})
	t.Run("on", func(t *testing.T) {
		d, a := run(t, "--strict")
		if r := d.report(a); r.ID != a.id() {
			t.Errorf("report of %s, want %s", r.ID, a.id())
		}
		d.waitFrozen()
		for _, got := range answers(t, d) { // through the same sandbox, thawed
			var refusal struct{ ErrorType, ErrorMessage string }
			err := json.Unmarshal([]byte(got.Text), &refusal)
			if err != nil || got.Status != http.StatusForbidden || refusal.ErrorType != "Runtime.Forbidden" || !strings.Contains(refusal.ErrorMessage, "extension domain") {
				t.Errorf("the extension was answered %d %s; want 403 Runtime.Forbidden and why", got.Status, got.Text)
			}
		}
		d.stop()
		if n := d.log.printed("intruder", "INVOKE"); len(n) != 2 {
			t.Errorf("the extension heard of %d invocations, want 2", len(n))
		}
		if n := d.log.printed("intruder", "SHUTDOWN"); len(n) != 1 {
			t.Errorf("the extension heard of %d shutdowns, want 1", len(n))
		}
	})
	t.Run("on, with telemetry", func(t *testing.T) {
		d := start(t, oneCPU, "--strict", "--layer", extensionLayer(t, "http"), subscriberFlag("http", "HTTP", 4323, 25, 0), function(t, "testruntime"))
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
