package supervisor

import (
	"context"
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

const runtime, extension = isolation.RuntimeDomain, isolation.ExtensionDomain

// SUP-01: two domains, each with its own PID 1 and its own names.
func TestTwoDomains_SUP01(t *testing.T) {
	f := started(t)
	f.must(f.Start(f.ctx(), extension))
	f.exec("same", "/sleep")
	other := f.request("same", "/sleep")
	other.Domain = extension
	p, err := f.Exec(f.ctx(), other)
	f.must(err)
	f.must(f.Kill(f.ctx(), runtime, "same"))
	if p.isDone() {
		t.Error("killing a process ended its namesake in the other domain")
	}
	for _, request := range []func(domain string) error{
		func(d string) error { return f.Configure(d, DomainConfig{}) },
		func(d string) error { return f.Start(f.ctx(), d) },
		func(d string) error { return f.Terminate(d, "x") },
		func(d string) error { return f.Kill(f.ctx(), d, "x") },
		func(d string) error { _, err := f.Stop(f.ctx(), d); return err },
		func(d string) error { _, err := f.Exec(f.ctx(), ExecRequest{Domain: d, Name: "x"}); return err },
	} {
		wantKind(t, request("operator"), NoSuchEntity)
	}
}

// SUP-02: configuration is possible until the start, and takes effect.
func TestConfigure_SUP02_SUP22(t *testing.T) {
	f := newFixture(t)
	f.must(f.Configure(runtime, DomainConfig{UID: 5}))
	wantKind(t, f.Configure(runtime, DomainConfig{UID: isolation.IDCount}), Failure)
	f.must(f.Start(f.ctx(), runtime))
	wantKind(t, f.Configure(runtime, DomainConfig{}), InvalidState)
	f.exec("a", "/sleep")
	m := f.box.init(runtime).wait(t, isExec).(wire.Exec)
	if m.UID != 5 || m.GID != isolation.GroupID {
		t.Errorf("uid %d gid %d, want 5 and the default", m.UID, m.GID)
	}
}

// SUP-03: a start needs a configuration, and is idempotent.
func TestStart_SUP03(t *testing.T) {
	f := newFixture(t)
	bare := New("fn-2", f.box)
	wantKind(t, bare.Start(f.ctx(), runtime), InvalidState)

	f.box.startErr = errors.New("no memory")
	wantKind(t, f.Start(f.ctx(), runtime), Failure)
	f.box.mu.Lock()
	f.box.startErr = nil
	f.box.mu.Unlock()
	f.must(f.Start(f.ctx(), runtime))
	f.must(f.Start(f.ctx(), runtime))
	if n := f.box.count("Start runtime"); n != 2 { // the failed one and the good one
		t.Errorf("the box was asked %d times to start, want 2", n)
	}
	wantKind(t, f.Start(cancelled(), runtime), Failure)
}

// SUP-10: freezing is idempotent, and a frozen sandbox takes no new work.
func TestFreeze_SUP10(t *testing.T) {
	f := started(t)
	f.must(f.Freeze(f.ctx()))
	f.must(f.Freeze(f.ctx()))
	f.box.wantCalls("Start runtime", "Freeze")
	_, err := f.Exec(f.ctx(), f.request("a", "/true"))
	wantKind(t, err, InvalidState)
	wantKind(t, f.Start(f.ctx(), extension), InvalidState)
	f.must(f.Thaw(f.ctx()))
	f.exec("a", "/true")
}

// SUP-11: thawing is idempotent, and what runs again is throttled.
func TestThaw_SUP11(t *testing.T) {
	f := started(t)
	f.must(f.Thaw(f.ctx())) // nothing to do, and no quota yet
	f.must(f.Freeze(f.ctx()))
	f.must(f.Thaw(f.ctx()))
	f.must(f.Thaw(f.ctx()))
	f.must(f.Throttle(f.ctx(), true)) // is so already
	f.must(f.Throttle(f.ctx(), false))
	f.must(f.Freeze(f.ctx()))
	f.must(f.Thaw(f.ctx()))
	f.box.wantCalls("Start runtime", "Freeze", "throttle", "Thaw", "unthrottle", "Freeze", "throttle", "Thaw")
}

// After a freeze that failed nobody knows what runs: no new work, and Thaw really thaws.
func TestFreezeFails(t *testing.T) {
	f := started(t)
	f.box.freezeErr = context.DeadlineExceeded
	err := f.Freeze(f.ctx())
	wantKind(t, err, Failure)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v does not tell the cause", err)
	}
	_, err = f.Exec(f.ctx(), f.request("a", "/true"))
	wantKind(t, err, InvalidState)
	f.must(f.Thaw(f.ctx()))
	f.exec("a", "/true")
}

