package rapid

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

func managed(n int) func(*world) option {
	return func(w *world) option {
		return func(c *Config, _ *fakesup.Supervisor) {
			c.Initialization, c.MaxConcurrency = Managed, n
			c.Function.LogFormat = telemetry.JSON
			c.Sink = telemetry.NewWriter(&w.log, telemetry.JSON)
		}
	}
}

// workers is a runtime of n workers, each of which does as its own runtime would.
func workers(n int, worker func(*world) fakesup.Program) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			first := make(chan supervisor.Exit, n)
			for range n {
				go func() { first <- worker(w)(p) }()
			}
			return <-first
		}
	}
}

// start runs an invocation and returns where its result and error will be.
func (w *world) start(id, payload string) (<-chan *Result, <-chan error) {
	results, errs := make(chan *Result, 1), make(chan error, 1)
	go func() {
		r, err := w.s.Invoke(context.Background(), &Invocation{ID: id, Payload: []byte(payload)})
		if err != nil {
			errs <- err
			return
		}
		results <- r
	}()
	return results, errs
}

// byPayload is a worker that does what the payload says: "sleep D", "exit", "idle D"
// (answers, and is away for D before it asks again), or echo.
func byPayload(w *world) fakesup.Program {
	return loop(func(p *fakesup.Process, _ *Client, e *Event) (Answer, bool) {
		what, arg, _ := strings.Cut(string(e.Invocation.Payload), " ")
		d, _ := time.ParseDuration(arg)
		switch what {
		case "sleep":
			sleep(p, d)
		case "exit":
			return Answer{}, false
		}
		return Answer{Payload: []byte(e.Invocation.ID)}, p.Ctx.Err() == nil
	})(w)
}

// RT-60, LC-84, TL-35 to TL-37: invocations overlap, each has one START and one
// REPORT, and nothing is frozen.
func TestManagedOverlaps(t *testing.T) {
	inWorld(t, workers(3, byPayload), func(w *world) {
		began := time.Now()
		var got []<-chan *Result
		for i := range 3 {
			r, _ := w.start(fmt.Sprint("id", i), "sleep 1s")
			got = append(got, r)
		}
		for i, c := range got {
			r := <-c
			if string(r.Payload) != fmt.Sprint("id", i) || r.FunctionError || r.ContentType != "application/octet-stream" { // RT-31
				t.Errorf("%d: %+v %s", i, r, r.Payload)
			}
			<-r.Done
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("three invocations of a second took %v", d)
		}
		time.Sleep(time.Hour)
		if slices.Contains(w.sup.Calls(), "freeze") {
			t.Error("a managed sandbox was frozen")
		}
		synctest.Wait()
		log := w.log.String()
		for i := range 3 {
			for _, record := range []string{`"type":"platform.start","record":{"requestId":"id%d","version":"$LATEST","functionArn":"arn:aws:lambda:eu-west-1:123456789012:function:fn"}`,
				`"type":"platform.report","record":{"requestId":"id%d","status":"success","metrics":{"durationMs":1000},"spans":[`} {
				if want := fmt.Sprintf(record, i); strings.Count(log, want) != 1 {
					t.Errorf("%d times %s in\n%s", strings.Count(log, want), want, log)
				}
			}
		}
		if strings.Contains(log, "runtimeDone") || !strings.Contains(log, "lambda-managed-instances") {
			t.Errorf("log\n%s", log)
		}
		w.wantStates("Initializing Serving")
	}, managed(3))
}

// RT-65: what cannot run is refused: too many, the same id twice, no worker.
func TestManagedRefusals(t *testing.T) {
	inWorld(t, workers(2, byPayload), func(w *world) {
		a, _ := w.start("a", "sleep 1s")
		synctest.Wait()
		_, dup := w.start("a", "")
		if err := <-dup; !errors.Is(err, ErrDuplicate) {
			t.Errorf("the same id: %v", err)
		}
		b, _ := w.start("b", "sleep 1s")
		synctest.Wait()
		began := time.Now()
		_, none := w.start("c", "") // there is room for three, but two workers
		synctest.Wait()
		_, many := w.start("d", "")
		if err := <-many; !errors.Is(err, ErrBusy) {
			t.Errorf("the fourth: %v", err)
		}
		if err := <-none; !errors.Is(err, ErrUnavailable) || time.Since(began) != workerPatience {
			t.Errorf("without a worker: %v after %v", err, time.Since(began))
		}
		<-a
		<-b
		if log := w.log.String(); strings.Contains(log, `"c"`) {
			t.Errorf("records of an invocation that never ran:\n%s", log)
		}
	}, managed(3))
}

