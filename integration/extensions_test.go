//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// both are the events that an external extension may ask for.
var both = []string{"INVOKE", "SHUTDOWN"}

// first returns the first note of who and what.
func first(t *testing.T, notes []script.Note, who, what string) script.Note {
	t.Helper()
	i := slices.IndexFunc(notes, func(n script.Note) bool { return n.Who == who && n.What == what })
	if i < 0 {
		t.Fatalf("no note %s of %s in %v", what, who, notes)
	}
	return notes[i]
}

// ACC-09, LC-01, EX-19.
func TestACC09OrderOfInit(t *testing.T) {
	d := start(t, oneCPU, "--layer", extensionLayer(t, "early", "late"),
		extensionFlag("early", script.Extension{Events: both}),
		extensionFlag("late", script.Extension{Events: both, RegisterAfterMS: 200, NextAfterMS: 300}),
		function(t, "testruntime"))
	a := d.invoke(script.Event{Steps: []script.Step{{Op: "sleep", MS: 200}}}) // lets the extensions note it
	r := d.report(a)
	notes := d.notes()

	started := first(t, notes, "runtime", "start").At
	for _, name := range []string{"early", "late"} {
		if at := first(t, notes, name, "register").At; at >= started {
			t.Errorf("%s asked to register %d us after the runtime had started", name, at-started)
		}
		invoke := first(t, notes, name, "INVOKE")
		if invoke.Values["request"] != a.id() {
			t.Errorf("%s: INVOKE of %s, want %s", name, invoke.Values["request"], a.id())
		}
		if deadline := strconv.FormatInt(r.Deadline, 10); invoke.Values["deadline"] != deadline {
			t.Errorf("%s: deadline %s, the runtime's is %s", name, invoke.Values["deadline"], deadline)
		}
	}
	if next := first(t, notes, "late", "next").At; r.Received*1000 < next-1000 { // Received is in whole ms
		t.Errorf("dispatched %d us before the last extension was ready", next-r.Received*1000)
	}
}

// ACC-10, LC-40, LC-41, LC-44.
func TestACC10SlowExtension(t *testing.T) {
	const busy = 500 * time.Millisecond
	d := start(t, oneCPU, "--layer", extensionLayer(t, "slow"),
		extensionFlag("slow", script.Extension{Events: both, InvokeMS: busy.Milliseconds()}),
		function(t, "testruntime"))
	d.do() // the cold start is not looked at
	d.waitFor("REPORT RequestId: ")

	a := d.invoke("x")
	if a.took >= busy {
		t.Errorf("the caller waited %v for an extension that takes %v", a.took, busy)
	}
	answered := time.Now()
	b := d.invoke(script.Event{Steps: []script.Step{}})
	waited := time.Since(answered)
	r := d.report(b)
	if duration := d.reportOf(a.id()).duration; duration < 500 {
		t.Errorf("Duration %.2f ms, want at least 500", duration)
	}
	if waited < busy-a.took-scaled(t, 10*time.Millisecond) {
		t.Errorf("the second invocation was answered after %v, while the first one's extension was busy", waited)
	}
	notes := d.log.printed("slow", "next")
	free := notes[slices.IndexFunc(notes, func(n script.Note) bool { return n.At > answered.UnixMicro() })].At
	if r.Received*1000 < free-1000 {
		t.Errorf("the second invocation was dispatched %d us before the extension was done", free-r.Received*1000)
	}
}