// SUP-18: a freeze waits for an exec under way.
func TestFreezeWaitsForExec_SUP18(t *testing.T) {
	f := started(t)
	result := make(chan error, 1)
	go func() {
		_, err := f.Exec(f.ctx(), f.request("a", "/slow"))
		result <- err
	}()
	m := f.box.init(runtime).wait(t, isExec).(wire.Exec)
	frozen := make(chan error, 1)
	go func() { frozen <- f.Freeze(f.ctx()) }()
	for range 100 { // requests that could let the freeze through if it did not wait
		f.must(f.Throttle(f.ctx(), true))
	}
	if n := f.box.count("Freeze"); n != 0 {
		t.Error("frozen while an exec waits for its answer")
	}
	f.box.init(runtime).send(wire.Started{ID: m.ID, PID: 2})
	f.must(<-result)
	f.must(<-frozen)
}

func TestUsage(t *testing.T) {
	f := started(t)
	usage, err := f.Usage()
	if err != nil || usage.MemoryPeakBytes != 42 {
		t.Errorf("%+v, %v", usage, err)
	}
	if peak, err := f.MemoryPeak(); err != nil || peak != 42 {
		t.Errorf("peak %d, %v", peak, err)
	}
	if used, err := f.MemoryUsed(); err != nil || used != 41 {
		t.Errorf("used %d, %v", used, err)
	}
	_, err = f.Dial(f.ctx(), "tcp", "127.0.0.1:1")
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial: %v", err)
	}
	if got, err := f.Domain(f.ctx(), &net.TCPConn{}); err != nil || got != extension {
		t.Errorf("domain of a connection: %q, %v", got, err)
	}
	if _, err = f.Domain(f.ctx(), nil); !errors.Is(err, syscall.EBADF) || !errors.Is(err, Failure) {
		t.Errorf("domain of no connection: %v", err)
	}
}

// SUP-14: Close ends everything, once, and is no loss.
func TestClose_SUP14(t *testing.T) {
	f := started(t)
	f.must(f.Start(f.ctx(), extension))
	p := f.exec("a", "/sleep")
	f.must(f.Freeze(f.ctx()))
	f.must(f.Close(f.ctx()))
	f.must(f.Close(f.ctx()))
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	f.wantLost(false)
	if n := f.box.count("Close"); n != 1 {
		t.Errorf("the box was closed %d times", n)
	}
	e := <-f.Events()
	if e.Name != "a" || e.Exit.Signal != syscall.SIGKILL {
		t.Errorf("event %+v", e)
	}
	if e, open := <-f.Events(); open {
		t.Errorf("after Close there is an event %+v", e)
	}
	_, err := f.Exec(f.ctx(), f.request("b", "/true"))
	wantKind(t, err, InvalidState)
	wantKind(t, f.Freeze(f.ctx()), InvalidState)
	wantKind(t, f.Throttle(f.ctx(), true), InvalidState)
	wantKind(t, f.Start(f.ctx(), runtime), InvalidState)
	f.must(f.Kill(f.ctx(), runtime, "a")) // has ended
	f.must(f.Terminate(runtime, "a"))
}

// A failed Close says so, can be tried again, and has killed all the same.
func TestCloseFails(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.box.closeErr = syscall.EBUSY
	err := f.Close(cancelled())
	if !errors.Is(err, syscall.EBUSY) {
		t.Errorf("%v, want EBUSY", err)
	}
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	f.box.closeErr = nil
	f.must(f.Close(f.ctx()))
	if n := f.box.count("Close"); n != 2 {
		t.Errorf("the box was closed %d times, want 2", n)
	}
}

// Close does not wait for requests that hang: they fail.
func TestCloseEndsRequests(t *testing.T) {
	f := started(t)
	f.box.mu.Lock()
	f.box.startGate = make(chan struct{})
	f.box.mu.Unlock()
	results := make(chan error)
	go func() {
		_, err := f.Exec(f.ctx(), f.request("a", "/slow"))
		results <- err
	}()
	f.box.init(runtime).wait(t, isExec)
	go func() { results <- f.Start(f.ctx(), extension) }()
	go func() { results <- f.Kill(f.ctx(), runtime, "a") }()
	closed := make(chan error, 1)
	go func() { closed <- f.Close(f.ctx()) }()
	for range 3 {
		if err := <-results; err != nil && !errors.As(err, new(*Error)) {
			t.Errorf("%v is no *Error", err)
		}
	}
	f.must(<-closed)
}

// SUP-15: errors have a kind and name what they are about.
func TestErrors_SUP15(t *testing.T) {
	f := started(t)
	err := f.Terminate(runtime, "ghost")
	for _, word := range []string{"terminate", "fn-1", "runtime", "ghost", "no such process"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not name %q", err, word)
		}
	}
	if errors.Is(err, InvalidState) || errors.Is(err, Failure) {
		t.Errorf("%v is of several kinds", err)
	}
}
