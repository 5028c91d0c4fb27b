package rapid

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

const initStart = "INIT_START Runtime Version: provided.al2023\tRuntime Version ARN: arn:aws:lambda:eu-west-1::runtime:provided.al2023\n"

// LOG-20 to LOG-27, LOG-34, LC-44: two plain invocations.
func TestTwoInvocations(t *testing.T) {
	inWorld(t, echo(20*time.Millisecond), func(w *world) {
		w.sup.Peak = 100<<20 + 1
		for _, id := range []string{"one", "two"} {
			r := w.invoke(id)
			if r.FunctionError || string(r.Payload) != "{}" {
				t.Errorf("%s: %+v", id, r)
			}
			<-r.Done
			if !strings.HasPrefix(string(r.Tail()), "START RequestId: "+id) || !strings.Contains(string(r.Tail()), "REPORT RequestId: "+id) {
				t.Errorf("tail of %s (INV-03): %q", id, r.Tail())
			}
		}
		w.wantLog(initStart +
			"START RequestId: one Version: $LATEST\nEND RequestId: one\n" +
			"REPORT RequestId: one\tDuration: 20.00 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 101 MB\tInit Duration: 0.00 ms\t\n" +
			"START RequestId: two Version: $LATEST\nEND RequestId: two\n" +
			"REPORT RequestId: two\tDuration: 20.00 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 101 MB\t\n")
		w.wantStates("Initializing Invoking Idle Invoking Idle")
	})
}

// LC-80, LC-82: who comes in the linger pays no freeze.
func TestFreezeFollowsTheLinger(t *testing.T) {
	inWorld(t, echo(0), func(w *world) {
		<-w.invoke("a").Done
		time.Sleep(4 * time.Millisecond)
		<-w.invoke("b").Done
		synctest.Wait()
		want := []string{"configure runtime", "start runtime", "throttle false", "exec runtime-1", "throttle true"}
		if got := w.sup.Calls(); !slices.Equal(got, want) {
			t.Errorf("calls %q, want %q", got, want)
		}
		time.Sleep(6 * time.Millisecond)
		frozenAt := w.s.Thawed()
		time.Sleep(time.Hour)
		if d := w.s.Thawed() - frozenAt; d != 0 {
			t.Errorf("the thawed clock went on by %v", d)
		}
		<-w.invoke("c").Done
		w.cancel()
		<-w.s.dead
		want = []string{"freeze", "thaw", "stop runtime"} // no SIGTERM without agents: LC-60
		if got := w.sup.Calls(); !slices.Equal(got, want) {
			t.Errorf("calls %q, want %q", got, want)
		}
	})
}

// LC-11, LC-45, LC-46, INV-12 to INV-14, ACC-03, ACC-04: ends of the runtime.
func TestRuntimeEnds(t *testing.T) {
	for _, tt := range []struct {
		name, message string
		exit          supervisor.Exit
	}{
		{"status 1", "Runtime exited with error: exit status 1", supervisor.Exit{Code: 1}},
		{"status 0", "Runtime exited without providing a reason", supervisor.Exit{}},
		{"killed", "Runtime exited with error: signal: killed", supervisor.Exit{Signal: syscall.SIGKILL}},
		{"segmentation fault", "Runtime exited with error: signal: segmentation fault", supervisor.Exit{Signal: syscall.SIGSEGV}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			first := true
			program := func(w *world) fakesup.Program {
				good := echo(0)(w)
				return func(p *fakesup.Process) supervisor.Exit {
					if first {
						first = false
						_, _ = w.s.NewClient().Next(p.Ctx)
						return tt.exit
					}
					return good(p)
				}
			}
			inWorld(t, program, func(w *world) {
				r := w.invoke("a")
				want := `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: a Error: ` + tt.message + `"}`
				if !r.FunctionError || string(r.Payload) != want {
					t.Errorf("payload %s\nwant    %s", r.Payload, want)
				}
				<-r.Done
				w.wantLogHas("START RequestId: a Version: $LATEST\nRequestId: a Error: " + tt.message + "\nRuntime.ExitError\nEND RequestId: a\nREPORT RequestId: a\t")
				w.wantLogHas("Status: error\tError Type: Runtime.ExitError\t\n")
				if r := w.invoke("b"); r.FunctionError { // LC-47: a fresh environment
					t.Errorf("after the reset: %s", r.Payload)
				}
				w.wantLogHas("\t\n" + initStart + "START RequestId: b") // LOG-20
				w.wantStates("Initializing Invoking Resetting Cold Initializing Invoking Idle")
			})
		})
	}
}

