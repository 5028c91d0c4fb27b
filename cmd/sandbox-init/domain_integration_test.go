//go:build integration

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// A process has exactly what the request says: SUP-04, SUP-22, ENV-28, ENV-31,
// ENV-34, ENV-37.
func TestProcess(t *testing.T) {
	d := newDomain(t)
	extra, err := os.Open(initPath())
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	env := []string{"A=1", "EMPTY=", "Z=two words"}
	argv := []string{helperPath(), partReport, "x y"}
	started, out := d.exec(argv, func(m *wire.Exec) { m.Env, m.Dir = env, files }, extra)
	if started.Errno != 0 {
		t.Fatalf("%v", syscall.Errno(started.Errno))
	}
	got := readReport(t, out)
	d.wantExit(started.ID, exitedWith(0))

	if !slices.Equal(got.Args, argv) || !slices.Equal(got.Env, env) || got.Dir != files {
		t.Errorf("args %q, env %q, dir %q", got.Args, got.Env, got.Dir)
	}
	if names := slices.Sorted(maps.Keys(got.Files)); !slices.Equal(names, []string{"0", "1", "2", "3"}) {
		t.Errorf("descriptors %q, want 0 to 3", got.Files)
	}
	if got.Files["0"] != "/dev/null" || got.Files["1"] != got.Files["2"] || got.Files["3"] != initPath() {
		t.Errorf("descriptors %q", got.Files)
	}
	if got.NonBlocking {
		t.Error("a descriptor is non-blocking: programs do not expect that")
	}
	for field, want := range map[string]string{
		"Uid": "993 993 993 993", "Gid": "990 990 990 990", "Groups": "", "NoNewPrivs": "1",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "Seccomp": "2", "Seccomp_filters": "1",
	} {
		if value, ok := got.Status[field]; !ok || value != want {
			t.Errorf("%s: %q, want %q", field, value, want)
		}
	}
	if got.PID != int(started.PID) || got.Session != got.PID {
		t.Errorf("pid %d session %d, want both %d", got.PID, got.Session, started.PID)
	}
}

// ENV-34: the limits reach children as they were given to PID 1, although the Go
// runtime raises its own soft limit of descriptors.
func TestLimitsReachChildren(t *testing.T) {
	d := newDomain(t)
	started, out := d.start("/bin/sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c")
	text, err := io.ReadAll(out)
	if err != nil || string(text) != "1000\n1024\n0\n" {
		t.Errorf("%q, %v", text, err)
	}
	d.wantExit(started.ID, exitedWith(0))
}

// What went wrong is told apart: EX-03, FE-02, and a bad working directory.
func TestExecErrors(t *testing.T) {
	d := newDomain(t)
	folder, err := os.MkdirTemp(files, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	mine := filepath.Join(folder, "own")     // of the sandbox user alone
	ofInit := filepath.Join(folder, "other") // of PID 1's id: the sandbox user may not enter
	for dir, id := range map[string]int{mine: d.base + isolation.UserID, ofInit: d.base} {
		if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, id, id)); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	plain := write("plain", "#!/bin/sh\n", 0o644)
	garbage := write("garbage", "\x00\x01\x02\x03", 0o755)
	orphanScript := write("script", "#!/no/such/interpreter\n", 0o755)

	for _, test := range []struct {
		name, path, dir string
		errno           syscall.Errno
		stage           wire.Stage
	}{
		{"missing program", "/no/such", "/", unix.ENOENT, wire.StageExec},
		{"missing interpreter", orphanScript, "/", unix.ENOENT, wire.StageExec},
		{"no execute permission", plain, "/", unix.EACCES, wire.StageExec},
		{"directory as program", folder, "/", unix.EACCES, wire.StageExec},
		{"not a program", garbage, "/", unix.ENOEXEC, wire.StageExec},
		{"file as folder of the program", plain + "/x", "/", unix.ENOTDIR, wire.StageExec},
		{"name too long", "/" + strings.Repeat("x", 300), "/", unix.ENAMETOOLONG, wire.StageExec},
		{"missing directory", "/bin/true", "/no/such", unix.ENOENT, wire.StageDir},
		{"both missing", "/no/such", "/no/such", unix.ENOENT, wire.StageDir},
		{"file as directory", "/bin/true", plain, unix.ENOTDIR, wire.StageDir},
		{"directory only for PID 1", "/bin/true", ofInit, unix.EACCES, wire.StageDir},
		{"both not allowed", plain, ofInit, unix.EACCES, wire.StageDir},
		{"directory not for PID 1, good", "/bin/true", mine, 0, wire.StageNone},
		{"directory not for PID 1, bad program", plain, mine, unix.EACCES, wire.StageExec},
	} {
		started, _ := d.exec([]string{test.path}, func(m *wire.Exec) { m.Dir = test.dir })
		if syscall.Errno(started.Errno) != test.errno || started.Stage != test.stage {
			t.Errorf("%s: errno %v stage %d, want %v stage %d",
				test.name, syscall.Errno(started.Errno), started.Stage, test.errno, test.stage)
		}
		if started.Errno == 0 {
			d.wantExit(started.ID, exitedWith(0))
		}
	}
	if pids := d.processes(); !slices.Equal(pids, []string{"1"}) {
		t.Errorf("processes %v are left by failed starts, want only PID 1", pids)
	}
}

