package cases

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// slow has an extension that is slow to register and slow to be ready.
var slow = &suite.Setup{Name: "slow extension", Runtime: starts(steps(step{Op: "write", Name: "ran", Path: "/tmp/ran", Data: "x"})),
	Extensions: map[string][][]step{
		"early": watch(both),
		"late":  starts(steps(sleep(300), registerAs(both), sleep(400), step{Op: "write", Name: "ready", Path: "/tmp/ready", Data: "x"}, serve(0))),
	}}

// byStart makes a runtime that does things at its first start only.
func byStart(name string, list ...step) *suite.Setup {
	return &suite.Setup{Name: name, Timeout: 20, Runtime: starts(list, nil)}
}

var (
	exitsInInit  = byStart("runtime exits in its first init", exit(0))
	sleepsInInit = byStart("runtime is too slow in its first init", sleep(12_000))
	alwaysExits  = &suite.Setup{Name: "runtime always exits in init", Runtime: starts(steps(exit(3)))}
	// badBootstrap fails only when it is executed: what can be seen of a bootstrap before,
	// a target may refuse before it serves.
	badBootstrap = &suite.Setup{Name: "bootstrap with a bad interpreter", NoRuntime: true, Files: map[string]suite.File{
		"function/bootstrap": {Text: "#!/var/task/interpreter\n", Mode: 0o755}, "function/interpreter": {Text: "x", Mode: 0o755}}}
)

// initialization is section 4.1.
var initialization = []suite.Case{
	{ID: "LC-01", Setup: slow, Run: func(t *suite.T) {
		_, _ = t.Play()
		j := t.Journal()
		order := []script.Entry{t.One(j.By("late"), "start"), t.One(j.By("late"), "register"), t.One(j.By("runtime"), "start"),
			t.One(j.By("late"), "ready"), t.First(j.By("runtime"), "next")}
		for i := range order[1:] {
			if order[i].At > order[i+1].At {
				t.Errorf("%s of %s comes after %s of %s", order[i].Name, order[i].Who, order[i+1].Name, order[i+1].Who)
			}
		}
	}},
	{ID: "LC-02", Setup: plain, Run: func(t *suite.T) {
		t.Restart()
		suite.Equal(t, "answer", string(t.Invoke("1").Body), "1")
	}},
	{ID: "LC-03", Setup: watched, Run: func(t *suite.T) {
		a, _ := t.Play()
		j := t.Journal().By("b").Named("INVOKE")
		if len(j) == 0 || !strings.Contains(j[0].Text, "requestId") {
			t.Errorf("first event after %s: %v", a.ID(), j)
		}
	}},
	{ID: "LC-05", Setup: slow, Run: func(t *suite.T) {
		t.Play()
		j := t.Journal()
		if ready, next := t.One(j.By("late"), "ready"), t.First(j.By("runtime"), "next"); next.At < ready.At {
			t.Errorf("the event came %d µs before the last extension was ready", ready.At-next.At)
		}
	}},
	{ID: "LC-06", Setup: sleepsInInit, Run: func(t *suite.T) {
		t.Invoke("1")
		began := t.Journal().By("runtime").Named("start")
		if len(began) != 2 {
			t.Fatalf("%d starts of the runtime, want 2", len(began))
		}
		limit := 10 * time.Second
		if took := time.Duration(began[1].At-began[0].At) * time.Microsecond; took < limit-100*time.Millisecond || took > limit+t.Scaled(3*time.Second) {
			t.Errorf("the second start came %v after the first, want %v", took, limit)
		}
	}},
	{ID: "LC-07", Setup: sleepsInInit, Run: func(t *suite.T) {
		if a := t.Invoke("1"); string(a.Body) != "1" {
			t.Errorf("answer after an init that took too long: %s", suite.Short(a.Body))
		}
		t.WaitLog("Phase: init\tStatus: timeout")
		suite.Equal(t, "starts", len(t.Journal().By("runtime").Named("start")), 2)
	}},
	{ID: "LC-08", Setup: exitsInInit, Run: func(t *suite.T) {
		suite.Equal(t, "answer after an init that failed", string(t.Invoke("1").Body), "1")
		t.WaitLog("Phase: init\tStatus: error\tError Type: Runtime.ExitError")
	}},
	{ID: "LC-11", Setup: &suite.Setup{Name: "runtime always exits 0 in init", Runtime: starts(steps(exit(0)))}, Run: func(t *suite.T) {
		t.FunctionError(t.Invoke("1"), "Runtime.ExitError", "RequestId: <id> Error: Runtime exited without providing a reason")
	}},
	{ID: "LC-12", Setup: badBootstrap, Run: func(t *suite.T) {
		t.FunctionError(t.Invoke("1"), "Runtime.InvalidEntrypoint", "")
	}},
	{ID: "LC-15", Setup: exitsInInit, Run: func(t *suite.T) {
		t.Restart()
		if a := t.Invoke("1"); a.Took > t.Scaled(5*time.Second) {
			t.Errorf("an exit in init was noticed only after %v", a.Took)
		}
	}},
	{ID: "LC-25", Setup: exitsInInit, Run: func(t *suite.T) {
		t.Restart()
		_, j := t.Play()
		suite.Equal(t, "start that plays", t.First(j, "next").Start, 2)
	}},
	{ID: "LC-26", Setup: alwaysExits, Run: func(t *suite.T) {
		for range 2 {
			t.FunctionError(t.Invoke("1"), "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 3")
		}
	}},
	{ID: "LC-27", Setup: &suite.Setup{Name: "init error, then exit", Runtime: starts(
		steps(post("init/error", initErrorPath, initErrorBody), exit(1)), steps(exit(1)))}, Run: func(t *suite.T) {
		t.Restart()
		a := t.Invoke("1", tail, asTail)
		suite.Equal(t, "answer", string(a.Body), initErrorBody)
		t.Contains("tail", a.Tail(), "START RequestId: "+a.ID()+" Version: $LATEST\nEND RequestId: "+a.ID()+"\nREPORT") // LOG-29
		if m := reported(t, a); m[7] != "error" || m[8] != "Runtime.Unknown" {
			t.Errorf("%q: want the type of the posted error, which had none", m[0])
		}
	}},
}

