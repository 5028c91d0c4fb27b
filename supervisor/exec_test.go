package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// SUP-04: the request arrives as it was made, with the path as argument 0 and the
// root as the default directory.
func TestExecRequest_SUP04(t *testing.T) {
	f := started(t)
	r, w, err := os.Pipe()
	f.must(err)
	defer r.Close()
	defer w.Close()
	p, err := f.Exec(f.ctx(), ExecRequest{Domain: runtime, Name: "boot", Path: "/var/task/bootstrap",
		Args: []string{"x"}, Env: []string{"A=1"}, Stdout: w, Stderr: w, ExtraFiles: []*os.File{r}})
	f.must(err)
	if p.Name() != "boot" {
		t.Errorf("name %q", p.Name())
	}
	got := f.box.init(runtime).wait(t, isExec)
	want := wire.Exec{ID: 1, Path: "/var/task/bootstrap", Argv: []string{"/var/task/bootstrap", "x"},
		Env: []string{"A=1"}, Dir: "/", UID: isolation.UserID, GID: isolation.GroupID}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%#v, want %#v", got, want)
	}
	if _, err := w.Write([]byte("x")); err != nil {
		t.Errorf("the caller's file is not usable any more: %v", err)
	}
}

// Pipes are given to the sandbox user, so that /dev/stderr can be opened
// (docs/decisions/0005); other files keep their owner.
func TestPipesAreGiven(t *testing.T) {
	f := started(t)
	if os.Geteuid() == 0 { // others can give files only to themselves
		f.box.uid = 12345
	}
	r, w, err := os.Pipe()
	f.must(err)
	defer r.Close()
	defer w.Close()
	file, err := os.Create(t.TempDir() + "/log")
	f.must(err)
	defer file.Close()
	req := f.request("a", "/true")
	req.Stdout, req.Stderr = w, file
	_, err = f.Exec(f.ctx(), req)
	f.must(err)
	for f, want := range map[*os.File]int{w: f.box.uid, file: os.Getuid()} {
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != want {
			t.Errorf("%s: owner %d, want %d", f.Name(), uid, want)
		}
	}
}

// SUP-04: exec errors are told apart; a process that did not start has no name.
func TestExecErrors_SUP04(t *testing.T) {
	f := started(t)
	for _, test := range []struct {
		path   string
		is     error
		badDir bool
	}{
		{"/missing", fs.ErrNotExist, false},
		{"/denied", fs.ErrPermission, false},
		{"/baddir", fs.ErrNotExist, true},
	} {
		req := f.request("a", test.path)
		req.Dir = "/dir"
		_, err := f.Exec(f.ctx(), req)
		var e *ExecError
		if !errors.As(err, &e) || !errors.Is(err, test.is) || e.BadDir != test.badDir || e.Path != test.path || e.Dir != "/dir" {
			t.Errorf("%s: %v (%+v)", test.path, err, e)
		}
		wantKind(t, err, Failure)
		wantKind(t, f.Terminate(runtime, "a"), NoSuchEntity)
		wantKind(t, f.Kill(f.ctx(), runtime, "a"), NoSuchEntity)
	}
	// A failed start does not hide an earlier process of the name.
	f.wantExit(f.exec("a", "/true"), Exit{})
	if _, err := f.Exec(f.ctx(), f.request("a", "/missing")); err == nil {
		t.Fatal("no error")
	}
	f.must(f.Terminate(runtime, "a"))
}

// What cannot be asked for is refused, and the domain lives on.
func TestExecRefused(t *testing.T) {
	f := started(t)
	closed, err := os.Open(os.DevNull)
	f.must(err)
	closed.Close()
	for name, change := range map[string]func(*ExecRequest){
		"no name":       func(r *ExecRequest) { r.Name = "" },
		"no stdout":     func(r *ExecRequest) { r.Stdout = nil },
		"relative path": func(r *ExecRequest) { r.Path = "bootstrap" },
		"relative dir":  func(r *ExecRequest) { r.Dir = "task" },
		"NUL":           func(r *ExecRequest) { r.Args = []string{"\x00"} },
		"large":         func(r *ExecRequest) { r.Env = []string{strings.Repeat("x", wire.MaxMessage)} },
		"many files":    func(r *ExecRequest) { r.ExtraFiles = make20(f.null) },
		"closed file":   func(r *ExecRequest) { r.ExtraFiles = []*os.File{closed} },
	} {
		req := f.request("a", "/true")
		change(&req)
		if _, err := f.Exec(f.ctx(), req); !errors.Is(err, Failure) {
			t.Errorf("%s: %v, want a Failure", name, err)
		}
	}
	f.wantExit(f.exec("a", "/true"), Exit{})
	f.wantLost(false)
	req := f.request("b", "/true")
	req.Domain = extension
	_, err = f.Exec(f.ctx(), req)
	wantKind(t, err, InvalidState) // not started
	_, err = f.Exec(cancelled(), f.request("b", "/true"))
	wantKind(t, err, Failure)
}

