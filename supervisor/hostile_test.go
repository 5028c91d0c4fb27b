package supervisor

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

// A PID 1 that says what it cannot say ends the sandbox: every process has its exit,
// everything is killed, and nothing panics.
func TestHostileInit(t *testing.T) {
	for name, messages := range map[string][]wire.Message{
		"second Handshake":     {wire.Handshake{Version: 1}},
		"unknown start":        {wire.Started{ID: 77, PID: 3}},
		"second start":         {wire.Started{ID: 1, PID: 3}},
		"late failure":         {wire.Started{ID: 1, Errno: 2, Stage: wire.StageExec}},
		"unknown exit":         {wire.Exited{ID: 77}},
		"second exit":          {wire.Exited{ID: 1}, wire.Exited{ID: 1}},
		"unasked kill":         {wire.Killed{Seq: 1}},
		"request, not answer":  {wire.KillAll{Seq: 1}},
		"signal to the daemon": {wire.Signal{ID: 1, Signal: 9}},
	} {
		t.Run(name, func(t *testing.T) {
			f := started(t)
			f.must(f.Start(f.ctx(), extension))
			p := f.exec("a", "/sleep")
			other := f.request("b", "/sleep")
			other.Domain = extension
			q, err := f.Exec(f.ctx(), other)
			f.must(err)
			for _, m := range messages {
				f.box.init(runtime).send(m)
			}
			f.wantLost(true)
			wait(t, p.Done())
			f.wantExit(q, Exit{Signal: syscall.SIGKILL}) // the box was killed
			_, err = f.Exec(f.ctx(), f.request("c", "/true"))
			wantKind(t, err, InvalidState)
			_, err = f.Stop(f.ctx(), runtime)
			wantKind(t, err, InvalidState)
			wantKind(t, f.Freeze(f.ctx()), InvalidState)
			f.must(f.Kill(f.ctx(), runtime, "a"))
		})
	}
}

// "All dead" while a process has not ended is a lie.
func TestHostileKilled(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/unreported")
	_, err := f.Stop(f.ctx(), runtime)
	if err == nil {
		t.Error("Stop succeeded")
	}
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	f.wantLost(true)
}

// An exit before the start was answered is a lie too; the waiting Exec fails.
func TestHostileExitBeforeStart(t *testing.T) {
	f := started(t)
	result := make(chan error, 1)
	go func() {
		_, err := f.Exec(f.ctx(), f.request("a", "/slow"))
		result <- err
	}()
	m := f.box.init(runtime).wait(t, isExec).(wire.Exec)
	f.box.init(runtime).send(wire.Exited{ID: m.ID})
	wantKind(t, <-result, Failure)
	f.wantLost(true)
}

// The end of PID 1 gives every process its exit, once, and Lost (SUP-12: exactly one
// termination each).
func TestLost_SUP12(t *testing.T) {
	f := started(t)
	var ps []*Process
	for i := range 5 {
		ps = append(ps, f.exec(fmt.Sprint(i), "/sleep"))
	}
	f.box.init(runtime).conn.Close()
	f.wantLost(true)
	for _, p := range ps {
		f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	}
	f.must(f.Close(f.ctx()))
	names := map[string]int{}
	for e := range f.Events() {
		names[e.Name]++
	}
	for _, p := range ps {
		if names[p.Name()] != 1 {
			t.Errorf("%d events of %s", names[p.Name()], p.Name())
		}
	}
}

// SUP-17: the kernel killed all for lack of memory (v2): each is OOM-killed.
func TestOOMGroup_SUP17(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.box.setOOMKills(3)
	f.box.init(runtime).conn.Close()
	f.wantExit(p, Exit{Signal: syscall.SIGKILL, OOMKilled: true})
	f.wantLost(true)
	if e := <-f.Events(); !e.Exit.OOMKilled {
		t.Errorf("event %+v", e)
	}
}

// SUP-17: the kernel killed one process (v1): the supervisor ends the rest.
func TestOOMOne_SUP17(t *testing.T) {
	f := started(t)
	a, b := f.exec("a", "/sleep"), f.exec("b", "/sleep")
	f.box.setOOMKills(1)
	f.box.init(runtime).send(wire.Exited{ID: 1, Status: uint32(syscall.SIGKILL)})
	f.wantExit(a, Exit{Signal: syscall.SIGKILL, OOMKilled: true})
	f.wantExit(b, Exit{Signal: syscall.SIGKILL, OOMKilled: true})
	f.wantLost(true)
}

// A kill that Usage shows ends the sandbox too, even one that hit no main process.
func TestOOMSeenByUsage(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.box.setOOMKills(1)
	if _, err := f.Usage(); err != nil {
		t.Fatal(err)
	}
	f.wantExit(p, Exit{Signal: syscall.SIGKILL, OOMKilled: true})
	f.wantLost(true)
}

// SUP-17: without an OOM kill, SIGKILL is only a signal; and an exit by itself is
// never an OOM kill.
func TestNoOOM_SUP17(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.must(f.Kill(f.ctx(), runtime, "a"))
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	f.box.setOOMKills(1)
	q := f.exec("b", "/false")
	f.wantExit(q, Exit{Code: 1})
	f.wantLost(true)
}

// If not even the kill works, the sandbox is lost and says so.
func TestOOMAndKillFails(t *testing.T) {
	f := started(t)
	f.box.mu.Lock()
	f.box.killErr = errors.New("no cgroup.kill")
	f.box.mu.Unlock()
	f.box.setOOMKills(1)
	if _, err := f.Usage(); err != nil {
		t.Fatal(err)
	}
	f.wantLost(true)
	f.box.mu.Lock()
	f.box.killErr = nil
	f.box.mu.Unlock()
}

// SUP-12: a slow observer loses events, hears how many, and delays nothing; exits are
// on the handles.
func TestEventLoss_SUP12(t *testing.T) {
	f := started(t)
	const many = eventBuffer + 36
	for i := range many {
		f.wantExit(f.exec(fmt.Sprint(i), "/true"), Exit{})
	}
	for i := range eventBuffer {
		if e := <-f.Events(); e.Name != fmt.Sprint(i) || e.Lost != 0 {
			t.Fatalf("event %d is %+v", i, e)
		}
	}
	f.wantExit(f.exec("next", "/true"), Exit{})
	if e := <-f.Events(); e.Lost != many-eventBuffer || e.Name != "" {
		t.Errorf("%+v, want a loss of %d", e, many-eventBuffer)
	}
	if e := <-f.Events(); e.Name != "next" {
		t.Errorf("%+v, want what came after the loss", e)
	}
}

// SUP-12: a loss at the very end is told too.
func TestEventLossAtClose_SUP12(t *testing.T) {
	f := started(t)
	for i := range eventBuffer + 2 {
		f.wantExit(f.exec(fmt.Sprint(i), "/true"), Exit{})
	}
	f.must(f.Close(f.ctx()))
	var got []Event
	for e := range f.Events() {
		got = append(got, e)
	}
	// The oldest made room for the report.
	if last := got[len(got)-1]; len(got) != eventBuffer || last.Lost != 3 || got[0].Name != "1" {
		t.Errorf("%d events, first %+v, last %+v", len(got), got[0], last)
	}
}
