package cases

import (
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// shutdown window with external extensions, and the runtime's share of it (LC-64).
const (
	window = 2 * time.Second
	share  = window * 30 / 100
)

func termed(list ...step) step { return step{Op: "onterm", Steps: list} }

var (
	alone    = &suite.Setup{Name: "shutdown without extensions", Runtime: starts(steps(termed()))}
	obedient = &suite.Setup{Name: "shutdown of a runtime that exits", Runtime: starts(steps(termed(exit(0)))),
		Extensions: map[string][][]step{"watcher": watch(both), "deaf": watch(`"INVOKE"`)}}
	deaf = &suite.Setup{Name: "shutdown of a runtime that goes on", Runtime: starts(steps(termed())),
		Extensions: map[string][][]step{"watcher": starts(steps(registerAs(both), onShutdown(serve(0), sleep(60_000))))}}
	late = &suite.Setup{Name: "shutdown of a busy extension", Timeout: 1, Runtime: starts(steps(termed(exit(0)))),
		Extensions: map[string][][]step{"watcher": starts(steps(registerAs(both), serve(0, sleep(1500))))}}
	resetting = &suite.Setup{Name: "reset with an extension", Runtime: starts(lookAround), Extensions: map[string][][]step{"watcher": watch(both)}}
)

// ended are the entries of the first start.
func ended(l script.Entries) script.Entries {
	var out script.Entries
	for _, e := range l {
		if e.Start == 1 {
			out = append(out, e)
		}
	}
	return out
}

// deadlineOf is the deadline in a SHUTDOWN event.
func deadlineOf(t *suite.T, e script.Entry) time.Time {
	ev, err := e.Event()
	if err != nil {
		t.Fatalf("%v", err)
	}
	return time.UnixMilli(ev.DeadlineMs)
}

// stopped is when what happened in a shutdown of an environment with a runtime that notes
// SIGTERM and an extension "watcher".
type stopped struct {
	began    time.Time // of the stop; the environment's shutdown began between this and term
	term     time.Time // the runtime had SIGTERM
	event    time.Time // the extension had SHUTDOWN
	deadline time.Time // that SHUTDOWN gives
}

// stop ends the environment.
func stop(t *suite.T) stopped {
	s := stopped{began: time.Now()}
	log := t.Stop()
	term, down := script.Printed(log, "runtime", "sigterm"), script.Printed(log, "watcher", "SHUTDOWN")
	if len(term) != 1 || len(down) != 1 {
		t.Fatalf("%d SIGTERM, %d SHUTDOWN; want one of each", len(term), len(down))
	}
	s.term, s.event, s.deadline = time.UnixMicro(term[0].At), time.UnixMicro(down[0].At), deadlineOf(t, down[0])
	return s
}

// wantWindow wants the deadline to be one window after the shutdown began. It is given
// in whole milliseconds.
func (s stopped) wantWindow(t *suite.T) {
	if least, most := s.began.Add(window-time.Millisecond), s.term.Add(window+time.Millisecond); s.deadline.Before(least) || s.deadline.After(most) {
		t.Errorf("the deadline is %v after the stop and %v after SIGTERM, want %v between them", s.deadline.Sub(s.began), s.deadline.Sub(s.term), window)
	}
}

// shutdown is sections 4.5 and 4.6.
var shutdown = []suite.Case{
	{ID: "LC-60", Setup: alone, Run: func(t *suite.T) {
		t.Invoke("1")
		if n := len(script.Printed(t.Stop(), "runtime", "sigterm")); n > 0 {
			t.Errorf("the runtime got SIGTERM, without any extension")
		}
	}},
	{ID: "LC-61", Setup: obedient, Run: func(t *suite.T) {
		t.Invoke("1")
		if n := len(script.Printed(t.Stop(), "runtime", "sigterm")); n != 1 {
			t.Errorf("%d SIGTERM at spindown, want 1", n)
		}
	}},
	{ID: "LC-62", Setup: deaf, Run: func(t *suite.T) {
		t.Invoke("1")
		s := stop(t)
		if after := s.event.Sub(s.began); after < share {
			t.Errorf("SHUTDOWN %v after the stop began, want %v", after, share)
		}
		if after := s.event.Sub(s.term); after > share+t.Scaled(500*time.Millisecond) {
			t.Errorf("SHUTDOWN %v after SIGTERM, want %v", after, share)
		}
	}},
	{ID: "LC-63", Setup: deaf, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		began := time.Now()
		t.Stop()
		if took := time.Since(began); took < window-10*time.Millisecond || took > window+t.Scaled(2*time.Second) {
			t.Errorf("an extension that stays was gone after %v, want %v", took, window)
		}
	}},
	{ID: "LC-64", Setup: obedient, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		stop(t).wantWindow(t)
	}},
	{ID: "LC-65", Setup: deaf, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		stop(t).wantWindow(t)
	}},
	{ID: "LC-66", Setup: resetting, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		t.Contains("SHUTDOWN event", t.First(ended(t.Journal().By("watcher")), "SHUTDOWN").Text, `"shutdownReason":"failure"`)
	}},
	{ID: "LC-68", Setup: late, Run: func(t *suite.T) {
		payload, _ := t.Event(true, sleep(60_000))
		t.FunctionError(t.Invoke(payload), "Sandbox.Timedout", "") // after 1 s; the extension is busy 0.5 s longer
		t.One(ended(t.Journal().By("watcher")), "SHUTDOWN")
	}},
	{ID: "LC-69", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, step{Op: "daemon"}, exit(1))
		t.Invoke(payload)
		_, j := t.Play(step{Op: "ps"})
		for _, p := range t.One(j, "ps").List {
			if strings.Contains(p, script.DaemonName) {
				t.Errorf("it outlived the reset: %s", p)
			}
		}
	}},
	{ID: "LC-70", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		_, j := t.Play(post("old id", runtimeBase+"invocation/{previous}/response", "1"))
		if s := t.One(j, "old id").Status; s != 400 && s != 404 { // {previous} is empty in a new process
			t.Errorf("status %d", s)
		}
		suite.Equal(t, "answer", string(t.Invoke("1").Body), "1")
	}},
	{ID: "LC-71", Setup: plain, Run: func(t *suite.T) {
		t.Restart()
		t.Play(step{Op: "write", Path: "/tmp/kept", Data: "mine"}, step{Op: "env"})
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		_, j := t.Play(step{Op: "read", Path: "/tmp/kept"})
		suite.Equal(t, "file in /tmp", t.One(j, "read").Text, "mine")
		env := t.Journal().By("runtime").Named("env")
		if len(env) < 2 {
			t.Fatalf("%d environments of the runtime in the journal, want one before the reset and one after it", len(env))
		}
		one, _ := variable(env[0].List, "AWS_LAMBDA_LOG_STREAM_NAME")
		two, _ := variable(env[len(env)-1].List, "AWS_LAMBDA_LOG_STREAM_NAME")
		suite.Equal(t, "log stream after the reset", two, one)
	}},
	{ID: "LC-74", Setup: obedient, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		if log := t.Stop(); strings.Contains(log, "Runtime.ExitError") {
			t.Errorf("an exit at SIGTERM counts as an error")
		}
	}},
	{ID: "LC-80", Setup: plain, Run: func(t *suite.T) {
		const period, idle = 5, 2000 * time.Millisecond
		t.Play(step{Op: "tick", MS: period})
		_, j := t.Play(step{Op: "ticks"})
		time.Sleep(idle) // the time in which nothing may happen
		_, k := t.Play(step{Op: "ticks"})
		if n := t.One(k, "ticks").N - t.One(j, "ticks").N; n > int64(idle/(period*time.Millisecond))/2 {
			t.Errorf("a background counter went on by %d in %v between invocations", n, idle)
		}
		_, j = t.Play(step{Op: "ticks"}, sleep(200), step{Op: "ticks", Name: "later"})
		if t.One(j, "later").N <= t.One(j, "ticks").N {
			t.Errorf("the counter does not go on after the thaw")
		}
	}},
	{ID: "LC-81", Setup: plain, Run: func(t *suite.T) {
		payload, play := t.Event(true, step{Op: "tick", MS: 5}, answer("r", "1"), sleep(300), step{Op: "ticks"})
		t.Invoke(payload)
		if n := t.One(t.Journal().Of(play), "ticks").N; n < 5 {
			t.Errorf("the counter stands at %d, 300 ms after the answer and before Done", n)
		}
	}},
	{ID: "LC-82", Setup: obedient, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		time.Sleep(100 * time.Millisecond) // frozen by now, where idle environments are
		began := time.Now()
		down := script.Printed(t.Stop(), "watcher", "SHUTDOWN")
		if len(down) != 1 || deadlineOf(t, down[0]).Sub(began) < window-10*time.Millisecond {
			t.Errorf("a frozen environment got %d SHUTDOWN events, or not the whole window", len(down))
		}
	}},
	{ID: "LC-83", Setup: plain, Run: func(t *suite.T) {
		_, before := t.Play()
		time.Sleep(100 * time.Millisecond) // frozen by now
		_, after := t.Play()
		suite.Equal(t, "pid", t.First(after, "next").PID, t.First(before, "next").PID)
	}},
}