func make20(f *os.File) []*os.File {
	list := make([]*os.File, 20)
	for i := range list {
		list[i] = f
	}
	return list
}

// SUP-04: a name is unique among the live processes of a domain, and free afterwards.
func TestNames_SUP04(t *testing.T) {
	f := started(t)
	f.exec("a", "/sleep")
	_, err := f.Exec(f.ctx(), f.request("a", "/sleep"))
	wantKind(t, err, InvalidState)
	f.must(f.Kill(f.ctx(), runtime, "a"))
	f.exec("a", "/sleep")
}

// SUP-06: the exit of a process that dies at once is there, every time, with one event.
func TestFastExit_SUP06(t *testing.T) {
	f := started(t)
	for i := range 300 {
		p := f.exec(fmt.Sprint(i), "/false")
		f.wantExit(p, Exit{Code: 1})
		if e := <-f.Events(); e.Name != p.Name() || e.Domain != runtime || e.Exit != p.Exit() || e.Time.IsZero() {
			t.Fatalf("event %+v", e)
		}
	}
}

// SUP-07: SIGTERM; success if the process is gone; an error if it never was.
func TestTerminate_SUP07(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.must(f.Terminate(runtime, "a"))
	f.wantExit(p, Exit{Signal: syscall.SIGTERM})
	f.must(f.Terminate(runtime, "a"))
	wantKind(t, f.Terminate(runtime, "b"), NoSuchEntity)
	wantKind(t, f.Terminate(extension, "a"), NoSuchEntity)
}

// SUP-08: SIGKILL and the wait for the end; a deadline in the past sends nothing.
func TestKill_SUP08(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	wantKind(t, f.Kill(cancelled(), runtime, "a"), Failure)
	f.must(f.Terminate(runtime, "a")) // the first signal that arrives is this one
	f.wantExit(p, Exit{Signal: syscall.SIGTERM})

	p = f.exec("a", "/sleep")
	f.must(f.Kill(f.ctx(), runtime, "a"))
	if !p.isDone() || p.Exit() != (Exit{Signal: syscall.SIGKILL}) {
		t.Errorf("%+v when Kill returned", p.Exit())
	}
	f.must(f.Kill(f.ctx(), runtime, "a"))
	f.must(f.Kill(cancelled(), runtime, "a")) // gone is a success
	wantKind(t, f.Kill(f.ctx(), runtime, "b"), NoSuchEntity)
}

// SUP-08: a deadline that passes is an error, and the handle still learns of the exit.
func TestKillDeadline_SUP08(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.box.ice.Lock() // nothing inside makes progress, as in a D state
	ctx, cancel := context.WithTimeout(f.ctx(), 10*time.Millisecond)
	defer cancel()
	err := f.Kill(ctx, runtime, "a")
	f.box.ice.Unlock()
	wantKind(t, err, Failure)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want a deadline", err)
	}
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
}

// SUP-11: Kill and Stop work on a frozen sandbox.
func TestKillFrozen_SUP11(t *testing.T) {
	f := started(t)
	a, b := f.exec("a", "/sleep"), f.exec("b", "/sleep")
	f.must(f.Freeze(f.ctx()))
	f.must(f.Terminate(runtime, "b")) // waits for the thaw
	f.must(f.Kill(f.ctx(), runtime, "a"))
	f.wantExit(a, Exit{Signal: syscall.SIGKILL})
	f.wantExit(b, Exit{Signal: syscall.SIGTERM})
	c := f.exec("c", "/sleep")
	f.must(f.Freeze(f.ctx()))
	_, err := f.Stop(f.ctx(), runtime)
	f.must(err)
	f.wantExit(c, Exit{Signal: syscall.SIGKILL})
}

// SUP-09, SUP-13: after Stop all are gone, and the domain works again.
func TestStop_SUP09(t *testing.T) {
	f := started(t)
	a, b := f.exec("a", "/sleep"), f.exec("b", "/sleep")
	usage, err := f.Stop(f.ctx(), runtime)
	f.must(err)
	if usage.MemoryPeakBytes != 42 {
		t.Errorf("usage %+v", usage)
	}
	for _, p := range []*Process{a, b} {
		if !p.isDone() || p.Exit() != (Exit{Signal: syscall.SIGKILL}) {
			t.Errorf("%s: %+v when Stop returned", p.Name(), p.Exit())
		}
	}
	f.must(f.Start(f.ctx(), runtime)) // idempotent
	f.exec("a", "/sleep")
	if n := f.box.count("Start runtime"); n != 1 {
		t.Errorf("the domain was made %d times", n)
	}
	_, err = f.Stop(f.ctx(), extension)
	wantKind(t, err, InvalidState)
	f.wantLost(false)
}

