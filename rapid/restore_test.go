package rapid

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

func snapStart(c *Config, _ *fakesup.Supervisor) { c.Initialization = SnapStart }

// hooked is a runtime that waits for its restore, runs hooks, and then echoes.
func hooked(hooks func(p *fakesup.Process, c *Client) bool) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		rest := echo(20 * time.Millisecond)(w)
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			if c.RestoreNext(p.Ctx) != nil {
				return killed
			}
			if !hooks(p, c) {
				return supervisor.Exit{Code: 65}
			}
			return rest(p)
		}
	}
}

// LC-90, LC-91, LC-93, LOG-32, TL-38 to TL-40: the first invocation finds a sandbox
// that was frozen in front of its hooks.
func TestRestore(t *testing.T) {
	inWorld(t, hooked(func(p *fakesup.Process, _ *Client) bool { sleep(p, 30*time.Millisecond); return true }), func(w *world) {
		time.Sleep(time.Hour)
		if calls := w.sup.Calls(); calls[len(calls)-1] != "freeze" {
			t.Errorf("calls %q, want a freeze at the snapshot point", calls)
		}
		<-w.invoke("one").Done
		<-w.invoke("two").Done
		w.wantLog(initStart + "INIT_REPORT Init Duration: 0.00 ms\tPhase: init\n" +
			strings.Replace(initStart, "INIT", "RESTORE", 1) + "RESTORE_REPORT Restore Duration: 30.00 ms\n" +
			"START RequestId: one Version: $LATEST\nEND RequestId: one\n" +
			"REPORT RequestId: one\tDuration: 20.00 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 0 MB\tRestore Duration: 30.00 ms\tBilled Restore Duration: 30 ms\t\n" +
			"START RequestId: two Version: $LATEST\nEND RequestId: two\n" +
			"REPORT RequestId: two\tDuration: 20.00 ms\tBilled Duration: 20 ms\tMemory Size: 128 MB\tMax Memory Used: 0 MB\t\n")
		w.wantStates("Initializing Idle Restoring Invoking Idle Invoking Idle")
		if w.s.cfg.LogStream != "new stream" {
			t.Errorf("log stream %q (LC-93)", w.s.cfg.LogStream)
		}
	}, with(snapStart), with(func(c *Config, _ *fakesup.Supervisor) {
		c.Restore = func(context.Context) (Restored, error) { return Restored{LogStream: "new stream"}, nil }
	}))
}

// RT-54: a runtime without hooks is ready for both at once.
func TestRestoreWithoutHooks(t *testing.T) {
	inWorld(t, echo(0), func(w *world) {
		<-w.invoke("one").Done
		w.wantLogHas("RESTORE_REPORT Restore Duration: 0.00 ms\nSTART RequestId: one")
		w.wantStates("Initializing Idle Restoring Invoking Idle")
	}, with(snapStart))
}

// LC-09, LC-92, FE-15, RT-55: a restore that fails ends the sandbox, and its
// invocation has the reason.
func TestRestoreFails(t *testing.T) {
	post := func(p *fakesup.Process, c *Client) {
		if c.BeginRestoreError(p.Ctx) == nil {
			_ = c.FinishInitError(p.Ctx, InitError{Body: []byte(`{"a":1}`), Type: "Runtime.AfterRestoreError"})
		}
	}
	for _, tt := range []struct {
		name, errorType, payload, report string
		hooks                            func(p *fakesup.Process, c *Client) bool
	}{
		{"hooks hang", "Runtime.RestoreHookUserTimeout", `{"errorType":"Runtime.RestoreHookUserTimeout","errorMessage":"RequestId: one Error: Restore hooks did not end in time"}`,
			"RESTORE_REPORT Restore Duration: 10000.00 ms\tStatus: timeout\tError Type: Runtime.RestoreHookUserTimeout\n",
			func(p *fakesup.Process, _ *Client) bool { sleep(p, time.Hour); return false }},
		{"posted and exits", "Runtime.AfterRestoreError", `{"a":1}`,
			"RESTORE_REPORT Restore Duration: 0.00 ms\tStatus: error\tError Type: Runtime.AfterRestoreError\n",
			func(p *fakesup.Process, c *Client) bool { post(p, c); return false }},
		{"posted and stays", "Runtime.AfterRestoreError", `{"a":1}`, "Error Type: Runtime.AfterRestoreError\n",
			func(p *fakesup.Process, c *Client) bool { post(p, c); sleep(p, time.Hour); return false }},
		{"exits", "Runtime.ExitError", `{"errorType":"Runtime.ExitError","errorMessage":"RequestId: one Error: Runtime exited with error: exit status 65"}`,
			"\tStatus: error\tError Type: Runtime.ExitError\n",
			func(*fakesup.Process, *Client) bool { return false }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, hooked(tt.hooks), func(w *world) {
				r := w.invoke("one")
				if !r.FunctionError || r.ErrorType != tt.errorType || string(r.Payload) != tt.payload {
					t.Errorf("%+v %s", r, r.Payload)
				}
				<-r.Done
				w.wantLogHas(tt.report)
				w.wantLogHas("START RequestId: one Version: $LATEST\n")
				<-w.s.dead
				w.wantStates("Initializing Idle Restoring Resetting Dead")
			}, with(snapStart))
		})
	}
}