// LOG-23: an error that the handler posts is none of the environment; one that the platform
// answers is, and stays the first when the runtime exits because of it.
func TestErrorOfReport(t *testing.T) {
	posts := loop(func(*fakesup.Process, *Client, *Event) (Answer, bool) {
		return Answer{Kind: AnswerError, Payload: []byte(`{"errorType":"Mine"}`), ErrorType: "Function.Mine"}, true
	})
	inWorld(t, posts, func(w *world) {
		r := w.invoke("a")
		<-r.Done
		if !r.FunctionError || r.ErrorType != "Function.Mine" {
			t.Errorf("answer %+v", r)
		}
		w.wantLogHas("Max Memory Used: 0 MB\tInit Duration: 0.00 ms\t\n")
	})

	const message = "Response payload size exceeded maximum allowed payload size (6291556 bytes)."
	for name, exits := range map[string]bool{"goes on": false, "exits": true} {
		t.Run(name, func(t *testing.T) {
			program := func(w *world) fakesup.Program {
				return func(p *fakesup.Process) supervisor.Exit {
					c := w.s.NewClient()
					e, _ := c.Next(p.Ctx)
					_, _ = c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{})
					_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, Answer{TooLarge: true, Seen: MaxPayload + 1})
					if !exits {
						_, _ = c.Next(p.Ctx)
					}
					return supervisor.Exit{Code: 1}
				}
			}
			inWorld(t, program, func(w *world) {
				r := w.invoke("a")
				if want := `{"errorType":"Function.ResponseSizeTooLarge","errorMessage":"` + message + `"}`; string(r.Payload) != want {
					t.Errorf("answer %s, want %s", r.Payload, want)
				}
				<-r.Done
				w.wantLogHas("Status: error\tError Type: Function.ResponseSizeTooLarge\t\n")
				line := "RequestId: a Error: " + message + "\nFunction.ResponseSizeTooLarge\nEND"
				if got := w.log.String(); strings.Contains(got, line) != exits || strings.Contains(got, "Runtime.ExitError") {
					t.Errorf("log\n%s\nwith %q: want %v", got, line, exits)
				}
			})
		})
	}
}

// LC-46, EX-31: what comes after the answer does not change it.
func TestExitAfterTheAnswer(t *testing.T) {
	program := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			e, _ := c.Next(p.Ctx)
			_, _ = c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{})
			_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, Answer{Payload: []byte("1")})
			return supervisor.Exit{Code: 7}
		}
	}
	inWorld(t, program, func(w *world) {
		r := w.invoke("a")
		<-r.Done
		if r.FunctionError || string(r.Payload) != "1" {
			t.Errorf("answer %+v", r)
		}
		w.wantLogHas("Status: error\tError Type: Runtime.ExitError\t\n")
		w.wantStates("Initializing Invoking Resetting Cold")
	})
}

// LC-48, INV-13, LOG-28: the time limit, to the millisecond.
func TestTimeout(t *testing.T) {
	inWorld(t, echo(time.Minute), func(w *world) {
		begin := time.Now()
		r := w.invoke("a")
		if d := time.Since(begin); d != 3*time.Second {
			t.Errorf("answered after %v", d)
		}
		want := `{"errorType":"Sandbox.Timedout","errorMessage":"RequestId: a Error: Task timed out after 3.00 seconds"}`
		if string(r.Payload) != want {
			t.Errorf("payload %s\nwant    %s", r.Payload, want)
		}
		<-r.Done
		w.wantLogHas("2000-01-01T00:00:03.000Z a Task timed out after 3.00 seconds\n\nEND RequestId: a\nREPORT RequestId: a\tDuration: 3000.00 ms\tBilled Duration: 3000 ms\tMemory Size: 128 MB\tMax Memory Used: 0 MB\tInit Duration: 0.00 ms\tStatus: timeout\t\n")
		w.wantStates("Initializing Invoking Resetting Cold")
	})
}