// RT-63, RT-68: a timeout is that of one invocation. The worker's late answer is
// refused with 410 once and then with 400, and the worker goes on.
func TestManagedTimeout(t *testing.T) {
	var mu sync.Mutex
	var late []RefusalType
	slow := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			for {
				e, err := c.Next(p.Ctx)
				if err != nil {
					return killed
				}
				if string(e.Invocation.Payload) == "slow" {
					sleep(p, 5*time.Second)
				}
				for range 2 {
					_, err := c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{})
					var refusal *Refusal
					if errors.As(err, &refusal) {
						mu.Lock()
						late = append(late, refusal.Type)
						mu.Unlock()
						continue
					}
					_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, Answer{})
					break
				}
			}
		}
	}
	inWorld(t, workers(2, slow), func(w *world) {
		r, _ := w.start("slow", "slow")
		for i := range 5 {
			time.Sleep(time.Second)
			if r := w.invoke(fmt.Sprint(i)); r.FunctionError {
				t.Errorf("beside a slow one: %+v", r)
			}
		}
		res := <-r
		if res.ErrorType != "Sandbox.Timedout" || !strings.Contains(string(res.Payload), "slow Error: Task timed out after 3.00 seconds") {
			t.Errorf("%+v %s", res, res.Payload)
		}
		time.Sleep(time.Second)
		mu.Lock()
		if want := []RefusalType{InvokeTimeout, InvalidRequestID}; !slices.Equal(late, want) {
			t.Errorf("late answers got %q, want %q", late, want)
		}
		mu.Unlock()
		w.wantLogHas(`"requestId":"slow","status":"timeout","metrics":{"durationMs":3000}`)
		w.wantStates("Initializing Serving")
	}, managed(2))
}

// EX-32, FE-16, RT-68: the end of the runtime is the end of the sandbox. Who runs is
// told, who waits may run elsewhere.
func TestManagedExit(t *testing.T) {
	inWorld(t, workers(2, byPayload), func(w *world) {
		a, _ := w.start("a", "sleep 1s")
		synctest.Wait()
		b, _ := w.start("b", "exit")
		ra, rb := <-a, <-b
		for _, r := range []*Result{ra, rb} {
			if r.ErrorType != "Runtime.ExitError" {
				t.Errorf("%+v %s", r, r.Payload)
			}
			<-r.Done
		}
		<-w.s.dead
		if _, err := w.s.Invoke(context.Background(), &Invocation{ID: "c"}); !errors.Is(err, ErrDead) {
			t.Errorf("the next: %v", err)
		}
		w.wantStates("Initializing Serving Resetting Dead")
	}, managed(3))
}

// INV-14, FE-16: out of memory has a type of its own.
func TestManagedOutOfMemory(t *testing.T) {
	inWorld(t, workers(1, byPayload), func(w *world) {
		w.mayFail = true
		a, _ := w.start("a", "sleep 1s")
		synctest.Wait()
		w.sup.KillForMemory()
		if r := <-a; r.ErrorType != "Runtime.OutOfMemory" || !strings.Contains(string(r.Payload), "out of memory, the limit is 128 MB") {
			t.Errorf("%+v %s", r, r.Payload)
		}
		<-w.s.dead
	}, managed(1))
}

