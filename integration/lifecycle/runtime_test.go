//go:build integration

package lifecycle

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// ACC-01, RT-13, RT-14, INV-06.
func TestACC01ShellBootstrapEchoes(t *testing.T) {
	const timeout = 7 * time.Second
	d := harness.Start(t, harness.OneCPU, "--timeout=7s", harness.ShellFunction(t, harness.ShellBootstrap))
	seen := make(map[string]bool)
	for i := range 3 {
		event := fmt.Sprintf("hello %d", i)
		before := time.Now()
		s, a := d.Shell(event)
		if s.Event != event {
			t.Errorf("answer %q to %q", s.Event, event)
		}
		if s.ID != a.ID() || seen[s.ID] {
			t.Errorf("id %q inside, %q outside, seen before: %v", s.ID, a.ID(), seen[s.ID])
		}
		seen[s.ID] = true
		// The event was dispatched after the request and before the function had it.
		dispatched := time.UnixMilli(s.Deadline).Add(-timeout)
		if dispatched.Before(before.Truncate(time.Millisecond)) || dispatched.After(time.UnixMilli(s.Received)) {
			t.Errorf("the deadline is %v after %v, want a time from %v to %v", timeout, dispatched, before, time.UnixMilli(s.Received))
		}
		if v := a.Header.Get("X-Amz-Executed-Version"); v != "$LATEST" {
			t.Errorf("X-Amz-Executed-Version %q", v)
		}
	}
}

// ACC-02, INV-10, INV-11, RT-38, RT-44.
func TestACC02HandlerPostsError(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.ShellFunction(t, harness.ShellBootstrap))
	before, _ := d.Shell("a")
	a := d.Invoke("fail")
	const body = `{"errorType":"My.Error","errorMessage":"as it came", "stackTrace":[{"odd":1}], "more":true}`
	if a.Header.Get("X-Amz-Function-Error") != "Unhandled" || string(a.Body) != body {
		t.Errorf("function error %q, body %q; want Unhandled, %q", a.Header.Get("X-Amz-Function-Error"), a.Body, body)
	}
	after, _ := d.Shell("b")
	if after.PID != before.PID {
		t.Errorf("pid %d after the error, %d before; want the same process", after.PID, before.PID)
	}
}

// ACC-03, LC-45, LC-47, LC-71, INV-12.
func TestACC03HandlerExits(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.ShellFunction(t, harness.ShellBootstrap))
	before, _ := d.Shell("touch")
	a := d.Invoke("exit 1")
	a.WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 1")
	after, _ := d.Shell("again")
	if after.PID == before.PID {
		t.Errorf("pid %d before and after the exit", after.PID)
	}
	if !after.Kept {
		t.Error("a file in /tmp did not survive the reset")
	}
}

// ACC-04, LC-45, SUP-16.
func TestACC04RuntimeDies(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.ShellFunction(t, harness.ShellBootstrap))
	d.Invoke("kill").WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: signal: killed")
	d.Invoke("exit 0").WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited without providing a reason")
	if s, _ := d.Shell("fine"); s.Event != "fine" {
		t.Errorf("answer %+v", s)
	}
}

// ACC-05, INV-13, LC-48, LC-66, RT-29.
func TestACC05Timeout(t *testing.T) {
	const timeout = 3 * time.Second
	d := harness.Start(t, harness.OneCPU, "--timeout=3s",
		"--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Watch()}), harness.Function(t))
	late := harness.Respond(`"late"`)
	late.Name = "late"
	d.Do(script.Step{Op: "onterm", Steps: []script.Step{late}})
	// The time is that of the best of several: neighbours on the machine may add to it.
	var most time.Duration
	best := harness.Patience
	for range 5 {
		a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 600_000}}})
		a.WantError(t, "Sandbox.Timedout", "RequestId: <id> Error: Task timed out after 3.00 seconds")
		if a.Took < timeout {
			t.Errorf("answered after %v; want %v at least", a.Took, timeout)
		}
		most = timeout + harness.Scaled(t, 300*time.Millisecond)
		if best = min(best, a.Took); best <= most {
			break
		}
	}
	if best > most {
		t.Errorf("answered after %v at best; want %v at most", best, most)
	}
	journal := d.Journal()
	if event := eventOf(t, harness.First(t, journal, "watcher", "SHUTDOWN")); event.ShutdownReason != "timeout" {
		t.Errorf("SHUTDOWN event %+v; want reason timeout", event)
	}
	if e := harness.First(t, journal, "runtime", "late"); e.Status != http.StatusBadRequest {
		t.Errorf("late response %+v; want status 400", e)
	}
}

