package invoke

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/supervisor"
)

// processes is a supervisor without a kernel: its one process, the runtime, does not
// end before it is killed.
type processes struct{ gone chan struct{} }

func (p *processes) Configure(string, supervisor.DomainConfig) error { return nil }
func (p *processes) Start(context.Context, string) error             { return nil }
func (p *processes) Exec(context.Context, supervisor.ExecRequest) (rapid.Process, error) {
	p.gone = make(chan struct{})
	return p, nil
}
func (p *processes) Done() <-chan struct{} { return p.gone }

// whenKilled has f called when the process that now runs is killed, or at stop.
func (p *processes) whenKilled(f func()) (stop func()) {
	gone, stopped := p.gone, make(chan struct{})
	go func() {
		select {
		case <-gone:
		case <-stopped:
		}
		f()
	}()
	return func() { close(stopped) }
}
func (p *processes) Exit() supervisor.Exit          { return supervisor.Exit{Signal: 9} }
func (p *processes) Terminate(string, string) error { return nil }
func (p *processes) Kill(context.Context, string, string) error {
	select {
	case <-p.gone:
	default:
		close(p.gone)
	}
	return nil
}
func (p *processes) Stop(ctx context.Context, _ string) (isolation.Usage, error) {
	return isolation.Usage{}, p.Kill(ctx, "", "")
}
func (p *processes) Freeze(context.Context) error         { return nil }
func (p *processes) Thaw(context.Context) error           { return nil }
func (p *processes) Throttle(context.Context, bool) error { return nil }
func (p *processes) MemoryUsed() (uint64, error)          { return 0, nil }
func (p *processes) Lost() <-chan struct{}                { return nil }
func (p *processes) Usage() (isolation.Usage, error)      { return isolation.Usage{}, nil }
func (p *processes) OutOfMemory() bool                    { return false }

// A life is a real sandbox whose runtime echoes, and asks for its next event only
// some time after each answer.
type life struct {
	*rapid.Sandbox
	end  context.CancelFunc
	over chan struct{}
}

const tail = 100 * time.Millisecond

func startLife(fn rapid.Function) *life {
	return startServing(fn, func(ctx context.Context, c *rapid.Client, e *rapid.Event) bool {
		if _, err := c.BeginAnswer(ctx, e.Invocation.ID, rapid.AnswerHead{Kind: rapid.AnswerResponse}); err != nil {
			return false
		}
		err := c.FinishAnswer(ctx, e.Invocation.ID, rapid.Answer{Kind: rapid.AnswerResponse, Payload: e.Invocation.Payload})
		time.Sleep(tail)
		return err == nil
	})
}

// startServing makes a life whose runtimes serve their events with the function given,
// each until that says no.
func startServing(fn rapid.Function, serve func(context.Context, *rapid.Client, *rapid.Event) bool) *life {
	ctx, cancel := context.WithCancel(context.Background())
	begun := make(chan struct{}, 1)
	p := &processes{}
	l := &life{end: cancel, over: make(chan struct{})}
	l.Sandbox = rapid.New(rapid.Config{Function: fn, Settings: rapid.DefaultSettings()}, announcing{p, begun})
	go func() {
		_ = l.Run(ctx)
		close(l.over)
	}()
	go func() {
		for {
			select {
			case <-begun:
			case <-l.over:
				return
			}
			alive, kill := context.WithCancel(ctx)
			stop := p.whenKilled(kill)
			client := l.NewClient()
			for {
				e, err := client.Next(alive)
				if err != nil || !serve(alive, client, e) {
					break
				}
			}
			stop()
		}
	}()
	return l
}

// announcing says when the runtime is executed.
type announcing struct {
	*processes
	begun chan struct{}
}

func (a announcing) Exec(ctx context.Context, r supervisor.ExecRequest) (rapid.Process, error) {
	defer func() { a.begun <- struct{}{} }()
	return a.processes.Exec(ctx, r)
}

func (a announcing) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nobody listens inside")
}

func (l *life) ID() string             { return "life" }
func (l *life) Ready() <-chan struct{} { return nil }
func (l *life) Ended() <-chan struct{} { return l.over }
func (l *life) Close(context.Context) error {
	l.end()
	<-l.over
	return nil
}

// INV-03 through fleet and rapid: the log's tail has START, END and REPORT of this
// invocation, so the answer waits for Done; without Tail it does not (LC-41).
func TestLogTail(t *testing.T) {
	fn := rapid.Function{Name: "hello", Version: "$LATEST", ARN: testARN, MemoryMB: 128, Timeout: 10 * time.Second, Bootstrap: rapid.Entry{Path: "/var/task/bootstrap"}}
	r := newRig(t, 1, nil, func(c *Config) {
		c.Functions.(*single).fleet = fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return startLife(fn), nil }})
	})
	if a := r.do(call{body: `1`}); a.status != 200 || a.body != "1" || len(a.header["X-Amz-Log-Result"]) != 0 {
		t.Fatalf("without Tail: %+v", a)
	}
	for i := range 2 {
		begin := time.Now()
		a := r.do(call{body: `{"x":1}`, header: map[string]string{"X-Amz-Log-Type": "Tail"}})
		took := time.Since(begin)
		if a.status != 200 || a.body != `{"x":1}` {
			t.Fatalf("%+v", a)
		}
		log, err := base64.StdEncoding.DecodeString(a.header.Get("X-Amz-Log-Result"))
		if err != nil {
			t.Fatal(err)
		}
		id := a.header.Get("X-Amzn-RequestId")
		at := 0
		for _, line := range []string{"START RequestId: %s Version: $LATEST\n", "END RequestId: %s\n", "REPORT RequestId: %s\t"} {
			line = fmt.Sprintf(line, id)
			next := strings.Index(string(log[at:]), line)
			if next < 0 {
				t.Fatalf("no %q after byte %d of %q", line, at, log)
			}
			at += next
		}
		if took < tail {
			t.Errorf("request %d: the answer came in %v, before Done", i, took)
		}
	}
	if err := r.srv.cfg.Functions.(*single).fleet.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}