// LC-07, LC-23, ACC-16: the init limit, then the same invocation inside its own time.
func TestInitTimeout(t *testing.T) {
	slow := func(w *world) fakesup.Program {
		good := echo(0)(w)
		return func(p *fakesup.Process) supervisor.Exit {
			if sleep(p, 11*time.Second); p.Ctx.Err() != nil {
				return killed
			}
			return good(p)
		}
	}
	longer := with(func(c *Config, _ *fakesup.Supervisor) { c.Function.Timeout = 20 * time.Second })
	inWorld(t, slow, func(w *world) {
		r := w.invoke("a")
		<-r.Done
		if r.FunctionError {
			t.Errorf("answer %s", r.Payload)
		}
		w.wantLog(initStart + "INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout\n" + // LOG-20: no INIT_START for the repetition
			"START RequestId: a Version: $LATEST\nEND RequestId: a\n" +
			"REPORT RequestId: a\tDuration: 11000.00 ms\tBilled Duration: 11000 ms\tMemory Size: 128 MB\tMax Memory Used: 0 MB\t\n")
		w.wantStates("Initializing Resetting Cold Initializing Invoking Idle")
	}, longer)
	inWorld(t, slow, func(w *world) {
		r := w.invoke("a")
		<-r.Done
		if !strings.Contains(string(r.Payload), "Task timed out after 3.00 seconds") {
			t.Errorf("answer %s", r.Payload)
		}
		w.wantLogHas("INIT_REPORT Init Duration: 3000.00 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.Unknown\nSTART RequestId: a") // TL-47
		w.wantLogHas("Task timed out after 3.00 seconds\n\nEND RequestId: a\nREPORT RequestId: a\t")
		w.invoke("b")
		w.wantLogHas("Status: timeout\t\n" + initStart + "INIT_REPORT") // the first of another invocation
		w.wantStates("Initializing Resetting Cold Initializing Resetting Cold Initializing Resetting Cold")
	})
}

// RT-51, LC-27, ACC-17: the posted body wins, though the exit is seen first.
func TestInitErrorThenExit(t *testing.T) {
	program := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			if err := c.BeginInitError(p.Ctx); err != nil {
				t.Error(err)
			}
			go func() { // the body comes after the exit
				time.Sleep(50 * time.Millisecond)
				_ = c.FinishInitError(context.Background(), InitError{Body: []byte(`{"errorMessage":"no module"}`), Type: "Runtime.ImportModuleError"})
			}()
			return supervisor.Exit{Code: 1}
		}
	}
	inWorld(t, program, func(w *world) {
		r := w.invoke("a")
		if !r.FunctionError || string(r.Payload) != `{"errorMessage":"no module"}` || r.ErrorType != "Runtime.ImportModuleError" {
			t.Errorf("answer %+v %s", r, r.Payload)
		}
		<-r.Done
		w.wantLogHas("INIT_REPORT Init Duration: 50.00 ms\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError\n")
		w.wantLogHas("INIT_REPORT Init Duration: 50.00 ms\tPhase: invoke\tStatus: error\tError Type: Runtime.ImportModuleError\nSTART RequestId: a")
		w.wantLogHas("START RequestId: a Version: $LATEST\nEND RequestId: a\nREPORT RequestId: a\t") // LOG-29: the runtime has said it
		w.wantLogHas("Status: error\tError Type: Runtime.ImportModuleError\t\n")
	})
}

// LC-12, FE-02, FE-03: the bootstrap cannot be executed.
func TestBadEntry(t *testing.T) {
	for _, tt := range []struct {
		name, errorType string
		set             option
	}{
		{"missing", errInvalidEntrypoint, func(_ *Config, s *fakesup.Supervisor) { delete(s.Programs, bootstrap) }},
		{"none found", errInvalidEntrypoint, func(c *Config, _ *fakesup.Supervisor) { c.Function.Bootstrap.Path = "" }},
		{"bad folder", errInvalidWorkingDir, func(_ *Config, s *fakesup.Supervisor) {
			s.ExecErr[bootstrap] = &supervisor.ExecError{Path: bootstrap, Dir: "/nowhere", BadDir: true, Errno: syscall.ENOENT}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, hangs, func(w *world) {
				if r := w.invoke("a"); r.ErrorType != tt.errorType {
					t.Errorf("error type %q, want %q: %s", r.ErrorType, tt.errorType, r.Payload)
				}
			}, with(tt.set))
		})
	}
}

