package rapid

import (
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// heard collects what extensions are told, with the time since the test's mark.
type heard struct {
	mu   sync.Mutex
	mark time.Time
	got  []string
	left time.Duration // of the last SHUTDOWN's deadline
}

func (h *heard) note(_ *fakesup.Process, e *Event) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := e.Type
	if e.Type == EventShutdown {
		s += " " + e.Reason + " +" + time.Since(h.mark).String()
		h.left = time.Until(e.Deadline)
	} else {
		s += " " + e.Invocation.ID
	}
	h.got = append(h.got, s)
	return true
}

func (h *heard) want(t *testing.T, want ...string) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if !slices.Equal(h.got, want) {
		t.Errorf("the extension heard %q, want %q", h.got, want)
	}
}

// polite is echo that ends d after SIGTERM; echo itself ignores it.
func polite(d time.Duration) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			out := make(chan supervisor.Exit, 1)
			go func() { out <- echo(0)(w)(p) }()
			select {
			case e := <-out:
				return e
			case <-p.Term:
				sleep(p, d)
				return supervisor.Exit{Signal: syscall.SIGTERM}
			}
		}
	}
}

var bothEvents = []string{EventInvoke, EventShutdown}

// LC-61 to LC-66, ACC-14: who is told what, and when.
func TestShutdownOrder(t *testing.T) {
	for _, tt := range []struct {
		name    string
		runtime func(*world) fakesup.Program
		events  []string
		heard   []string
		left    time.Duration
		calls   []string
	}{
		{"runtime ignores SIGTERM", echo(0), bothEvents, []string{"INVOKE a", "SHUTDOWN spindown +600ms"}, 1400 * time.Millisecond,
			[]string{"freeze", "thaw", "terminate runtime-1", "kill runtime-1", "stop runtime", "stop extension"}},
		{"runtime ends early", polite(100 * time.Millisecond), bothEvents, []string{"INVOKE a", "SHUTDOWN spindown +100ms"}, 1900 * time.Millisecond,
			[]string{"freeze", "thaw", "terminate runtime-1", "stop runtime", "stop extension"}},
		{"no SHUTDOWN wanted", polite(0), []string{EventInvoke}, []string{"INVOKE a"}, 0,
			[]string{"freeze", "thaw", "terminate runtime-1", "kill extension-ext-1", "stop runtime", "stop extension"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h heard
			inWorld(t, tt.runtime, func(w *world) {
				<-w.invoke("a").Done
				time.Sleep(time.Second) // frozen by now: LC-82
				calls := w.sup.Calls()
				h.mark = time.Now()
				w.cancel()
				<-w.s.dead
				synctest.Wait()
				h.want(t, tt.heard...)
				if h.left != tt.left {
					t.Errorf("deadline %v after the event, want %v", h.left, tt.left)
				}
				calls = append(calls[slices.Index(calls, "freeze"):], w.sup.Calls()...)
				if !slices.Equal(calls, tt.calls) {
					t.Errorf("calls %q\nwant  %q", calls, tt.calls)
				}
			}, withExtension("ext", extension(tt.events, h.note)))
		})
	}
}

// LC-63: an extension that stays is killed at the end of the window.
func TestExtensionOverstays(t *testing.T) {
	stay := func(p *fakesup.Process, e *Event) bool {
		if e.Type == EventShutdown {
			<-p.Ctx.Done()
		}
		return true
	}
	inWorld(t, polite(0), func(w *world) {
		<-w.invoke("a").Done
		begin := time.Now()
		w.cancel()
		<-w.s.dead
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("the shutdown took %v", d)
		}
	}, withExtension("ext", extension(bothEvents, stay)))
}

// LC-60, LC-64, EX-16, ACC-13: an internal extension alone gives SIGTERM and 500 ms.
func TestInternalExtensionGivesSIGTERM(t *testing.T) {
	program := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			r, err := w.s.NewClient().Register(p.Ctx, Registration{Name: "GoLangSIGTERM"})
			if err != nil {
				t.Error(err)
			}
			go func() { _, _ = w.s.NewClient().NextEvent(p.Ctx, r.ID) }()
			return echo(0)(w)(p)
		}
	}
	inWorld(t, program, func(w *world) {
		<-w.invoke("a").Done
		w.sup.Calls()
		begin := time.Now()
		w.cancel()
		<-w.s.dead
		if d := time.Since(begin); d != 500*time.Millisecond {
			t.Errorf("the shutdown took %v", d)
		}
		if got := w.sup.Calls(); !slices.Equal(got, []string{"terminate runtime-1", "kill runtime-1", "stop runtime"}) {
			t.Errorf("calls %q", got)
		}
		w.wantLogHas("EXTENSION\tName: GoLangSIGTERM\tState: Ready\tEvents: []\n")
	})
}