// busy has an extension that works on for half a second after each INVOKE.
var busy = &suite.Setup{Name: "busy extension", Extensions: map[string][][]step{"busy": starts(steps(registerAs(both), serve(0, sleep(500))))}}

// worked is when the extension of busy had done its work for an invocation.
func worked(t *suite.T, j script.Entries, id string) int64 {
	j = j.By("busy")
	for i, e := range j {
		if e.Name == "INVOKE" && strings.Contains(e.Text, id) && i+1 < len(j) {
			return t.One(j[i+1:i+2], "sleep").At
		}
	}
	t.Fatalf("the extension was not invoked for %s, or does not come back", id)
	return 0
}

// stuck has an extension that never comes back from its first INVOKE.
var stuck = &suite.Setup{Name: "stuck extension", Timeout: 1, Extensions: map[string][][]step{
	"stuck": starts(steps(registerAs(both), serve(0, sleep(60_000))), watch(both)[0])}}

// dispatch is section 4.2.
var dispatch = []suite.Case{
	{ID: "LC-20", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(false, sleep(600))
		first := t.Background(payload)
		t.Invoke("1") // orders nothing: it may come first
		second := t.Invoke(`"second"`)
		a := <-first
		if second.Status != 200 && second.Status != 429 {
			t.Errorf("second invocation: status %d", second.Status)
		}
		if a == nil || a.Status != 200 && a.Status != 429 {
			t.Fatalf("first invocation: %+v", a)
		}
		j := t.Journal()
		if l := j.Of(play); len(l) > 0 {
			began, ended := t.One(l, "sleep").Began, t.One(l, "sleep").At
			for _, e := range j.Named("next") {
				if e.At > began && e.At < ended {
					t.Errorf("an event came while another was under way")
				}
			}
		}
	}},
	{ID: "LC-21", Setup: busy, Run: func(t *suite.T) {
		a, j := t.Play()
		all := t.Journal()
		if done := worked(t, all, a.ID()); t.One(j, "next").At > done {
			t.Errorf("the runtime got the event %d µs after the extension had done its work for it", t.One(j, "next").At-done)
		}
	}},
	{ID: "LC-22", Setup: plain, Run: func(t *suite.T) {
		a := t.Invoke("1", "X-Amz-Log-Type", "Tail")
		suite.Equal(t, "START lines", strings.Count(a.Tail(), "START RequestId: "+a.ID()), 1)
	}},
	{ID: "LC-23", Setup: &suite.Setup{Name: "deadline of an inline init", Timeout: 5, Runtime: starts(steps(exit(1)), steps(sleep(1000)))}, Run: func(t *suite.T) {
		before := time.Now()
		_, j := t.Play()
		e := t.One(j, "next")
		var deadline int64
		if err := json.Unmarshal([]byte(e.Headers["Lambda-Runtime-Deadline-Ms"]), &deadline); err != nil {
			t.Fatalf("deadline: %v", err)
		}
		if left := deadline - e.At/1000; left > 4100 {
			t.Errorf("%d ms are left after an inline init of 1 s, of 5 s (invoked at %v)", left, before)
		}
	}},
	{ID: "LC-24", Setup: &suite.Setup{Name: "extension without INVOKE", Extensions: map[string][][]step{"ending": watch(`"SHUTDOWN"`)}}, Run: func(t *suite.T) {
		t.Invoke("1")
		suite.Equal(t, "answer to the next event", string(t.Invoke("2").Body), "2")
		suite.Equal(t, "events", len(t.Journal().By("ending").Named("INVOKE")), 0)
	}},
}