// LC-09, FE-16: an initialization that fails is the failure of who waits for it.
func TestManagedInitFails(t *testing.T) {
	for _, tt := range []struct {
		name, errorType, payload string
		runtime                  func(*world) fakesup.Program
	}{
		{"exits", "Runtime.ExitError", "exit status 2", exits(supervisor.Exit{Code: 2})},
		{"hangs", "Sandbox.Timedout", "timed out", hangs},
		{"posts", "Runtime.InitError", `{"why":1}`, func(w *world) fakesup.Program {
			return func(p *fakesup.Process) supervisor.Exit {
				c := w.s.NewClient()
				if c.BeginInitError(p.Ctx) == nil {
					_ = c.FinishInitError(p.Ctx, InitError{Body: []byte(`{"why":1}`), Type: "Runtime.Import"})
				}
				return supervisor.Exit{Code: 1}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inWorld(t, func(w *world) fakesup.Program {
				program := tt.runtime(w)
				return func(p *fakesup.Process) supervisor.Exit { sleep(p, time.Second); return program(p) }
			}, func(w *world) {
				a, _ := w.start("a", "")
				b, _ := w.start("b", "")
				for _, c := range []<-chan *Result{a, b} {
					if r := <-c; r.ErrorType != tt.errorType || !strings.Contains(string(r.Payload), tt.payload) {
						t.Errorf("%+v %s", r, r.Payload)
					}
				}
				<-w.s.dead
				for _, id := range []string{"a", "b"} {
					w.wantLogHas(`"platform.start","record":{"requestId":"` + id)
					w.wantLogHas(`"platform.report","record":{"requestId":"` + id)
				}
			}, managed(2))
		})
	}
}

// RT-25: an event whose worker's connection is lost goes to another, with one START.
func TestManagedUndelivered(t *testing.T) {
	inWorld(t, func(w *world) fakesup.Program {
		rest := byPayload(w)
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			e, err := c.Next(p.Ctx)
			if err != nil {
				return killed
			}
			c.Undelivered("", e)
			return rest(p)
		}
	}, func(w *world) {
		if r := w.invoke("a"); string(r.Payload) != "a" {
			t.Errorf("%+v %s", r, r.Payload)
		}
		synctest.Wait()
		if n := strings.Count(w.log.String(), "platform.start"); n != 1 {
			t.Errorf("%d times START", n)
		}
	}, managed(1))
}

// RT-60: calls of next without end are refused at some point, not kept.
func TestManagedTooManyWorkers(t *testing.T) {
	inWorld(t, hangs, func(w *world) {
		synctest.Wait()
		c := w.s.NewClient()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		refused := make(chan error, 3)
		for range maxIdleWorkers + 3 {
			go func() {
				if _, err := c.Next(ctx); errors.Is(err, ErrTooManyWorkers) {
					refused <- err
				}
			}()
		}
		for range 3 {
			<-refused
		}
	}, managed(2))
}

// RT-62: an error in the middle of a streamed response ends the stream with it.
func TestManagedErrorWhileStreaming(t *testing.T) {
	inWorld(t, func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			e, err := c.Next(p.Ctx)
			if err != nil {
				return killed
			}
			id := e.Invocation.ID
			if st, err := c.BeginAnswer(p.Ctx, id, AnswerHead{Mode: "streaming"}); err != nil || st == nil {
				return supervisor.Exit{Code: 1}
			}
			var refusal *Refusal
			if _, err := c.BeginAnswer(p.Ctx, id, AnswerHead{}); !errors.As(err, &refusal) || refusal.Type != InvalidRequestID { // RT-61
				return supervisor.Exit{Code: 2}
			}
			if _, err := c.BeginAnswer(p.Ctx, id, AnswerHead{Kind: AnswerError}); err != nil {
				return supervisor.Exit{Code: 3}
			}
			if _, err := c.BeginAnswer(p.Ctx, id, AnswerHead{Kind: AnswerError}); err == nil { // RT-61
				return supervisor.Exit{Code: 4}
			}
			if c.FinishAnswer(p.Ctx, id, Answer{Kind: AnswerError, Payload: []byte("broken"), ErrorType: "Runtime.Broken"}) != nil {
				return supervisor.Exit{Code: 5}
			}
			_, _ = c.Next(p.Ctx)
			return killed
		}
	}, func(w *world) {
		r, err := w.s.Invoke(context.Background(), &Invocation{ID: "a", Stream: true})
		if err != nil || r.Stream == nil {
			t.Fatalf("%+v %v", r, err)
		}
		<-r.Stream.Ended()
		if end := r.Stream.Result(); end.ErrorType != "Runtime.Broken" || string(end.Payload) != "broken" {
			t.Errorf("%+v %s", end, end.Payload)
		}
		<-r.Done
		w.wantStates("Initializing Serving")
	}, managed(1))
}

