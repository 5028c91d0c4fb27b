//go:build integration

package lifecycle

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// eventOf is the event in an entry of an extension.
func eventOf(t *testing.T, e script.Entry) script.ExtensionEvent {
	t.Helper()
	event, err := e.Event()
	if err != nil {
		t.Fatal(err)
	}
	return event
}

// ACC-09, LC-01, EX-19.
func TestACC09OrderOfInit(t *testing.T) {
	sleep := func(ms int64) script.Step { return script.Step{Op: "sleep", MS: ms} }
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{
		"early": harness.Watch(),
		"late":  {sleep(200), harness.Both, sleep(300), {Op: "serve"}},
	}), harness.Function(t))
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{sleep(200)}}) // lets the extensions note it
	r := d.Report(a)
	journal := d.Journal()

	started := harness.First(t, journal, "runtime", "start").At
	for _, name := range []string{"early", "late"} {
		if at := harness.First(t, journal, name, "register").Began; at >= started {
			t.Errorf("%s asked to register %d us after the runtime had started", name, at-started)
		}
		invoke := eventOf(t, harness.First(t, journal, name, "INVOKE"))
		if invoke.RequestID != a.ID() {
			t.Errorf("%s: INVOKE of %s, want %s", name, invoke.RequestID, a.ID())
		}
		if invoke.DeadlineMs != r.Deadline {
			t.Errorf("%s: deadline %d, the runtime's is %d", name, invoke.DeadlineMs, r.Deadline)
		}
	}
	if next := harness.First(t, journal, "late", "INVOKE").Began; r.Received < next {
		t.Errorf("dispatched %d us before the last extension was ready", next-r.Received)
	}
}

// ACC-10, LC-40, LC-41, LC-44.
func TestACC10SlowExtension(t *testing.T) {
	const busy = 500 * time.Millisecond
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{"slow": harness.Watch(script.Step{Op: "sleep", MS: busy.Milliseconds()})}), harness.Function(t))
	d.Do() // the cold start is not looked at
	d.WaitFor("REPORT RequestId: ")

	begin := time.Now()
	a := d.Invoke("x")
	answered := time.Now()
	b := d.Invoke(script.Event{Report: true})
	if took := time.Since(begin); took < busy {
		t.Errorf("the second invocation was answered %v after the first began, while the extension was busy for %v", took, busy)
	}
	r := d.Report(b)
	if duration := d.ReportOf(a.ID()).Duration; duration < 500 {
		t.Errorf("Duration %.2f ms, want at least 500", duration)
	}
	// It asks for its next event when it is free.
	var free int64
	for _, e := range d.Journal().By("slow").Named("INVOKE") {
		if eventOf(t, e).RequestID == b.ID() {
			free = e.Began
		}
	}
	if free < answered.UnixMicro() || r.Received < free {
		t.Errorf("the second invocation was dispatched %d us before the extension was done, which was %d us after the first answer", free-r.Received, free-answered.UnixMicro())
	}
}

// ACC-11, EX-03, EX-04.
func TestACC11ExtensionLaunch(t *testing.T) {
	many := func(n int) harness.Extensions {
		list := harness.Extensions{}
		for i := range n {
			list[fmt.Sprintf("ext%02d", i)] = harness.Idle()
		}
		return list
	}
	t.Run("ten start", func(t *testing.T) {
		d := harness.Start(t, "--memory=1769", "--timeout=20s", "--layer", harness.Layer(t, many(10)), harness.Function(t))
		d.Do()
		journal := d.Journal()
		for name := range many(10) {
			if e := harness.First(t, journal, name, "register"); e.Status != http.StatusOK {
				t.Errorf("%s: %+v", name, e)
			}
		}
	})
	t.Run("eleven do not", func(t *testing.T) {
		d := harness.Start(t, "--memory=1769", "--timeout=20s", "--layer", harness.Layer(t, many(11)), harness.Function(t))
		wantLaunchError(t, d)
		d.WaitFor("TooManyExtensions")
	})
	t.Run("not executable", func(t *testing.T) {
		dir := t.TempDir()
		harness.WriteFile(t, dir+"/extensions/plain", []byte("#!/bin/sh\n"), 0o644)
		d := harness.Start(t, harness.OneCPU, "--layer", dir, harness.Function(t))
		wantLaunchError(t, d)
		d.WaitFor("PermissionDenied")
	})
	t.Run("Windows line ends", func(t *testing.T) {
		dir := t.TempDir()
		harness.WriteFile(t, dir+"/extensions/ext", []byte("#!/usr/bin/env bash\r\n"), 0o755)
		d := harness.Start(t, harness.OneCPU, "--layer", dir, harness.Function(t))
		d.WaitFor("has Windows line ends")
	})
}

// wantLaunchError invokes and wants an init that failed before the runtime began.
func wantLaunchError(t *testing.T, d *harness.Daemon) {
	t.Helper()
	a := d.Invoke("x")
	if a.Header.Get("X-Amz-Function-Error") != "Unhandled" || !strings.Contains(string(a.Body), `"errorType":"Extension.LaunchError"`) {
		t.Errorf("function error %q, body %s; want Extension.LaunchError", a.Header.Get("X-Amz-Function-Error"), a.Body)
	}
	if n := d.Printed("runtime", "start"); len(n) != 0 {
		t.Error("the runtime was started")
	}
}