// A fork that the limits refuse is an answer, and the handler goes on.
func TestExecAtTheLimit(t *testing.T) {
	d := newDomain(t)
	var started wire.Started
	for i := 0; i <= nproc+1 && started.Errno == 0; i++ {
		started, _ = d.exec([]string{"/bin/sleep", "1000"}, nil)
	}
	if syscall.Errno(started.Errno) != unix.EAGAIN || started.Stage != wire.StageExec {
		t.Fatalf("%#v, want EAGAIN", started)
	}
	d.send(wire.Signal{ID: 1, Signal: int32(unix.SIGKILL)})
	d.wantExit(1, killedBy(unix.SIGKILL))
	d.start("/bin/sleep", "1000")
}

// The handler needs no new thread after its first answer, whatever it does.
func TestThreadsAreReserved(t *testing.T) {
	d := newDomain(t)
	count := func() int {
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", d.pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(tasks)
	}
	first, _ := d.start("/bin/true")
	d.wantExit(first.ID, exitedWith(0))
	before := count()
	for i := range 200 {
		started, _ := d.start("/bin/true")
		d.wantExit(started.ID, exitedWith(0))
		d.start("/bin/sleep", "1000")
		d.send(wire.KillAll{Seq: uint32(i)})
		d.recv()
		d.recv()
	}
	if after := count(); after != before {
		t.Errorf("%d threads after work, %d after its first answer", after, before)
	}
}

// With no process or thread left to have, the handler refuses to start processes and
// does all else: a fork bomb does not end it (SEC-50).
func TestNoThreadsLeft(t *testing.T) {
	d := newDomain(t)
	sleeper, _ := d.start("/bin/sleep", "1000")
	limit := unix.Rlimit{Cur: 1, Max: 1}
	if err := unix.Prlimit(d.pid, unix.RLIMIT_NPROC, &limit, nil); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if started, _ := d.exec([]string{"/bin/true"}, nil); syscall.Errno(started.Errno) != unix.EAGAIN {
			t.Fatalf("%#v, want EAGAIN", started)
		}
	}
	d.send(wire.Signal{ID: sleeper.ID, Signal: int32(unix.SIGTERM)})
	d.wantExit(sleeper.ID, killedBy(unix.SIGTERM))
	d.send(wire.KillAll{Seq: 1})
	if m := d.recv(); m != (wire.Killed{Seq: 1}) {
		t.Fatalf("%#v", m)
	}
}

func BenchmarkExec(b *testing.B) {
	d := newDomain(b)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close()
	for b.Loop() {
		d.next++
		d.send(wire.Exec{ID: d.next, Path: "/bin/true", Argv: []string{"true"}, Dir: "/", UID: 993, GID: 990}, null, null)
		d.recv()
		d.recv()
	}
}

// SUP-16: exit codes and signals arrive as they were, and to the group.
func TestExits(t *testing.T) {
	d := newDomain(t)
	for _, code := range []int{0, 1, 255} {
		started, _ := d.start("/bin/sh", "-c", fmt.Sprintf("exit %d", code))
		d.wantExit(started.ID, exitedWith(code))
	}
	started, _ := d.start("/bin/sh", "-c", "kill -SEGV $$")
	d.wantExit(started.ID, killedBy(unix.SIGSEGV))

	for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGKILL} {
		// The child of the shell is in the group and dies too: the pipe ends.
		started, out := d.start("/bin/sh", "-c", "sleep 1000 & echo up; wait")
		if _, err := io.ReadFull(out, make([]byte, 3)); err != nil {
			t.Fatal(err)
		}
		d.send(wire.Signal{ID: started.ID, Signal: int32(sig)})
		d.wantExit(started.ID, killedBy(sig))
		if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
			t.Errorf("%v: %q, %v", sig, rest, err)
		}
	}
}