// LOG-33: the log says what the image has of a program that cannot be started.
func TestImageLaunchError(t *testing.T) {
	set := func(c *Config, s *fakesup.Supervisor) {
		c.Function.Image = &Image{Entrypoint: []string{"/main", "-m"}, Cmd: []string{"app.handler"}, WorkingDir: "/work"}
		s.ExecErr[bootstrap] = &supervisor.ExecError{Path: bootstrap, Errno: syscall.ENOEXEC}
	}
	inWorld(t, hangs, func(w *world) {
		if r := w.invoke("a"); r.ErrorType != errInvalidEntrypoint {
			t.Errorf("error type %q: %s", r.ErrorType, r.Payload)
		}
		w.wantLogHas("IMAGE\tLaunch error: fork/exec " + bootstrap + ": exec format error\tEntrypoint: [/main,-m]\tCmd: [app.handler]\tWorkingDir: [/work]\n")
	}, with(set))
}

// docs/decisions/0037, INV-14: out of memory is told, and the sandbox is over.
func TestOutOfMemory(t *testing.T) {
	inWorld(t, echo(time.Minute), func(w *world) {
		go func() {
			time.Sleep(time.Second)
			w.sup.KillForMemory()
		}()
		r := w.invoke("a")
		const message = "Runtime exited with error: signal: killed: out of memory, the limit is 128 MB"
		if want := `{"errorType":"Runtime.OutOfMemory","errorMessage":"RequestId: a Error: ` + message + `"}`; string(r.Payload) != want {
			t.Errorf("payload %s", r.Payload)
		}
		<-r.Done
		w.wantLogHas("RequestId: a Error: " + message + "\nRuntime.OutOfMemory\nEND RequestId: a\nREPORT RequestId: a\t")
		w.wantLogHas("Status: error\tError Type: Runtime.OutOfMemory\t\n")
		w.wantStates("Initializing Invoking Resetting Dead")
		err := <-w.ran
		w.ran <- err
		if w.mayFail = true; !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "out of memory, the limit is 128 MB") {
			t.Errorf("Run: %v", err)
		}
		if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "b"}); !errors.Is(err, ErrDead) {
			t.Errorf("Invoke: %v, want ErrDead", err)
		}
	})
}

// INV-14: the kernel may kill a child of the runtime, and the runtime may exit because of that
// before the supervisor has killed the sandbox; or the supervisor reports the loss of the
// domains before it reports any exit.
func TestOutOfMemoryOfAChild(t *testing.T) {
	noticed := loop(func(p *fakesup.Process, _ *Client, _ *Event) (Answer, bool) {
		sleep(p, time.Second)
		return Answer{}, false
	})
	inWorld(t, noticed, func(w *world) {
		w.mayFail = true
		w.sup.CountOOM()
		r := w.invoke("a")
		if want := "Runtime exited with error: exit status 1: out of memory, the limit is 128 MB"; r.ErrorType != errOutOfMemory || !strings.Contains(string(r.Payload), want) {
			t.Errorf("%s %s, want %s", r.ErrorType, r.Payload, want)
		}
		<-w.s.dead
		w.wantStates("Initializing Invoking Resetting Dead") // no initialization in a sandbox that is being killed
	})
	inWorld(t, echo(time.Minute), func(w *world) {
		w.mayFail = true
		go func() {
			time.Sleep(time.Second)
			w.sup.CountOOM()
			w.sup.Lose()
			time.Sleep(time.Millisecond)
			w.sup.KillForMemory() // reports the exits
		}()
		if r := w.invoke("a"); r.ErrorType != errOutOfMemory || !strings.Contains(string(r.Payload), "signal: killed: out of memory, the limit is 128 MB") {
			t.Errorf("%s %s", r.ErrorType, r.Payload)
		}
		<-w.s.dead
	})
	inWorld(t, hangs, func(w *world) { // INIT_REPORT too
		w.mayFail = true
		go func() {
			time.Sleep(time.Second)
			w.sup.KillForMemory()
		}()
		if r := w.invoke("a"); r.ErrorType != errOutOfMemory {
			t.Errorf("%s %s", r.ErrorType, r.Payload)
		}
		w.wantLogHas("Phase: init\tStatus: error\tError Type: Runtime.OutOfMemory\n")
	})
}