// ACC-12, EX-27, EX-28, LC-70.
func TestACC12ExtensionExits(t *testing.T) {
	quitter := []script.Step{harness.Both, {Op: "serve", N: 2}, {Op: "exit"}}
	d := harness.Start(t, harness.OneCPU, "--timeout=20s", "--layer", harness.Layer(t, harness.Extensions{"quitter": quitter}), harness.Function(t))
	before := d.Do()
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 600_000}}})
	a.WantError(t, "Extension.Crash", "RequestId: <id> Error: extension quitter: exit code 0")
	after := d.Do()
	if after.Started == before.Started {
		t.Error("the runtime survived the reset")
	}
	d.WaitPrinted("quitter", "register", 2)
	var ids []string
	for _, e := range d.Printed("quitter", "register") {
		ids = append(ids, e.Headers["Lambda-Extension-Identifier"])
	}
	if len(ids) != 2 || ids[0] == "" || ids[0] == ids[1] {
		t.Errorf("extension ids %q; want two different ones", ids)
	}
}

// internalExtension registers one for no event and leaves its next blocked for ever, as
// aws-lambda-go's SIGTERM helper does (EX-16).
func internalExtension() []script.Step {
	return []script.Step{
		{Op: "register", Path: "internal", Data: `{"events":null}`},
		{Op: "call", Method: "GET", Path: "/2020-01-01/extension/event/next", Headers: map[string]string{"Lambda-Extension-Identifier": "{ext}"}, Background: true},
	}
}

// ACC-13, LC-60, LC-61, LC-64, EX-16.
func TestACC13SIGTERM(t *testing.T) {
	t.Run("no extension", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, harness.Function(t, harness.BeatAtSIGTERM))
		d.Do()
		d.Stop()
		if n := d.Printed("runtime", "sigterm"); len(n) != 0 {
			t.Errorf("SIGTERM came: %v", n)
		}
	})
	t.Run("internal extension", func(t *testing.T) {
		const window = 500 * time.Millisecond
		d := harness.Start(t, harness.OneCPU, harness.Function(t, append(internalExtension(), harness.BeatAtSIGTERM)...))
		d.Do()
		d.WaitFrozen()
		asked := time.Now()
		d.Stop()
		stopped := d.Printed("runtime", "sigterm")
		beats := d.Printed("runtime", "heartbeat")
		if len(stopped) != 1 || len(beats) == 0 {
			t.Fatalf("%d SIGTERM, %d heartbeats; want 1 and some", len(stopped), len(beats))
		}
		last := time.UnixMicro(beats[len(beats)-1].At)
		slack := harness.Scaled(t, window/2)
		if lived := last.Sub(asked); lived < window/2 {
			t.Errorf("SIGKILL came %v after the shutdown began; want %v", lived, window)
		}
		if lived := last.Sub(time.UnixMicro(stopped[0].At)); lived > window+slack {
			t.Errorf("the runtime lived %v after SIGTERM; want %v", lived, window)
		}
	})
	t.Run("aws-lambda-go", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, harness.ProgramFunction(t, "go-sigterm"))
		d.Invoke("x")
		d.Stop()
		if !strings.Contains(d.Log.Text(), "SIGTERM: cleaning up") {
			t.Error("the function's SIGTERM handler did not run")
		}
	})
}

// ACC-14, LC-61, LC-62, LC-63, LC-64, LC-65, LC-82.
func TestACC14Shutdown(t *testing.T) {
	const (
		window = 2000 * time.Millisecond
		share  = 600 * time.Millisecond // 30 percent, LC-64 as settled
	)
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{"stubborn": harness.Stubborn()}), harness.Function(t, harness.BeatAtSIGTERM))
	d.Do()
	d.WaitFrozen()
	asked := time.Now()
	d.Signal(syscall.SIGTERM)
	if code := d.WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	terms, events := d.Printed("runtime", "sigterm"), d.Printed("stubborn", "SHUTDOWN")
	beats := d.Printed("stubborn", "heartbeat")
	if len(terms) != 1 || len(events) != 1 || len(beats) == 0 {
		t.Fatalf("%d SIGTERM, %d SHUTDOWN, %d heartbeats; want 1, 1, some", len(terms), len(events), len(beats))
	}
	begun, shutdown := time.UnixMicro(terms[0].At), time.UnixMicro(events[0].At)
	event := eventOf(t, events[0])
	deadline := time.UnixMilli(event.DeadlineMs)
	if event.ShutdownReason != "spindown" {
		t.Errorf("reason %q, want spindown", event.ShutdownReason)
	}
	if at := shutdown.Sub(asked); at < share {
		t.Errorf("SHUTDOWN came %v after the shutdown was asked for; want %v at least", at, share)
	}
	if at, most := shutdown.Sub(begun), share+harness.Scaled(t, 500*time.Millisecond); at > most {
		t.Errorf("SHUTDOWN came %v after SIGTERM; want %v at most", at, most)
	}
	// The shutdown began after it was asked for and before the runtime had SIGTERM.
	if least, most := asked.Add(window-time.Millisecond), begun.Add(window+time.Millisecond); deadline.Before(least) || deadline.After(most) {
		t.Errorf("deadlineMs is %v after the shutdown was asked for and %v after SIGTERM; want %v between them", deadline.Sub(asked), deadline.Sub(begun), window)
	}
	last := time.UnixMicro(beats[len(beats)-1].At)
	if off := last.Sub(deadline); off.Abs() > harness.Scaled(t, 500*time.Millisecond) {
		t.Errorf("the extension was killed %v from the deadline", off)
	}
}