// A shutdown answers what runs.
func TestManagedShutdown(t *testing.T) {
	inWorld(t, workers(1, byPayload), func(w *world) {
		_, a := w.start("a", "sleep 1s")
		synctest.Wait()
		_, b := w.start("b", "")
		synctest.Wait()
		w.cancel()
		for _, c := range []<-chan error{a, b} {
			if err := <-c; !errors.Is(err, ErrDead) {
				t.Errorf("%v", err)
			}
		}
		<-w.s.dead
		w.wantLogHas(`"requestId":"a","status":"failure","errorType":"Sandbox.Failure"`)
	}, managed(2))
}

// EX-11, EX-24: extensions of managed mode.
func TestManagedExtensions(t *testing.T) {
	inWorld(t, func(w *world) fakesup.Program {
		rest := byPayload(w)
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			var refusal *Refusal
			for _, event := range []string{"INVOKE", "SHUTDOWN"} {
				if _, err := c.Register(p.Ctx, Registration{Name: "internal", Events: []string{event}}); !errors.As(err, &refusal) || refusal.Type != InvalidEventType {
					return supervisor.Exit{Code: 1}
				}
			}
			r, err := c.Register(p.Ctx, Registration{Name: "internal"})
			if err != nil || c.FailAgent(p.Ctx, r.ID, AgentFailure{Init: true, Type: "whatever"}) != nil {
				return supervisor.Exit{Code: 2}
			}
			return rest(p)
		}
	}, func(w *world) {
		w.invoke("a")
		w.wantLogHas(`"name":"internal","state":"InitError","events":[],"errorType":"Extension.InitError"`)
	}, managed(1))
}

// EX-30, EX-32: what an extension has posted before its end is the failure of the
// invocations that run, in managed mode too.
func TestManagedExtensionSaysWhy(t *testing.T) {
	says := func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			r, err := c.Register(p.Ctx, Registration{Name: "ext"})
			if err != nil {
				t.Error(err)
			}
			go func() { _, _ = c.NextEvent(p.Ctx, r.ID) }()
			sleep(p, time.Second)
			if err := c.FailAgent(p.Ctx, r.ID, AgentFailure{Type: "Extension.Mine"}); err != nil {
				t.Error(err)
			}
			return supervisor.Exit{Code: 4}
		}
	}
	inWorld(t, workers(1, byPayload), func(w *world) {
		a, _ := w.start("a", "sleep 2s")
		want := `{"errorType":"Extension.ExitError","errorMessage":"RequestId: a Error: extension ext: exit status 4"}`
		if r := <-a; string(r.Payload) != want {
			t.Errorf("answer %s, want %s", r.Payload, want)
		}
		<-w.s.dead
	}, managed(1), withExtension("ext", says))
}

// RT-67, ENV-12, LOG-11: what tells a client of managed mode. Its log goes to stdout:
// one descriptor for frames could not be shared by workers.
func TestManagedEnvironment(t *testing.T) {
	cfg := Config{Function: testFunction(), Settings: DefaultSettings(), Initialization: Managed, MaxConcurrency: 7}
	env := runtimeEnv(&cfg)
	if !slices.Contains(env, "AWS_LAMBDA_MAX_CONCURRENCY=7") || !slices.Contains(env, "AWS_LAMBDA_INITIALIZATION_TYPE=lambda-managed-instances") {
		t.Errorf("environment %q", env)
	}
	for _, v := range append(env, extensionEnv(&cfg)...) {
		if strings.HasPrefix(v, "_LAMBDA_TELEMETRY_LOG_FD") {
			t.Errorf("%s in managed mode", v)
		}
	}
	cfg.Initialization = OnDemand
	for _, v := range append(runtimeEnv(&cfg), extensionEnv(&cfg)...) {
		if strings.HasPrefix(v, "AWS_LAMBDA_MAX_CONCURRENCY") {
			t.Errorf("%s in classic mode", v)
		}
	}
}