// ACC-06, RT-34, INV-08.
func TestACC06ResponseSize(t *testing.T) {
	const limit = 6_291_556
	d := harness.Start(t, "--memory=512", "--timeout=60s", harness.Function(t))
	first := d.Do()
	response := func(size int64) script.Event {
		s := harness.Respond("")
		s.N = size
		return script.Event{Report: true, Steps: []script.Step{s}, Answered: true}
	}
	d.Invoke(response(limit))
	if r := d.Do().Previous[0]; r.Status != http.StatusAccepted {
		t.Errorf("response of %d bytes: %+v; want 202", limit, r)
	}
	a := d.Invoke(response(limit + 1))
	a.WantError(t, "Function.ResponseSizeTooLarge", fmt.Sprintf("Response payload size exceeded maximum allowed payload size (%d bytes).", limit))
	after := d.Do()
	if r := after.Previous[0]; r.Status != http.StatusRequestEntityTooLarge || !strings.Contains(r.Text, "RequestEntityTooLarge") {
		t.Errorf("response of %d bytes: %+v; want 413 RequestEntityTooLarge", limit+1, r)
	}
	if after.PID != first.PID || after.Started != first.Started {
		t.Error("the runtime was replaced after an oversized response")
	}
}

// ACC-07, RT-26.
func TestACC07NextWhileRunning(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	next := script.Step{Op: "call", Method: "GET", Path: "/2018-06-01/runtime/invocation/next"}
	event := script.Event{Report: true, Steps: []script.Step{next, next}}
	r := d.Report(d.Invoke(event))
	for i, again := range r.Results {
		if again.Status != http.StatusOK || again.Text != script.Encode(event) {
			t.Errorf("next %d while running: %d %q; want 200 and the same event", i+2, again.Status, again.Text)
		}
		if id := again.Headers["Lambda-Runtime-Aws-Request-Id"]; id != r.ID {
			t.Errorf("next %d while running: id %q, want %q", i+2, id, r.ID)
		}
	}
	d.ReportOf(r.ID)
	if n := strings.Count(d.Log.Text(), "START RequestId: "+r.ID); n != 1 {
		t.Errorf("%d START lines, want 1", n)
	}
}

// ACC-08, RT-28, RT-29, RT-30, RT-07.
func TestACC08ResponseTwice(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	post := func(id string) script.Step {
		return script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/" + id + "/response", Data: `"mine"`}
	}
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{post("00000000-0000-4000-8000-000000000000"), post("{id}"), post("{id}")}, Answered: true})
	if string(a.Body) != `"mine"` {
		t.Errorf("body %q", a.Body)
	}
	after := d.Do(post("{previous}"))
	for i, want := range []struct {
		result script.Entry
		status int
		text   string
	}{
		{after.Previous[0], 400, `"errorType":"InvalidRequestID"`},
		{after.Previous[1], 202, `{"status":"OK"}`},
		{after.Previous[2], 403, `State transition from RuntimeResponseSentState to `},
		{after.Results[0], 400, `"errorType":"InvalidRequestID"`},
	} {
		if want.result.Status != want.status || !strings.Contains(want.result.Text, want.text) {
			t.Errorf("response %d: %d %q; want %d and %s", i+1, want.result.Status, want.result.Text, want.status, want.text)
		}
	}
}

