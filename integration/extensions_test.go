//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// first returns the first entry of who with the name.
func first(t *testing.T, journal script.Entries, who, name string) script.Entry {
	t.Helper()
	found := journal.By(who).Named(name)
	if len(found) == 0 {
		t.Fatalf("no entry %s of %s in %+v", name, who, journal)
	}
	return found[0]
}

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
	d := start(t, oneCPU, "--layer", layer(t, extensions{
		"early": watch(),
		"late":  {sleep(200), both, sleep(300), {Op: "serve"}},
	}), function(t))
	a := d.invoke(script.Event{Report: true, Steps: []script.Step{sleep(200)}}) // lets the extensions note it
	r := d.report(a)
	journal := d.journal()

	started := first(t, journal, "runtime", "start").At
	for _, name := range []string{"early", "late"} {
		if at := first(t, journal, name, "register").Began; at >= started {
			t.Errorf("%s asked to register %d us after the runtime had started", name, at-started)
		}
		invoke := eventOf(t, first(t, journal, name, "INVOKE"))
		if invoke.RequestID != a.id() {
			t.Errorf("%s: INVOKE of %s, want %s", name, invoke.RequestID, a.id())
		}
		if invoke.DeadlineMs != r.Deadline {
			t.Errorf("%s: deadline %d, the runtime's is %d", name, invoke.DeadlineMs, r.Deadline)
		}
	}
	if next := first(t, journal, "late", "INVOKE").Began; r.Received < next {
		t.Errorf("dispatched %d us before the last extension was ready", next-r.Received)
	}
}

// ACC-10, LC-40, LC-41, LC-44.
func TestACC10SlowExtension(t *testing.T) {
	const busy = 500 * time.Millisecond
	d := start(t, oneCPU, "--layer", layer(t, extensions{"slow": watch(script.Step{Op: "sleep", MS: busy.Milliseconds()})}), function(t))
	d.do() // the cold start is not looked at
	d.waitFor("REPORT RequestId: ")

	a := d.invoke("x")
	if a.took >= busy {
		t.Errorf("the caller waited %v for an extension that takes %v", a.took, busy)
	}
	answered := time.Now()
	b := d.invoke(script.Event{Report: true})
	waited := time.Since(answered)
	r := d.report(b)
	if duration := d.reportOf(a.id()).duration; duration < 500 {
		t.Errorf("Duration %.2f ms, want at least 500", duration)
	}
	if waited < busy-a.took-scaled(t, 10*time.Millisecond) {
		t.Errorf("the second invocation was answered after %v, while the first one's extension was busy", waited)
	}
	// It asks for its next event when it is free.
	var free int64
	for _, e := range d.journal().By("slow").Named("INVOKE") {
		if eventOf(t, e).RequestID == b.id() {
			free = e.Began
		}
	}
	if free < answered.UnixMicro() || r.Received < free {
		t.Errorf("the second invocation was dispatched %d us before the extension was done, which was %d us after the first answer", free-r.Received, free-answered.UnixMicro())
	}
}

// ACC-11, EX-03, EX-04.
func TestACC11ExtensionLaunch(t *testing.T) {
	many := func(n int) extensions {
		list := extensions{}
		for i := range n {
			list[fmt.Sprintf("ext%02d", i)] = idle()
		}
		return list
	}
	t.Run("ten start", func(t *testing.T) {
		d := start(t, "--memory=1769", "--timeout=20s", "--layer", layer(t, many(10)), function(t))
		d.do()
		journal := d.journal()
		for name := range many(10) {
			if e := first(t, journal, name, "register"); e.Status != http.StatusOK {
				t.Errorf("%s: %+v", name, e)
			}
		}
	})
	t.Run("eleven do not", func(t *testing.T) {
		d := start(t, "--memory=1769", "--timeout=20s", "--layer", layer(t, many(11)), function(t))
		wantLaunchError(t, d)
		d.waitFor("TooManyExtensions")
	})
	t.Run("not executable", func(t *testing.T) {
		dir := t.TempDir()
		writeFile(t, dir+"/extensions/plain", []byte("#!/bin/sh\n"), 0o644)
		d := start(t, oneCPU, "--layer", dir, function(t))
		wantLaunchError(t, d)
		d.waitFor("PermissionDenied")
	})
}

