package rapid

import (
	"bytes"
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/supervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bootstrap = "/var/task/bootstrap"

// fakeSup fits fakesup to the interface, as Supervise does for the real one.
type fakeSup struct{ *fakesup.Supervisor }

func (f fakeSup) Exec(ctx context.Context, r supervisor.ExecRequest) (Process, error) {
	p, err := f.Launch(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// noOutput stands for the descriptors: reading real ones would stop synctest's clock.
type noOutput struct{}

func (noOutput) Lines() *os.File  { return nil }
func (noOutput) Frames() *os.File { return nil }
func (noOutput) Release()         {}
func (noOutput) Drain()           {}
func (noOutput) Flush()           {}
func (noOutput) Close() error     { return nil }

// logDelay is more than a log gathers records for.
const logDelay = 3 * time.Millisecond

type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String returns what was logged until now, which takes a moment to arrive.
func (l *logBuffer) String() string {
	time.Sleep(logDelay)
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// world is one sandbox in a synctest bubble.
type world struct {
	t      *testing.T
	s      *Sandbox
	sup    *fakesup.Supervisor
	log    logBuffer
	mu     sync.Mutex
	states []string
	cancel context.CancelFunc
	ran    chan error
	err    error
	// mayFail says that Run is expected to fail.
	mayFail bool
}

func testFunction() Function {
	return Function{Name: "fn", Version: "$LATEST", ARN: "arn:aws:lambda:eu-west-1:123456789012:function:fn", Handler: "main.handler",
		Runtime: "provided.al2023", Region: "eu-west-1", AccountID: "123456789012", MemoryMB: 128, Timeout: 3 * time.Second,
		LogGroup: "/aws/lambda/fn", Bootstrap: Entry{Path: bootstrap}}
}

type option func(*Config, *fakesup.Supervisor)

func withExtension(name string, p func(*world) fakesup.Program) func(*world) option {
	return func(w *world) option {
		return func(c *Config, s *fakesup.Supervisor) {
			c.Function.Extensions = append(c.Function.Extensions, name)
			if p != nil {
				s.Programs[extensionsDir+name] = p(w)
			}
		}
	}
}

func with(o option) func(*world) option { return func(*world) option { return o } }

// inWorld runs test on a sandbox whose runtime is the program, until it has settled.
func inWorld(t *testing.T, runtime func(*world) fakesup.Program, test func(*world), options ...func(*world) option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, ran: make(chan error, 1)}
		w.sup = fakesup.New(map[string]fakesup.Program{bootstrap: runtime(w)})
		cfg := Config{Function: testFunction(), Settings: DefaultSettings(), LogStream: "stream", Sink: telemetry.NewWriter(&w.log, telemetry.Text),
			OnState: func(st State) { w.mu.Lock(); w.states = append(w.states, st.String()); w.mu.Unlock() }}
		for _, o := range options {
			o(w)(&cfg, w.sup)
		}
		w.s = New(cfg, fakeSup{w.sup})
		w.s.openOutput = func(bool, func(telemetry.Message)) (output, error) { return noOutput{}, nil }
		ctx, cancel := context.WithCancel(context.Background())
		w.cancel = cancel
		go func() { w.ran <- w.s.Run(ctx) }()
		test(w)
		cancel()
		<-w.s.dead
		synctest.Wait()
		if w.err = <-w.ran; w.err != nil && !w.mayFail {
			t.Errorf("Run: %v", w.err)
		}
	})
}

// invoke runs one invocation and waits for its answer.
func (w *world) invoke(id string) *Result {
	w.t.Helper()
	r, err := w.s.Invoke(context.Background(), &Invocation{ID: id, Payload: []byte("{}")})
	if err != nil {
		w.t.Fatalf("Invoke %s: %v", id, err)
	}
	return r
}

func (w *world) wantStates(want string) {
	w.t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	// An initialization of no time may be over before the first invocation or after.
	shorten := func(s string) string {
		return strings.ReplaceAll(s, "Initializing Idle Invoking", "Initializing Invoking")
	}
	if got := strings.Join(w.states, " "); shorten(got) != shorten(want) {
		w.t.Errorf("states\n got %s\nwant %s", got, want)
	}
}

func (w *world) wantLog(want string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.log.String(); got != want {
		w.t.Errorf("log\n got:\n%s\nwant:\n%s", got, want)
	}
}

func (w *world) wantLogHas(want string) {
	w.t.Helper()
	synctest.Wait()
	if got := w.log.String(); !strings.Contains(got, want) {
		w.t.Errorf("log\n got:\n%s\nwant part:\n%s", got, want)
	}
}

var killed = supervisor.Exit{} // what a killed program returns is replaced

// loop is a runtime that answers each event with what handle returns.
func loop(handle func(p *fakesup.Process, c *Client, e *Event) (Answer, bool)) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			for {
				e, err := c.Next(p.Ctx)
				if err != nil {
					return killed
				}
				a, goOn := handle(p, c, e)
				if !goOn {
					return supervisor.Exit{Code: 1}
				}
				if _, err := c.BeginAnswer(p.Ctx, e.Invocation.ID, AnswerHead{Kind: a.Kind, Nonce: e.Nonce}); err == nil {
					_ = c.FinishAnswer(p.Ctx, e.Invocation.ID, a)
				}
			}
		}
	}
}

// echo answers with the payload after d.
func echo(d time.Duration) func(*world) fakesup.Program {
	return loop(func(p *fakesup.Process, _ *Client, e *Event) (Answer, bool) {
		sleep(p, d)
		return Answer{Payload: e.Invocation.Payload, ContentType: "application/json"}, p.Ctx.Err() == nil
	})
}

func sleep(p *fakesup.Process, d time.Duration) {
	select {
	case <-time.After(d):
	case <-p.Ctx.Done():
	}
}

// exits is a program that ends at once.
func exits(e supervisor.Exit) func(*world) fakesup.Program {
	return func(*world) fakesup.Program { return func(*fakesup.Process) supervisor.Exit { return e } }
}

// hangs is a program that only SIGKILL ends.
func hangs(*world) fakesup.Program {
	return func(p *fakesup.Process) supervisor.Exit { <-p.Ctx.Done(); return killed }
}

// extension registers for events, handles each, and leaves on SHUTDOWN.
func extension(events []string, handle func(p *fakesup.Process, e *Event) bool) func(*world) fakesup.Program {
	return func(w *world) fakesup.Program {
		return func(p *fakesup.Process) supervisor.Exit {
			c := w.s.NewClient()
			name := strings.TrimPrefix(p.Name[:strings.LastIndex(p.Name, "-")], "extension-")
			r, err := c.Register(p.Ctx, Registration{Name: name, Events: events})
			if err != nil {
				return supervisor.Exit{Code: 3}
			}
			for {
				e, err := c.NextEvent(p.Ctx, r.ID)
				if err != nil {
					return killed
				}
				if handle != nil && !handle(p, e) {
					return supervisor.Exit{}
				}
				if e.Type == EventShutdown {
					return supervisor.Exit{}
				}
			}
		}
	}
}