// LC-91: credentials that cannot be had. Why is for the operator, and neither for the
// caller nor for the function.
func TestRestoreCannotRenew(t *testing.T) {
	inWorld(t, echo(0), func(w *world) {
		w.mayFail = true
		if r := w.invoke("one"); r.ErrorType != "errRestoreUpdateCredentials" || !strings.Contains(string(r.Payload), "could not be renewed") {
			t.Errorf("%+v %s", r, r.Payload)
		}
		if err := <-w.ran; err == nil || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("Run: %v, want the reason", err)
		} else {
			w.ran <- err
		}
		if strings.Contains(w.log.String(), "no such file") {
			t.Errorf("the function's log has the operator's error:\n%s", w.log.String())
		}
	}, with(snapStart), with(func(c *Config, _ *fakesup.Supervisor) {
		c.Restore = func(context.Context) (Restored, error) { return Restored{}, errors.New("no such file") }
	}))
}

// LC-06, LC-09: what is not initialized on demand has one initialization. An
// invocation that waits for it has its failure.
func TestOneInitialization(t *testing.T) {
	for _, kind := range []Initialization{SnapStart, Provisioned} {
		t.Run(string(kind), func(t *testing.T) {
			one := func(c *Config, _ *fakesup.Supervisor) { c.Initialization = kind }
			inWorld(t, exits(supervisor.Exit{Code: 3}), func(w *world) {
				r := w.invoke("one")
				if r.ErrorType != "Runtime.ExitError" {
					t.Errorf("%+v %s", r, r.Payload)
				}
				<-w.s.dead
				if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "two"}); !errors.Is(err, ErrDead) {
					t.Errorf("the next: %v", err)
				}
				w.wantStates("Initializing Resetting Dead")
			}, with(one))
			inWorld(t, hangs, func(w *world) {
				r := w.invoke("one")
				if r.ErrorType != "Sandbox.Timedout" || !strings.Contains(string(r.Payload), "timed out after 10.00 seconds") {
					t.Errorf("%+v %s", r, r.Payload)
				}
				<-w.s.dead
				w.wantLogHas("INIT_REPORT Init Duration: 10000.00 ms\tPhase: init\tStatus: timeout\nSTART RequestId: one")
			}, with(one))
			inWorld(t, loop(func(*fakesup.Process, *Client, *Event) (Answer, bool) { return Answer{}, false }), func(w *world) {
				<-w.invoke("one").Done // and so does a failure later
				<-w.s.dead
			}, with(one))
		})
	}
}

// RT-72, ENV-22: no keys in a variable that a snapshot would keep.
func TestSnapStartEnvironment(t *testing.T) {
	cfg := Config{Function: testFunction(), Settings: DefaultSettings(), Initialization: SnapStart, APIAddr: "127.0.0.1:9001", Token: "token",
		Credentials: Credentials{AccessKeyID: "id", SecretAccessKey: "secret", SessionToken: "session"}}
	for _, env := range [][]string{runtimeEnv(&cfg), extensionEnv(&cfg)} {
		for _, want := range []string{"AWS_CONTAINER_AUTHORIZATION_TOKEN=token",
			"AWS_CONTAINER_CREDENTIALS_FULL_URI=http://127.0.0.1:9001/2021-04-23/credentials", "AWS_LAMBDA_INITIALIZATION_TYPE=snap-start"} {
			if !slices.Contains(env, want) {
				t.Errorf("%s is missing in %q", want, env)
			}
		}
		for _, v := range env {
			if strings.HasPrefix(v, "AWS_ACCESS_KEY_ID") || strings.HasPrefix(v, "AWS_SECRET") || strings.HasPrefix(v, "AWS_SESSION") {
				t.Errorf("%s in the environment", v)
			}
		}
	}
}