// EX-33: the post of an internal extension only records. Neither the initialization
// nor an invocation waits for it afterwards; the runtime goes on.
func TestInternalExtensionThatGaveUp(t *testing.T) {
	for _, init := range []bool{true, false} {
		program := func(w *world) fakesup.Program {
			return func(p *fakesup.Process) supervisor.Exit {
				c := w.s.NewClient()
				r, err := c.Register(p.Ctx, Registration{Name: "inner", Events: []string{EventInvoke}})
				if err != nil {
					t.Error(err)
				}
				if err := c.FailAgent(p.Ctx, r.ID, AgentFailure{Init: init, Type: "Extension.Mine"}); err != nil {
					t.Error(err)
				}
				return echo(0)(w)(p)
			}
		}
		inWorld(t, program, func(w *world) {
			for _, id := range []string{"a", "b"} {
				r := w.invoke(id)
				<-r.Done
				if r.FunctionError {
					t.Errorf("init/error %v: invocation %s: %s", init, id, r.Payload)
				}
			}
			w.wantStates("Initializing Invoking Idle Invoking Idle")
		})
	}
}

// LC-68: an agent that is busy hears of the shutdown with its next call.
func TestBusyExtensionHearsOfTheTimeout(t *testing.T) {
	var h heard
	busy := func(p *fakesup.Process, e *Event) bool {
		h.note(p, e)
		if e.Type == EventInvoke {
			sleep(p, 4*time.Second) // beyond the function's 3 s
		}
		return true
	}
	inWorld(t, polite(0), func(w *world) {
		h.mark = time.Now()
		r := w.invoke("a")
		if r.FunctionError { // LC-43: the answer stands
			t.Errorf("answer %s", r.Payload)
		}
		<-r.Done
		h.want(t, "INVOKE a", "SHUTDOWN timeout +4s")
		w.wantLogHas("Status: timeout\t\n")
		w.wantStates("Initializing Invoking Resetting Cold")
	}, withExtension("ext", extension(bothEvents, busy)))
}

// LC-01, LC-40, LC-44, ACC-09, ACC-10: the runtime starts after registration, Done
// waits for the extension, the caller does not.
func TestExtensionOverhead(t *testing.T) {
	slow := func(p *fakesup.Process, e *Event) bool { sleep(p, 500*time.Millisecond); return true }
	inWorld(t, echo(0), func(w *world) {
		begin := time.Now()
		r := w.invoke("a")
		if d := time.Since(begin); d != 0 {
			t.Errorf("answered after %v", d)
		}
		<-r.Done
		if d := time.Since(begin); d != 500*time.Millisecond {
			t.Errorf("done after %v", d)
		}
		if got := w.sup.Execs(); got[0].Name != "extension-ext-1" || got[1].Name != "runtime-1" {
			t.Errorf("started %q, %q", got[0].Name, got[1].Name)
		}
		w.wantLogHas("EXTENSION\tName: ext\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\nSTART RequestId: a")
		w.wantLogHas("Duration: 500.00 ms\t")
	}, withExtension("ext", extension(bothEvents, slow)))
}

