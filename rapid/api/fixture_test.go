package api

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const bootstrap = "/var/task/bootstrap"

type fakeSup struct{ *fakesup.Supervisor }

func (f fakeSup) Exec(ctx context.Context, r supervisor.ExecRequest) (rapid.Process, error) {
	p, err := f.Launch(ctx, r)
	if err != nil {
		return nil, err
	}
	return p, nil
}

// world is a sandbox behind real loopback HTTP. Its processes only live: the test
// says what they would say.
type world struct {
	t      testing.TB
	s      *rapid.Sandbox
	sup    *fakesup.Supervisor
	base   string
	client *http.Client
	states chan rapid.State
	procs  chan *fakesup.Process // the runtimes as they start
	exit   atomic.Int32          // how many runtimes exit at once
}

type setup struct {
	extensions []string
	limits     Limits
	origin     Origin
	config     func(*rapid.Config)
	failInits  int                             // so many runtimes exit at once
	listener   func(net.Listener) net.Listener // wraps that of the API; may be nil
}

func newWorld(t testing.TB, u setup) *world {
	t.Helper()
	w := &world{t: t, states: make(chan rapid.State, 10000), procs: make(chan *fakesup.Process, 10)}
	w.exit.Store(int32(u.failInits))
	live := func(p *fakesup.Process) supervisor.Exit { <-p.Ctx.Done(); return supervisor.Exit{} }
	w.sup = fakesup.New(map[string]fakesup.Program{bootstrap: func(p *fakesup.Process) supervisor.Exit {
		if w.exit.Add(-1) >= 0 {
			return supervisor.Exit{Code: 1}
		}
		w.procs <- p
		return live(p)
	}})
	for _, e := range u.extensions {
		w.sup.Programs["/opt/extensions/"+e] = live
	}
	set := rapid.DefaultSettings()
	set.ExitGrace, set.ExternalWindow, set.InternalWindow = time.Millisecond, 20*time.Millisecond, 20*time.Millisecond
	cfg := rapid.Config{Settings: set, OnState: w.note,
		Function: rapid.Function{Name: "fn", Version: "$LATEST", ARN: "arn:fn", Handler: "h", AccountID: "123456789012", MemoryMB: 128,
			Timeout: 20 * time.Second, Bootstrap: rapid.Entry{Path: bootstrap}, Extensions: u.extensions}}
	if u.config != nil {
		u.config(&cfg)
	}
	if u.limits == (Limits{}) {
		u.limits = DefaultLimits()
	}
	w.s = rapid.New(cfg, fakeSup{w.sup})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if u.listener != nil {
		l = u.listener(l)
	}
	w.base = "http://" + l.Addr().String()
	w.client = &http.Client{Transport: &http.Transport{}}
	ctx, cancel := context.WithCancel(context.Background())
	serving, stopServing := context.WithCancel(context.Background())
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { served <- Serve(serving, w.s, l, u.limits, u.origin) }()
	go func() { ran <- w.s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		w.client.CloseIdleConnections()
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
		stopServing()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	if u.failInits == 0 { // connections are made by processes: wait for the first
		w.until(func() bool { return len(w.sup.Execs()) > 0 })
	}
	return w
}

// note keeps a transition for await; a benchmark makes more of them than fit.
func (w *world) note(st rapid.State) {
	select {
	case w.states <- st:
	default:
	}
}

// await waits until the sandbox enters a state.
func (w *world) await(want rapid.State) {
	w.t.Helper()
	timeout := time.After(5 * time.Second)
	for {
		select {
		case st := <-w.states:
			if st == want {
				return
			}
		case <-timeout:
			w.t.Fatalf("the sandbox does not become %v; it is %v", want, w.s.State())
		}
	}
}

// until waits for what can only be asked for.
func (w *world) until(holds func() bool) {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatal("it does not come to pass")
		}
	}
}

// running waits for a runtime that lives.
func (w *world) running() *fakesup.Process {
	w.t.Helper()
	select {
	case p := <-w.procs:
		return p
	case <-time.After(5 * time.Second):
		w.t.Fatal("no runtime starts")
		return nil
	}
}

// reply is an answer of the API.
type reply struct {
	status int
	header http.Header
	body   string
}

func (r reply) errorType() string {
	var e struct{ ErrorType string }
	_ = json.Unmarshal([]byte(r.body), &e)
	return e.ErrorType
}

// do makes one request; headers come in pairs.
func (w *world) do(method, path, body string, headers ...string) reply {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r, err := w.try(ctx, method, path, body, headers...)
	if err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
	return r
}

func (w *world) try(ctx context.Context, method, path, body string, headers ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, w.base+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := w.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b)}, err
}

// later makes a request that is expected to block for a while.
func (w *world) later(method, path string, headers ...string) (<-chan reply, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.Background())
	got := make(chan reply, 1)
	go func() {
		defer close(got)
		if r, err := w.try(ctx, method, path, "", headers...); err == nil {
			got <- r
		}
	}()
	w.t.Cleanup(cancel)
	return got, cancel
}

const nextPath = "/2018-06-01/runtime/invocation/next"

// invoke starts an invocation and returns where its result will be.
func (w *world) invoke(id string) <-chan *rapid.Result {
	got := make(chan *rapid.Result, 1)
	go func() {
		r, _ := w.s.Invoke(context.Background(), &rapid.Invocation{ID: id, Payload: []byte(`{"x":1}`), TraceID: "Root=1-2-3;Parent=4;Sampled=0"})
		got <- r
	}()
	return got
}

// dispatched brings the sandbox to Running with invocation id, and returns the event.
func (w *world) dispatched(id string) (reply, <-chan *rapid.Result) {
	w.t.Helper()
	w.running()
	got, _ := w.later("GET", nextPath)
	w.await(rapid.Idle)
	res := w.invoke(id)
	select {
	case r := <-got:
		return r, res
	case <-time.After(5 * time.Second):
		w.t.Fatal("no event")
		return reply{}, nil
	}
}

func path(id, call string) string { return "/2018-06-01/runtime/invocation/" + id + "/" + call }