// ACC-11, EX-03, EX-04.
func TestACC11ExtensionLaunch(t *testing.T) {
	names := func(n int) (names []string) {
		for i := range n {
			names = append(names, fmt.Sprintf("ext%02d", i))
		}
		return names
	}
	t.Run("ten start", func(t *testing.T) {
		d := start(t, "--memory=1769", "--timeout=20s", "--layer", extensionLayer(t, names(10)...), function(t, "testruntime"))
		d.do()
		notes := d.notes()
		for _, name := range names(10) {
			first(t, notes, name, "registered")
		}
	})
	t.Run("eleven do not", func(t *testing.T) {
		d := start(t, "--memory=1769", "--timeout=20s", "--layer", extensionLayer(t, names(11)...), function(t, "testruntime"))
		wantLaunchError(t, d)
		d.waitFor("TooManyExtensions")
	})
	t.Run("not executable", func(t *testing.T) {
		layer := extensionLayer(t)
		writeFile(t, layer+"/extensions/plain", []byte("#!/bin/sh\n"), 0o644)
		d := start(t, oneCPU, "--layer", layer, function(t, "testruntime"))
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
	if n := d.log.printed("runtime", "start"); len(n) != 0 {
		t.Error("the runtime was started")
	}
}

// ACC-12, EX-27, EX-28, LC-70.
func TestACC12ExtensionExits(t *testing.T) {
	d := start(t, oneCPU, "--timeout=20s", "--layer", extensionLayer(t, "quitter"),
		extensionFlag("quitter", script.Extension{Events: both, ExitOnInvoke: 2}),
		function(t, "testruntime"))
	before := d.do()
	a := d.invoke(script.Event{Steps: []script.Step{{Op: "sleep", MS: 600_000}}})
	a.wantError(t, "Extension.Crash", "RequestId: <id> Error: exit code 0")
	after := d.do()
	if after.Started == before.Started {
		t.Error("the runtime survived the reset")
	}
	var ids []string
	for _, n := range d.log.printed("quitter", "registered") {
		ids = append(ids, n.Values["id"])
	}
	if len(ids) != 2 || ids[0] == "" || ids[0] == ids[1] {
		t.Errorf("extension ids %q; want two different ones", ids)
	}
}

// ACC-13, LC-60, LC-61, LC-64, EX-16.
func TestACC13SIGTERM(t *testing.T) {
	t.Run("no extension", func(t *testing.T) {
		d := start(t, oneCPU, initFlag(script.Step{Op: "on_sigterm", Data: "heartbeat"}), function(t, "testruntime"))
		d.do()
		d.stop()
		if n := d.log.printed("runtime", "sigterm"); len(n) != 0 {
			t.Errorf("SIGTERM came: %v", n)
		}
	})
	t.Run("internal extension", func(t *testing.T) {
		const window = 500 * time.Millisecond
		d := start(t, oneCPU, initFlag(script.Step{Op: "register"}, script.Step{Op: "on_sigterm", Data: "heartbeat"}), function(t, "testruntime"))
		d.do()
		d.waitFrozen()
		asked := time.Now()
		d.stop()
		stopped := d.log.printed("runtime", "sigterm")
		beats := d.log.printed("runtime", "heartbeat")
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
		d := start(t, oneCPU, function(t, "go-sigterm"))
		d.invoke("x")
		d.stop()
		if !strings.Contains(d.log.text(), "SIGTERM: cleaning up") {
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
	d := start(t, oneCPU, "--layer", extensionLayer(t, "stubborn"),
		extensionFlag("stubborn", script.Extension{Events: both, IgnoreShutdown: true}),
		initFlag(script.Step{Op: "on_sigterm", Data: "heartbeat"}), function(t, "testruntime"))
	d.do()
	d.waitFrozen()
	asked := time.Now()
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}

	terms, events := d.log.printed("runtime", "sigterm"), d.log.printed("stubborn", "SHUTDOWN")
	beats := d.log.printed("stubborn", "heartbeat")
	if len(terms) != 1 || len(events) != 1 || len(beats) == 0 {
		t.Fatalf("%d SIGTERM, %d SHUTDOWN, %d heartbeats; want 1, 1, some", len(terms), len(events), len(beats))
	}
	begun, shutdown := time.UnixMicro(terms[0].At), time.UnixMicro(events[0].At)
	ms, err := strconv.ParseInt(events[0].Values["deadline"], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.UnixMilli(ms)
	if events[0].Values["reason"] != "spindown" {
		t.Errorf("reason %q, want spindown", events[0].Values["reason"])
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