// RT-53: a lost connection does not cost the runtime its place.
func TestRestoreNextAgain(t *testing.T) {
	inWorld(t, func(w *world) fakesup.Program {
		rest := echo(0)(w)
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			short, cancel := context.WithTimeout(p.Ctx, time.Millisecond)
			defer cancel()
			if err := c.RestoreNext(short); !errors.Is(err, context.DeadlineExceeded) {
				return supervisor.Exit{Code: 1}
			}
			var refusal *Refusal
			if c.RestoreNext(p.Ctx) != nil || !errors.As(c.RestoreNext(p.Ctx), &refusal) { // the third comes too late
				return supervisor.Exit{Code: 2}
			}
			return rest(p)
		}
	}, func(w *world) {
		time.Sleep(time.Second)
		if r := w.invoke("one"); r.FunctionError {
			t.Errorf("%+v %s", r, r.Payload)
		}
		synctest.Wait()
	}, with(snapStart))
}

// FE-13: a start that fails for no reason of the function's is Sandbox.Failure.
func TestHostFaultInInit(t *testing.T) {
	inWorld(t, echo(0), func(w *world) {
		r := w.invoke("one")
		if r.ErrorType != "Sandbox.Failure" || !strings.Contains(string(r.Payload), "no descriptors left") {
			t.Errorf("%+v %s", r, r.Payload)
		}
		<-r.Done
		w.wantLogHas(`Status: failure`)
	}, with(func(_ *Config, s *fakesup.Supervisor) {
		s.ExecErr = map[string]error{bootstrap: errors.New("no descriptors left")}
	}))
}

// LC-91: what the restore brings comes from another process. While a sandbox waits for it,
// it can be shut down at once, its processes are served and their ends seen, and the time
// of the restore ends the wait. In each case the request to that process is cancelled.
func TestRestoreWaitsForItsCredentials(t *testing.T) {
	var asked, ended chan struct{}
	slow := with(func(c *Config, _ *fakesup.Supervisor) {
		asked, ended = make(chan struct{}), make(chan struct{})
		c.Restore = func(ctx context.Context) (Restored, error) {
			close(asked)
			<-ctx.Done()
			close(ended)
			return Restored{}, ctx.Err()
		}
	})
	t.Run("shut down", func(t *testing.T) {
		inWorld(t, echo(0), func(w *world) {
			synctest.Wait()
			began := time.Now()
			go func() { <-asked; w.cancel() }()
			if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "one"}); !errors.Is(err, ErrDead) {
				t.Errorf("Invoke: %v, want ErrDead", err)
			}
			<-ended
			<-w.s.dead
			if d := time.Since(began); d != 0 {
				t.Errorf("the shutdown took %v", d)
			}
			w.wantStates("Initializing Idle Restoring ShuttingDown Dead")
		}, with(snapStart), slow)
	})
	t.Run("too long", func(t *testing.T) {
		inWorld(t, echo(0), func(w *world) {
			w.mayFail = true
			synctest.Wait()
			began := time.Now()
			if r := w.invoke("one"); r.ErrorType != "errRestoreUpdateCredentials" {
				t.Errorf("%+v %s", r, r.Payload)
			}
			<-ended
			if d := time.Since(began); d != restoreLimit {
				t.Errorf("failed after %v, want %v", d, restoreLimit)
			}
			if err := <-w.ran; err == nil || !strings.Contains(err.Error(), "renew the credentials") {
				t.Errorf("Run: %v, want what failed", err)
			} else {
				w.ran <- err
			}
		}, with(snapStart), slow)
	})
	t.Run("the runtime exits", func(t *testing.T) {
		inWorld(t, func(w *world) fakesup.Program {
			return func(p *fakesup.Process) supervisor.Exit {
				c := w.s.NewClient()
				go func() { _ = c.RestoreNext(p.Ctx) }()
				<-asked
				if _, err := c.Credentials(p.Ctx, "token"); err != nil { // it is served
					t.Errorf("credentials: %v", err)
				}
				return supervisor.Exit{Code: 9}
			}
		}, func(w *world) {
			synctest.Wait()
			if r := w.invoke("one"); r.ErrorType != "Runtime.ExitError" {
				t.Errorf("%+v %s", r, r.Payload)
			}
			<-ended
			<-w.s.dead
			w.wantStates("Initializing Idle Restoring Resetting Dead")
		}, with(snapStart), slow, with(func(c *Config, _ *fakesup.Supervisor) { c.Token = "token" }))
	})
	t.Run("nobody listens", func(t *testing.T) { // a Restore that ignores its context holds nothing up
		deaf := make(chan struct{})
		inWorld(t, echo(0), func(w *world) {
			release := make(chan struct{})
			deaf = release
			synctest.Wait()
			go func() { synctest.Wait(); w.cancel() }()
			if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "one"}); !errors.Is(err, ErrDead) {
				t.Errorf("Invoke: %v, want ErrDead", err)
			}
			<-w.s.dead
			close(release)
		}, with(snapStart), with(func(c *Config, _ *fakesup.Supervisor) {
			c.Restore = func(context.Context) (Restored, error) { <-deaf; return Restored{}, nil }
		}))
	})
}