// SUP-13, SUP-20: the exit of the main process is reported although a child of it
// lives and holds its output; the orphan is reaped in silence.
func TestOrphans(t *testing.T) {
	d := newDomain(t)
	// The orphan ends when the writing end of its standard input, here fd 3, closes.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	main, out := d.exec([]string{"/bin/sh", "-c", "cat <&3 & exit 7"}, nil, r)
	r.Close()
	d.wantExit(main.ID, exitedWith(7))
	if pids := d.processes(); len(pids) != 2 {
		t.Fatalf("processes %v, want PID 1 and the orphan", pids)
	}
	w.Close()
	if _, err := io.ReadAll(out); err != nil { // ends with the orphan
		t.Fatal(err)
	}
	// A later process's answers come right after one another, so the orphan made none.
	next, _ := d.start("/bin/true")
	d.wantExit(next.ID, exitedWith(0))
	d.send(wire.KillAll{Seq: 1})
	if m := d.recv(); m != (wire.Killed{Seq: 1}) {
		t.Fatalf("%#v", m)
	}
	if pids := d.processes(); !slices.Equal(pids, []string{"1"}) {
		t.Errorf("processes %v: the orphan was not reaped", pids)
	}
}

// SUP-09: after KillAll nothing is left, not even what hid in a session of its own;
// main processes are reported before the answer; then a process can start again.
func TestKillAll(t *testing.T) {
	d := newDomain(t)
	parent, _ := d.start(helperPath(), partDaemon)
	d.wantExit(parent.ID, exitedWith(0))
	first, _ := d.start("/bin/sleep", "1000")
	second, _ := d.start("/bin/sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1000; done")
	if pids := d.processes(); len(pids) < 4 {
		t.Fatalf("processes %v, want the daemonised one too", pids)
	}
	d.send(wire.KillAll{Seq: 42})
	ended := map[uint32]bool{}
	for range 2 {
		m, ok := d.recv().(wire.Exited)
		if !ok || !killedBy(unix.SIGKILL)(syscall.WaitStatus(m.Status)) {
			t.Fatalf("%#v, want the exit of a killed process", m)
		}
		ended[m.ID] = true
	}
	if !ended[first.ID] || !ended[second.ID] {
		t.Errorf("exits of %v, want %d and %d", ended, first.ID, second.ID)
	}
	if m := d.recv(); m != (wire.Killed{Seq: 42}) {
		t.Fatalf("%#v, want Killed", m)
	}
	if pids := d.processes(); !slices.Equal(pids, []string{"1"}) {
		t.Errorf("processes %v, want only PID 1", pids)
	}
	d.send(wire.KillAll{Seq: 43}) // nothing to kill
	if m := d.recv(); m != (wire.Killed{Seq: 43}) {
		t.Fatalf("%#v, want Killed", m)
	}
	again, _ := d.start("/bin/true")
	d.wantExit(again.ID, exitedWith(0))
}

// SUP-21: a signal for a process that is gone does not reach the one that has its
// pid now.
func TestSignalAfterPIDReuse(t *testing.T) {
	d := newDomain(t)
	old, _ := d.start("/bin/true")
	d.wantExit(old.ID, exitedWith(0))
	reuse := exec.Command("nsenter", "-t", strconv.Itoa(d.pid), "-U", "-p", "-m", "--",
		"/bin/sh", "-c", fmt.Sprintf("echo %d > /proc/sys/kernel/ns_last_pid", old.PID-1))
	if out, err := reuse.CombinedOutput(); err != nil {
		t.Fatalf("set the last pid: %v: %s", err, out)
	}
	heir, _ := d.start("/bin/sleep", "1000")
	if heir.PID != old.PID {
		t.Fatalf("pid %d, want that of the dead process, %d", heir.PID, old.PID)
	}
	d.send(wire.Signal{ID: old.ID, Signal: int32(unix.SIGKILL)})
	d.send(wire.Signal{ID: heir.ID, Signal: int32(unix.SIGTERM)}) // handled after the first
	d.wantExit(heir.ID, killedBy(unix.SIGTERM))
}