// INV-14: a body that ends too early because memory ran out is reported as out of memory,
// however long the kernel takes to end the processes.
func TestOutOfMemoryInTheMiddleOfABody(t *testing.T) {
	for name, options := range map[string][]func(*world) option{"classic": nil, "managed": {managed(1)}} {
		t.Run(name, func(t *testing.T) {
			program := func(w *world) fakesup.Program {
				return func(p *fakesup.Process) supervisor.Exit {
					c := w.s.NewClient()
					e, _ := c.Next(p.Ctx)
					_, _ = c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{})
					w.sup.CountOOM()
					_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, Answer{Seen: 4, Truncated: true})
					sleep(p, time.Second)
					go w.sup.KillForMemory()
					<-p.Ctx.Done()
					return supervisor.Exit{Signal: syscall.SIGKILL}
				}
			}
			inWorld(t, program, func(w *world) {
				w.mayFail = true
				if r := w.invoke("a"); r.ErrorType != errOutOfMemory || !strings.Contains(string(r.Payload), "out of memory, the limit is 128 MB") {
					t.Errorf("%s %s", r.ErrorType, r.Payload)
				}
				<-w.s.dead
				if name == "classic" {
					w.wantLogHas("Status: error\tError Type: Runtime.OutOfMemory\t\n")
				}
			}, options...)
		})
	}
}

// A host that cannot make the domains: whoever asked is told why, whether the
// invocation came before the failure or after it (S-04).
func TestFailedStart(t *testing.T) {
	full := errors.New("no space left on device")
	inWorld(t, exits(supervisor.Exit{}), func(w *world) {
		w.mayFail = true
		for range 2 {
			if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "1"}); !errors.Is(err, ErrDead) || !errors.Is(err, full) {
				t.Errorf("Invoke: %v; want ErrDead and its cause", err)
			}
			<-w.s.dead
		}
	}, with(func(_ *Config, s *fakesup.Supervisor) { s.StartErr = full }))
}

// LC-73: a reset that fails ends the sandbox.
func TestFailedReset(t *testing.T) {
	broken := errors.New("cgroup is stuck")
	inWorld(t, exits(supervisor.Exit{Code: 1}), func(w *world) {
		err := <-w.ran
		w.ran <- err
		if w.mayFail = true; !errors.Is(err, broken) {
			t.Errorf("Run: %v", err)
		}
		w.wantStates("Initializing Resetting Dead")
	}, with(func(_ *Config, s *fakesup.Supervisor) { s.StopErr = broken }))
}

// LC-20, and an Invoke whose caller has gone.
func TestOneInvocationAtATime(t *testing.T) {
	inWorld(t, echo(time.Second), func(w *world) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := w.s.Invoke(ctx, &Invocation{ID: "a"}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Invoke of a caller that leaves: %v", err)
		}
		if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "b"}); !errors.Is(err, ErrBusy) {
			t.Errorf("second Invoke: %v, want ErrBusy", err)
		}
		time.Sleep(time.Second)
		<-w.invoke("c").Done
		w.wantLogHas("END RequestId: a\n")
		w.wantStates("Initializing Invoking Idle Invoking Idle")
	})
}

// A shutdown in the middle of an invocation answers its caller.
func TestShutdownWhileInvoking(t *testing.T) {
	inWorld(t, echo(time.Second), func(w *world) {
		go func() { time.Sleep(time.Millisecond); w.cancel() }()
		if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "a"}); !errors.Is(err, ErrDead) {
			t.Errorf("Invoke: %v, want ErrDead", err)
		}
		w.wantStates("Initializing Invoking ShuttingDown Dead")
	})
}

// EX-29: an end between invocations resets before the next dispatch.
func TestExitWhileIdle(t *testing.T) {
	program := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			ctx, cancel := context.WithTimeout(p.Ctx, time.Second)
			defer cancel()
			_, _ = w.s.NewClient().Next(ctx)
			return supervisor.Exit{Code: 9}
		}
	}
	inWorld(t, program, func(w *world) {
		time.Sleep(2 * time.Second)
		w.wantStates("Initializing Idle Resetting Cold")
		w.wantLogHas("Error: Runtime exited with error: exit status 9\nRuntime.ExitError\n")
	})
}