// EX-28, EX-30, ACC-12: the end of an extension fails the invocation.
func TestExtensionCrash(t *testing.T) {
	leave := func(_ *fakesup.Process, e *Event) bool { return e.Type != EventInvoke }
	inWorld(t, echo(time.Second), func(w *world) {
		r := w.invoke("a")
		if want := `{"errorType":"Extension.Crash","errorMessage":"RequestId: a Error: extension ext: exit code 0"}`; string(r.Payload) != want {
			t.Errorf("answer %s", r.Payload)
		}
		<-r.Done
		w.wantLogHas("RequestId: a Error: extension ext: exit code 0\nExtension.Crash\nEND RequestId: a\n")
		w.wantLogHas("Status: error\tError Type: Extension.Crash\t\n")
		w.wantStates("Initializing Invoking Resetting Cold")
	}, withExtension("ext", extension(bothEvents, leave)))

	// LOG-30: the line of the one that has died says so, that of the other does not.
	dies := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			_, _ = w.s.NewClient().Register(p.Ctx, Registration{Name: "dead"})
			sleep(p, time.Second)
			return supervisor.Exit{Code: 1}
		}
	}
	inWorld(t, hangs, func(w *world) {
		if r := w.invoke("a"); r.ErrorType != errExtensionCrash || !strings.Contains(string(r.Payload), "Error: extension dead: exit status 1") {
			t.Errorf("answer %s", r.Payload)
		}
		w.wantLogHas("EXTENSION\tName: other\tState: Ready\tEvents: [INVOKE, SHUTDOWN]\nEXTENSION\tName: dead\tState: Registered\tEvents: []\tError Type: Extension.Crash\n")
	}, withExtension("other", extension(bothEvents, nil)), withExtension("dead", dies))

	said := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			r, _ := c.Register(p.Ctx, Registration{Name: "ext"})
			_ = c.FailAgent(p.Ctx, r.ID, AgentFailure{Init: true, Type: "Extension.Mine"})
			return supervisor.Exit{Code: 2}
		}
	}
	inWorld(t, echo(0), func(w *world) {
		r := w.invoke("a")
		if want := `{"errorType":"Extension.InitError","errorMessage":"RequestId: a Error: extension ext: exit status 2"}`; string(r.Payload) != want {
			t.Errorf("answer %s", r.Payload)
		}
		w.wantLogHas("EXTENSION\tName: ext\tState: InitError\tEvents: []\tError Type: Extension.Mine\nINIT_REPORT")
	}, withExtension("ext", said))
}

// EX-03, EX-04, ACC-11: extensions that cannot start; the runtime is not tried.
func TestExtensionLaunchErrors(t *testing.T) {
	eleven := with(func(c *Config, s *fakesup.Supervisor) {
		for _, n := range strings.Fields("a b c d e f g h i j k") {
			c.Function.Extensions = append(c.Function.Extensions, n)
			s.Programs[extensionsDir+n] = func(p *fakesup.Process) supervisor.Exit { <-p.Ctx.Done(); return killed }
		}
	})
	denied := with(func(c *Config, s *fakesup.Supervisor) {
		c.Function.Extensions = []string{"k"}
		s.ExecErr[extensionsDir+"k"] = &supervisor.ExecError{Path: extensionsDir + "k", Errno: syscall.EACCES}
	})
	for detail, o := range map[string]func(*world) option{"TooManyExtensions": eleven, "PermissionDenied": denied} {
		inWorld(t, echo(0), func(w *world) {
			if r := w.invoke("a"); r.ErrorType != "Extension.LaunchError" {
				t.Errorf("%s: %q %s", detail, r.ErrorType, r.Payload)
			}
			w.wantLogHas("EXTENSION\tName: k\tState: LaunchError\tEvents: []\tError Type: " + detail + "\n")
			for _, e := range w.sup.Execs() {
				if strings.HasPrefix(e.Name, "runtime") {
					t.Errorf("%s: the runtime was started", detail)
				}
			}
		}, o)
	}
}

// LC-67: what an extension's exit after SHUTDOWN makes of its state.
func TestStateAfterShutdown(t *testing.T) {
	for _, tt := range []struct {
		exit supervisor.Exit
		want agentState
	}{
		{supervisor.Exit{}, agExited},
		{supervisor.Exit{Code: 1}, agShutdownFailed},
		{supervisor.Exit{Signal: syscall.SIGKILL}, agShutdownFailed},
	} {
		s := New(Config{Settings: DefaultSettings()}, nil)
		a := &agent{AgentState: AgentState{External: true, State: agRunning}}
		p := &process{agent: a, handle: ended{tt.exit}}
		s.procs = []*process{p}
		s.sup = fakeSup{fakesup.New(nil)}
		go func() { s.exits <- exited{p} }()
		s.timer = time.NewTimer(time.Minute)
		if !s.waitForExits(func() bool { return p.gone }) || a.State != tt.want {
			t.Errorf("%v: state %s, want %s", tt.exit, a.State, tt.want)
		}
		if err := s.log.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// ended is a process that has ended so.
type ended struct{ exit supervisor.Exit }

func (e ended) Done() <-chan struct{} { return nil }
func (e ended) Exit() supervisor.Exit { return e.exit }