// report is the REPORT line of an answer with its tail.
func report(t *suite.T, a *suite.Answer) string {
	for line := range strings.Lines(a.Tail()) {
		if strings.HasPrefix(line, "REPORT RequestId: "+a.ID()) {
			return line
		}
	}
	t.Fatalf("no REPORT line in the tail %q", a.Tail())
	return ""
}

// endOfInvocation is section 4.4.
var endOfInvocation = []suite.Case{
	{ID: "LC-40", Setup: busy, Run: func(t *suite.T) {
		t.Invoke("0")
		began := time.Now()
		t.Invoke("1")
		if b := t.Invoke("2"); b.Status == 200 && time.Since(began) < 500*time.Millisecond {
			t.Errorf("the next invocation was taken before the extension was done")
		}
	}},
	{ID: "LC-41", Setup: busy, Run: func(t *suite.T) {
		t.Invoke("0")
		b := t.Invoke("1", "X-Amz-Log-Type", "Tail") // Done of what was before
		t.Contains("tail", b.Tail(), "REPORT")
		a := t.Invoke("2")
		answered := time.Now().UnixMicro()
		t.Quiet()
		if done := worked(t, t.Journal(), a.ID()); answered > done {
			t.Errorf("the answer came %d µs after the extension had done its work", answered-done)
		}
	}},
	{ID: "LC-43", Setup: stuck, Run: func(t *suite.T) {
		a := t.Invoke("1")
		suite.Equal(t, "answer", string(a.Body), "1")
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
		t.WaitLog("REPORT RequestId: " + a.ID())
		t.Contains("log", t.Log(), "Status: timeout")
		suite.Equal(t, "starts of the extension", len(t.Journal().By("stuck").Named("start")), 2)
	}},
	{ID: "LC-44", Setup: busy, Run: func(t *suite.T) {
		a := t.Invoke("1", "X-Amz-Log-Type", "Tail")
		if m := reportLine.FindStringSubmatch(report(t, a)); m == nil || number(m[2]) < 500 {
			t.Errorf("%q: want a Duration of 500 ms and more", report(t, a))
		}
	}},
	{ID: "LC-45", Setup: plain, Run: func(t *suite.T) {
		for _, c := range []struct {
			end  step
			want string
		}{{exit(0), "Runtime exited without providing a reason"}, {exit(7), "Runtime exited with error: exit status 7"}, {signal(9), "Runtime exited with error: signal: killed"}} {
			payload, _ := t.Event(true, c.end)
			t.FunctionError(t.Invoke(payload), "Runtime.ExitError", "RequestId: <id> Error: "+c.want)
		}
	}},
	{ID: "LC-46", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, answer("r", `"mine"`), exit(1))
		a := t.Invoke(payload)
		suite.Equal(t, "answer", string(a.Body), `"mine"`)
		suite.Equal(t, "X-Amz-Function-Error", a.Header.Get("X-Amz-Function-Error"), "")
		t.WaitLog("REPORT RequestId: " + a.ID())
		t.Contains("log", t.Log(), "Status: error")
	}},
	{ID: "LC-47", Setup: plain, Run: func(t *suite.T) {
		_, before := t.Play()
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		_, after := t.Play()
		suite.Equal(t, "start after an exit", t.First(after, "next").Start, t.First(before, "next").Start+1)
	}},
	{ID: "LC-48", Setup: &suite.Setup{Name: "timeout with an extension", Timeout: 1, Extensions: map[string][][]step{"watcher": watch(both)}}, Run: func(t *suite.T) {
		payload, _ := t.Event(true, sleep(60_000))
		t.FunctionError(t.Invoke(payload), "Sandbox.Timedout", "RequestId: <id> Error: Task timed out after 1.00 seconds")
		t.Contains("SHUTDOWN event", t.One(t.Journal().By("watcher"), "SHUTDOWN").Text, `"shutdownReason":"timeout"`)
	}},
}