// wantLaunchError invokes and wants an init that failed before the runtime began.
func wantLaunchError(t *testing.T, d *daemon) {
	t.Helper()
	a := d.invoke("x")
	if a.header.Get("X-Amz-Function-Error") != "Unhandled" || !strings.Contains(string(a.body), `"errorType":"Extension.LaunchError"`) {
		t.Errorf("function error %q, body %s; want Extension.LaunchError", a.header.Get("X-Amz-Function-Error"), a.body)
	}
	if n := d.printed("runtime", "start"); len(n) != 0 {
		t.Error("the runtime was started")
	}
}

// ACC-12, EX-27, EX-28, LC-70.
func TestACC12ExtensionExits(t *testing.T) {
	quitter := []script.Step{both, {Op: "serve", N: 2}, {Op: "exit"}}
	d := start(t, oneCPU, "--timeout=20s", "--layer", layer(t, extensions{"quitter": quitter}), function(t))
	before := d.do()
	a := d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 600_000}}})
	a.wantError(t, "Extension.Crash", "RequestId: <id> Error: exit code 0")
	after := d.do()
	if after.Started == before.Started {
		t.Error("the runtime survived the reset")
	}
	var ids []string
	for _, e := range d.printed("quitter", "register") {
		ids = append(ids, e.Headers["Lambda-Extension-Identifier"])
	}
	if len(ids) != 2 || ids[0] == "" || ids[0] == ids[1] {
		t.Errorf("extension ids %q; want two different ones", ids)
	}
}

// beatAtSIGTERM has a runtime go on after SIGTERM and print heartbeats.
var beatAtSIGTERM = script.Step{Op: "onterm", Steps: []script.Step{heartbeat}}

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
		d := start(t, oneCPU, function(t, beatAtSIGTERM))
		d.do()
		d.stop()
		if n := d.printed("runtime", "sigterm"); len(n) != 0 {
			t.Errorf("SIGTERM came: %v", n)
		}
	})
	t.Run("internal extension", func(t *testing.T) {
		const window = 500 * time.Millisecond
		d := start(t, oneCPU, function(t, append(internalExtension(), beatAtSIGTERM)...))
		d.do()
		d.waitFrozen()
		asked := time.Now()
		d.stop()
		stopped := d.printed("runtime", "sigterm")
		beats := d.printed("runtime", "heartbeat")
		if len(stopped) != 1 || len(beats) == 0 {
			t.Fatalf("%d SIGTERM, %d heartbeats; want 1 and some", len(stopped), len(beats))
		}
		last := time.UnixMicro(beats[len(beats)-1].At)
		slack := scaled(t, 100*time.Millisecond)
		if lived := last.Sub(asked); lived < window-slack {
			t.Errorf("SIGKILL came %v after the shutdown began; want %v", lived, window)
		}
		if lived := last.Sub(time.UnixMicro(stopped[0].At)); lived > window+slack {
			t.Errorf("the runtime lived %v after SIGTERM; want %v", lived, window)
		}
	})
	t.Run("aws-lambda-go", func(t *testing.T) {
		d := start(t, oneCPU, programFunction(t, "go-sigterm"))
		d.invoke("x")
		d.stop()
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
	d := start(t, oneCPU, "--layer", layer(t, extensions{"stubborn": stubborn()}), function(t, beatAtSIGTERM))
	d.do()
	d.waitFrozen()
	asked := time.Now()
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	terms, events := d.printed("runtime", "sigterm"), d.printed("stubborn", "SHUTDOWN")
	beats := d.printed("stubborn", "heartbeat")
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
	if at, most := shutdown.Sub(begun), share+scaled(t, 100*time.Millisecond); at > most {
		t.Errorf("SHUTDOWN came %v after SIGTERM; want %v at most", at, most)
	}
	tolerance := scaled(t, 50*time.Millisecond)
	if off := deadline.Sub(begun.Add(window)); off.Abs() > tolerance {
		t.Errorf("deadlineMs is %v from SIGTERM + %v; want at most %v", off, window, tolerance)
	}
	last := time.UnixMicro(beats[len(beats)-1].At)
	if off := last.Sub(deadline); off.Abs() > scaled(t, 100*time.Millisecond) {
		t.Errorf("the extension was killed %v from the deadline", off)
	}
}
