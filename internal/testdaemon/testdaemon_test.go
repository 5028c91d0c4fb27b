package testdaemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// part, in the environment, has the test binary play a program that a test starts.
const part = "TESTDAEMON_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(part) {
	case "":
		parent() // lives as long as the tests do
		goleak.VerifyTestMain(m, goleak.IgnoreCurrent())
	case "sleeper": // says its id, and sleeps
		fmt.Println("pid", os.Getpid())
		time.Sleep(time.Hour)
	case "parent": // starts a sleeper, and ends when its input does, by whatever signal
		p := New(play("sleeper"))
		p.Cmd.Stdout = os.Stdout
		if err := p.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
}

func play(name string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), part+"="+name)
	return cmd
}

const patience = 30 * time.Second

func TestBookWaitsForWholeLines(t *testing.T) {
	b := NewBook()
	found := make(chan string)
	go func() {
		line, _ := b.Wait(patience, func(line string) bool { return strings.Contains(line, "REPORT") })
		found <- line
	}()
	fmt.Fprint(b, "first\nREP")
	fmt.Fprint(b, "ORT 1")
	select {
	case line := <-found:
		t.Errorf("found %q before the line had ended", line)
	case <-time.After(10 * time.Millisecond):
	}
	fmt.Fprint(b, "\nrest")
	if line := <-found; line != "REPORT 1" {
		t.Errorf("found %q", line)
	}
	if text := b.Text(); text != "first\nREPORT 1\nrest" {
		t.Errorf("text %q", text)
	}
	if line, ok := b.Wait(time.Millisecond, func(line string) bool { return line == "rest" }); ok {
		t.Errorf("found %q, a line that has not ended", line)
	}
	b.End()
	b.End()
	if line, ok := b.Wait(patience, func(string) bool { return false }); ok {
		t.Errorf("found %q", line)
	}
}

func start(t *testing.T, cmd *exec.Cmd) *Process {
	t.Helper()
	p := New(cmd)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

func TestExitCodeAndLog(t *testing.T) {
	p := start(t, exec.Command("sh", "-c", "echo out; echo err >&2; exit 3"))
	if err := p.Wait(patience); err != nil || p.ExitCode() != 3 || !p.Ended() || p.Log.Text() != "out\nerr\n" {
		t.Errorf("code %d, log %q, %v", p.ExitCode(), p.Log.Text(), err)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("a signal to a process that has ended: %v", err)
	}
	if err := p.Stop(0); err != nil {
		t.Errorf("stop of a process that has ended: %v", err)
	}
	if err := New(exec.Command("/nonexistent")).Start(); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestOutputElsewhere(t *testing.T) {
	var out bytes.Buffer
	cmd := exec.Command("echo", "out")
	cmd.Stdout = &out
	p := start(t, cmd)
	if err := p.Wait(patience); err != nil || out.String() != "out\n" || p.Log.Text() != "" {
		t.Errorf("%q, log %q, %v", out.String(), p.Log.Text(), err)
	}
}

func TestStop(t *testing.T) {
	gentle := start(t, exec.Command("sh", "-c", "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.01; done"))
	if _, ok := gentle.Log.Wait(patience, func(line string) bool { return line == "up" }); !ok {
		t.Fatal("it is not up")
	}
	if err := gentle.Stop(patience); err != nil || gentle.Log.Text() != "up\nbye\n" {
		t.Errorf("%v, log %q", err, gentle.Log.Text())
	}
	deaf := start(t, exec.Command("sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.01; done"))
	if _, ok := deaf.Log.Wait(patience, func(line string) bool { return line == "up" }); !ok {
		t.Fatal("it is not up")
	}
	if err := deaf.Stop(50 * time.Millisecond); err == nil || !strings.Contains(err.Error(), "was killed") || !deaf.Ended() {
		t.Errorf("a process that ignores SIGTERM: %v, ended %v", err, deaf.Ended())
	}
}

// The kernel ends what was started when its starter is killed and can end nothing itself.
func TestNothingOutlivesItsStarter(t *testing.T) {
	cmd := play("parent")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, cmd)
	line, ok := p.Log.Wait(patience, func(line string) bool { return strings.HasPrefix(line, "pid ") })
	pid, err := strconv.Atoi(strings.TrimPrefix(line, "pid "))
	if !ok || err != nil {
		t.Fatalf("no sleeper: %v; log:\n%s", err, p.Log.Text())
	}
	if err := input.Close(); err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(patience); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for syscall.Kill(pid, 0) == nil {
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(stat), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the sleeper %d outlives its starter", pid)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAccepting(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := start(t, play("sleeper"))
	if err := p.Accepting(t.Context(), l.Addr().String()); err != nil {
		t.Error(err)
	}
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := p.Accepting(ctx, l.Addr().String()); err == nil || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("nobody listens: %v", err)
	}
	p.Kill()
	if err := p.Accepting(t.Context(), l.Addr().String()); err == nil || !strings.Contains(err.Error(), "ended before it listened: signal: killed") {
		t.Errorf("it has ended: %v", err)
	}
}

func TestListening(t *testing.T) {
	run := func(log string) (*Daemon, error) {
		cmd := exec.Command("sh", "-c", `printf '%s' "$0"`, log)
		f, err := NewFolders(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		d := NewDaemon(cmd, f)
		if err := d.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(d.Kill)
		return d, d.Listening(patience)
	}
	for _, log := range []string{
		"INIT\ntime=\"t\" level=info msg=listening addr=\"127.0.0.1:9000\" instance=1234abcd\n",
		`{"addr":"127.0.0.1:9000","instance":"1234abcd","msg":"listening"}` + "\n",
	} {
		d, err := run(log)
		if err != nil || d.Addr != "127.0.0.1:9000" || d.Instance != "1234abcd" {
			t.Errorf("%q: address %q, instance %q, %v", log, d.Addr, d.Instance, err)
		}
		if err := d.Wait(patience); err != nil {
			t.Error(err)
		}
		if err := d.Stop(patience); err != nil {
			t.Errorf("stop of a daemon that has ended: %v", err)
		}
	}
	if d, err := run("msg=listening addr=1\nit cannot\n"); err == nil || !strings.Contains(err.Error(), "it cannot") {
		t.Errorf("%+v, %v; want an error with the log", d, err)
	}
}

func TestDaemonStop(t *testing.T) {
	d := NewDaemon(exec.Command("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.01; done"), Folders{})
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	if _, ok := d.Log.Wait(patience, func(line string) bool { return line == "up" }); !ok {
		t.Fatal("it is not up")
	}
	if err := d.Stop(patience); err == nil || !strings.Contains(err.Error(), "code 7") {
		t.Errorf("Stop = %v, want the exit code", err)
	}
	if got := (Folders{"/s", "/r"}).Flags(); strings.Join(got, " ") != "--state-dir /s --run-dir /r" {
		t.Errorf("flags %q", got)
	}
}