// A domain that is emptied again and again, as that of a function which fails each time,
// does not remember every process there ever was; those of the last time it does.
func TestNamesAreForgotten(t *testing.T) {
	f := started(t)
	name := func(i int) string { return fmt.Sprintf("runtime-%d", i) }
	const rounds = 20
	for i := range rounds {
		f.exec(name(i), "/sleep")
		if _, err := f.Exec(f.ctx(), f.request("missing-"+name(i), "/missing")); err == nil {
			t.Error("no error")
		}
		_, err := f.Stop(f.ctx(), runtime)
		f.must(err)
		f.must(f.Terminate(runtime, name(i))) // SUP-07: it has ended
	}
	f.must(f.Kill(f.ctx(), runtime, name(rounds-1)))
	wantKind(t, f.Kill(f.ctx(), runtime, name(0)), NoSuchEntity)
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.domains[runtime].named); n != 1 {
		t.Errorf("%d names are known, want that of the last process", n)
	}
}

// A Stop that misses its deadline is an error; its late answer harms nothing.
func TestStopDeadline_SUP09(t *testing.T) {
	f := started(t)
	p := f.exec("a", "/sleep")
	f.box.ice.Lock()
	ctx, cancel := context.WithTimeout(f.ctx(), 10*time.Millisecond)
	defer cancel()
	_, err := f.Stop(ctx, runtime)
	f.box.ice.Unlock()
	wantKind(t, err, Failure)
	f.wantExit(p, Exit{Signal: syscall.SIGKILL})
	_, err = f.Stop(f.ctx(), runtime)
	f.must(err)
	f.wantLost(false)
}

// An Exec whose context ends leaks no process: it dies when it starts, and only then
// its name is free. Nobody hears of it.
func TestExecAbandoned(t *testing.T) {
	f := started(t)
	init := f.box.init(runtime)
	ctx, cancel := context.WithCancel(f.ctx())
	result := make(chan error, 1)
	go func() {
		_, err := f.Exec(ctx, f.request("a", "/slow"))
		result <- err
	}()
	m := init.wait(t, isExec).(wire.Exec)
	cancel()
	err := <-result
	wantKind(t, err, Failure)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want Canceled", err)
	}
	_, err = f.Exec(f.ctx(), f.request("a", "/true"))
	wantKind(t, err, InvalidState)

	init.send(wire.Started{ID: m.ID, PID: 2})
	if sig := init.wait(t, isSignal).(wire.Signal); sig.ID != m.ID || sig.Signal != int32(syscall.SIGKILL) {
		t.Errorf("signal %+v", sig)
	}
	f.must(f.Kill(f.ctx(), runtime, "a")) // waits for its end
	f.wantExit(f.exec("b", "/true"), Exit{})
	if e := <-f.Events(); e.Name != "b" {
		t.Errorf("event %+v", e)
	}
}

// SUP-18: Kill and Terminate do not wait for an Exec under way, and reach even the
// process that is about to start.
func TestKillDuringExec_SUP18(t *testing.T) {
	f := started(t)
	init := f.box.init(runtime)
	other := f.exec("other", "/sleep")
	type result struct {
		p   *Process
		err error
	}
	results := make(chan result, 1)
	go func() {
		p, err := f.Exec(f.ctx(), f.request("a", "/slow"))
		results <- result{p, err}
	}()
	m := init.wait(t, func(m wire.Message) bool { e, ok := m.(wire.Exec); return ok && e.Path == "/slow" }).(wire.Exec)
	f.must(f.Kill(f.ctx(), runtime, "other"))
	f.wantExit(other, Exit{Signal: syscall.SIGKILL})

	f.must(f.Terminate(runtime, "a"))
	init.send(wire.Started{ID: m.ID, PID: 2})
	r := <-results
	f.must(r.err)
	f.wantExit(r.p, Exit{Signal: syscall.SIGTERM})
}

// SUP-16: the text of an exit.
func TestExitText_SUP16(t *testing.T) {
	for exit, want := range map[Exit]string{
		{}:                           "exit status 0",
		{Code: 1}:                    "exit status 1",
		{Signal: syscall.SIGKILL}:    "signal: killed",
		{Signal: syscall.SIGTERM}:    "signal: terminated",
		{Signal: syscall.SIGSEGV}:    "signal: segmentation fault",
		{Signal: syscall.Signal(40)}: "signal: signal 40",
		{Signal: syscall.SIGKILL, OOMKilled: true}: "signal: killed", // SUP-17
	} {
		if got := exit.String(); got != want {
			t.Errorf("%+v: %q, want %q", exit, got, want)
		}
	}
	if got := exitOf(syscall.WaitStatus(11 | 0x80)); got != (Exit{Signal: syscall.SIGSEGV}) {
		t.Errorf("with a core: %+v", got)
	}
}