// ACC-16, LC-06, LC-07, LC-23, LC-25, LOG-24, LOG-27.
func TestACC16InitTimeout(t *testing.T) {
	t.Parallel() // it mostly waits
	for _, c := range []struct {
		name, timeout string
		wantTimeout   bool
	}{
		{"inline init fits into the timeout", "20s", false},
		{"inline init exceeds the timeout", "5s", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			begin := time.Now()
			d := harness.Start(t, harness.OneCPU, "--timeout="+c.timeout, harness.Function(t, script.Step{Op: "sleep", MS: 11_000}))
			answers := make(chan harness.Answer, 1)
			go func() { // brings a sandbox up, should none be there already
				a, err := d.Request(script.Event{Report: true})
				if err != nil {
					t.Errorf("invoke: %v", err)
				}
				answers <- a
			}()
			line := d.WaitFor("INIT_REPORT")
			if took := time.Since(begin); took < 10*time.Second || !strings.Contains(line, "Phase: init") || !strings.Contains(line, "Status: timeout") {
				t.Errorf("after %v: %s; want a timeout of phase init after 10 s", took, line)
			}
			a := <-answers
			if c.wantTimeout {
				a.WantError(t, "Sandbox.Timedout", "RequestId: <id> Error: Task timed out after 5.00 seconds")
				d.WaitFor("Error Type: Runtime.Unknown") // TL-47
				return
			}
			if d.Report(a); time.Since(begin) < 21*time.Second {
				t.Errorf("answered after %v; want an init of 10 s and another of 11 s before it", time.Since(begin))
			}
			if r := d.ReportOf(a.ID()); r.InitDuration != 0 || r.Duration < 11_000 {
				t.Errorf("report %+v; want a Duration that holds the inline init", r)
			}
		})
	}
}

// ACC-17, RT-49, RT-51, LC-27.
func TestACC17InitError(t *testing.T) {
	const body = `{"errorMessage":"no such table","errorType":"My.InitError","stackTrace":[]}`
	d := harness.Start(t, harness.OneCPU, harness.Function(t,
		script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/init/error", Data: body},
		script.Step{Op: "exit", N: 1}))
	a := d.Invoke("x")
	if a.Header.Get("X-Amz-Function-Error") != "Unhandled" || string(a.Body) != body {
		t.Errorf("function error %q, body %q; want Unhandled, %q", a.Header.Get("X-Amz-Function-Error"), a.Body, body)
	}
}

// A bootstrap that ends with a status of shells gets the likely cause of it in the log; what
// the caller gets stays as on Lambda (LC-45).
func TestStatusOfShells(t *testing.T) {
	for name, tt := range map[string]struct{ script, message, hint string }{
		"no such command":  {"no-such-command\n", "exit status 127", "/var/task/bootstrap ended with status 127: a command, the interpreter of a script or a shared library"},
		"not executable":   {"/var/task\n", "exit status 126", "/var/task/bootstrap ended with status 126: a file that it runs is not executable"},
		"a syntax error":   {"if then\n", "exit status 2", "/var/task/bootstrap ended with status 2: shells do that for a syntax error"},
		"a missing loader": {"exec /usr/bin/env 'sh\r'\n", "exit status 127", "remove Windows line ends with dos2unix"},
	} {
		t.Run(name, func(t *testing.T) {
			d := harness.Start(t, harness.OneCPU, harness.ShellFunction(t, []byte("#!/bin/sh\n"+tt.script)))
			d.Invoke("x").WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: "+tt.message)
			d.WaitFor(tt.hint)
		})
	}
}

// On the host's programs /bin/sh is bash, as on Amazon Linux, by whatever name it is called.
func TestShellIsBash(t *testing.T) {
	if _, err := os.Stat("/bin/bash"); err != nil {
		t.Fatal(err) // the machines of the tests have it
	}
	const script = `#!/bin/sh
list=(a b)
[[ $BASH_VERSION == ?* && ${list[1]} == b ]] && sh -c '[[ $BASH_VERSION ]]' && env sh -c '[[ $BASH_VERSION ]]' && echo it is bash
exit 1
`
	d := harness.Start(t, harness.OneCPU, harness.ShellFunction(t, []byte(script)))
	d.Invoke("x").WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 1")
	d.WaitFor("it is bash")
}