// The handler keeps three capabilities, shows nothing of itself, and has written the
// limits of its user namespace (SEC-31, SEC-21).
func TestHandlerPosture(t *testing.T) {
	d := newDomain(t)
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %v, %v", tasks, err)
	}
	const three = "00000000000000e0" // KILL, SETGID, SETUID
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		got := status(string(text))
		for field, want := range map[string]string{"CapInh": "0000000000000000", "CapPrm": three, "CapEff": three,
			"CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "Groups": ""} {
			if got[field] != want {
				t.Errorf("%s: %s %q, want %q", task, field, got[field], want)
			}
		}
	}
	script := "cd /proc/sys/user; cat max_user_namespaces max_net_namespaces max_inotify_instances max_inotify_watches;" +
		"kill -0 1 2>/dev/null; echo $?; cat /proc/1/environ 2>/dev/null; echo $?; unshare -Ur true 2>/dev/null; echo $?"
	started, out := d.start("/bin/sh", "-c", script)
	text, err := io.ReadAll(out)
	if err != nil || string(text) != "0\n0\n16\n8192\n1\n1\n1\n" {
		t.Errorf("%q, %v", text, err)
	}
	d.wantExit(started.ID, exitedWith(0))
}

// A request with the id of a live process is refused, and the process stays.
func TestIDInUse(t *testing.T) {
	d := newDomain(t)
	first, _ := d.start("/bin/sleep", "1000")
	again, _ := d.exec([]string{"/bin/true"}, func(m *wire.Exec) { m.ID = first.ID; d.next = first.ID })
	if syscall.Errno(again.Errno) != unix.EEXIST {
		t.Fatalf("%#v, want EEXIST", again)
	}
	d.send(wire.Signal{ID: first.ID, Signal: int32(unix.SIGTERM)})
	d.wantExit(first.ID, killedBy(unix.SIGTERM))
}

// The end of the control socket ends the domain.
func TestEOF(t *testing.T) {
	d := newDomain(t)
	_, out := d.start(helperPath(), partDaemon)
	d.start("/bin/sleep", "1000")
	d.conn.Close()
	if _, err := io.ReadAll(out); err != nil { // ends when all who hold it are dead
		t.Fatal(err)
	}
}

// The death of the thread that made PID 1 ends the domain although the socket is
// open (docs/decisions/0033).
func TestParentDeath(t *testing.T) {
	local, remote, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	cmd := exec.Command(helperPath(), partParent, initPath(), strconv.Itoa(newBase()))
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{remote, filterFile(t, allowAll)}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	remote.Close()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	if m, err := recvWithin(local); err != nil || m != (wire.Handshake{Version: wire.Version}) {
		t.Fatalf("%#v, %v", m, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	if m, err := recvWithin(local); err != io.EOF {
		t.Fatalf("%#v, %v, want the end of the socket", m, err)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status.Signal() != unix.SIGKILL {
		t.Errorf("the handler ended with %#x, %v, want SIGKILL", status, err)
	}
}

// The filter is on every thread of the handler, whichever forks.
func TestFilterOnEveryThread(t *testing.T) {
	d := newDomain(t)
	first, _ := d.start("/bin/true")
	d.wantExit(first.ID, exitedWith(0))
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", d.pid))
	if err != nil || len(threads) < spareThreads {
		t.Fatalf("%d threads, %v", len(threads), err)
	}
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if s := status(string(text)); s["Seccomp"] != "2" || s["Seccomp_filters"] != "1" {
			t.Errorf("%s: Seccomp %s, filters %s; want 2 and 1", file, s["Seccomp"], s["Seccomp_filters"])
		}
	}
}

// Started by hand it says what it is, on a host and as PID 1 without a socket; without
// a filter that the kernel takes it does nothing.
func TestByHand(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	local, remote, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	defer remote.Close()
	for name, cmd := range map[string]*exec.Cmd{
		"on a host":        exec.Command(initPath()),
		"without a socket": command(initPath(), newBase(), null, filterFile(t, allowAll)),
		"without a filter": command(initPath(), newBase(), remote, nil),
		"an empty filter":  command(initPath(), newBase(), remote, filterFile(t, allowAll[:0])),
		"a refused filter": command(initPath(), newBase(), remote, filterFile(t, []unix.SockFilter{{Code: 0xffff}})),
		"half a filter":    command(initPath(), newBase(), remote, filterFile(t, []byte{1, 2, 3, 4})),
	} {
		var text strings.Builder
		cmd.Stderr = &text
		err := cmd.Run()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitUsage {
			t.Errorf("%s: %v, want exit status %d", name, err, exitUsage)
		}
		if !strings.Contains(text.String(), "sandboxd") || strings.Count(text.String(), "\n") != 1 {
			t.Errorf("%s: said %q, want one line that names sandboxd", name, text.String())
		}
	}
}
