package suite

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary be a target and what a target starts: it plays the part in
// its arguments.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && strings.HasPrefix(os.Args[1], "part=") {
		if err := play(strings.TrimPrefix(os.Args[1], "part="), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// play is a part: a server at an address, or a daemon that writes its pid into a file when
// it runs. The part "detach" starts a daemon in a session of its own and ends.
func play(part string, args []string) error {
	switch part {
	case "server":
		l, err := net.Listen("tcp", args[0])
		if err != nil {
			return err
		}
		for {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			conn.Close()
		}
	case "slow": // takes a while to end, and tells when it does
		work, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		terms := make(chan os.Signal, 1)
		signal.Notify(terms, syscall.SIGTERM)
		if err := writePID(args[0]); err != nil {
			return err
		}
		<-terms
		time.Sleep(work)
		fmt.Println("ended in order")
		return nil
	case "detach":
		self, err := os.Executable()
		if err != nil {
			return err
		}
		cmd := exec.Command(self, "part=deaf", args[0])
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	case "deaf": // to SIGTERM
		signal.Ignore(syscall.SIGTERM)
		if err := writePID(args[0]); err != nil {
			return err
		}
		for {
			time.Sleep(time.Hour)
		}
	}
	return fmt.Errorf("no part %s", part)
}

func writePID(path string) error {
	if err := os.WriteFile(path+".new", []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// target is a command whose lines may use "$self part=…".
func target(t *testing.T, line string) *Command {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &Command{Line: "self=" + quote(self) + "\n" + line}
}

// startTarget starts a command, whose function needs no program.
func startTarget(t *testing.T, c *Command) *process {
	t.Helper()
	instance, err := c.Start(t.Context(), &Setup{Name: "test", NoRuntime: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = instance.Stop() }) // again, if the test has
	return instance.(*process)
}

// pidIn waits for a process that the command starts, which writes its id into a file.
func pidIn(t *testing.T, p *process, file string) int {
	t.Helper()
	for deadline := time.Now().Add(DefaultPatience); ; time.Sleep(time.Millisecond) {
		if text, err := os.ReadFile(filepath.Join(p.root, "function", file)); err == nil {
			pid, err := strconv.Atoi(string(text))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s was not written; the target printed:\n%s", file, p.Log())
		}
	}
}

// runs reports whether a process with that id has not ended.
func runs(pid int) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(text), ") Z ")
}

// A shell that ends at once at SIGTERM is not the end of its children: they get the time
// to end, longer than os/exec would wait for their output, and what they print is kept.
func TestStopWaitsForTheChildrenOfAShell(t *testing.T) {
	p := startTarget(t, target(t, `"$self" part=slow {dir}/slow 1300ms & "$self" part=server {listen} & wait`))
	child := pidIn(t, p, "slow")
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if runs(child) {
		t.Error("the child still runs")
	}
	if !strings.Contains(p.Log(), "ended in order\n") {
		t.Errorf("the last line of the child is missing; the target printed %q", p.Log())
	}
}

// A daemon that has left the process group and ignores SIGTERM is killed, and the target
// is told about it.
func TestStopKillsADaemonThatIgnoresSIGTERM(t *testing.T) {
	p := startTarget(t, target(t, `"$self" part=detach {dir}/daemon; exec "$self" part=server {listen}`))
	daemon := pidIn(t, p, "daemon")
	if group, err := syscall.Getpgid(daemon); err != nil || group == p.cmd.Process.Pid {
		t.Fatalf("control: the daemon is in the group of the command: %d, %v", group, err)
	}
	p.patience = 300 * time.Millisecond
	err := p.Stop()
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d (", daemon)) || !strings.Contains(err.Error(), "part=deaf") {
		t.Errorf("Stop = %v; want an error that names process %d", err, daemon)
	}
	if runs(daemon) {
		t.Error("the daemon still runs")
	}
	if again := p.Stop(); !errors.Is(again, err) {
		t.Errorf("a second Stop = %v, want the error of the first", again)
	}
}

// What a command leaves that has ended by itself is stopped too.
func TestStopEndsWhatACommandHasLeft(t *testing.T) {
	p := startTarget(t, target(t, `"$self" part=slow {dir}/slow 100ms & "$self" part=server {listen} & until [ -e {dir}/slow ] && [ -e {dir}/go ]; do sleep 0.01; done`))
	child := pidIn(t, p, "slow")
	if err := os.WriteFile(filepath.Join(p.root, "function", "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	<-p.exited
	if !runs(child) {
		t.Fatal("control: the child has ended with the command")
	}
	if err := p.Stop(); err != nil {
		t.Error(err)
	}
	if runs(child) || !strings.Contains(p.Log(), "ended in order\n") {
		t.Errorf("the child runs: %v; the target printed %q", runs(child), p.Log())
	}
}

// A command that does not come to listen fails its start, and leaves nothing.
func TestStartThatFails(t *testing.T) {
	dir := t.TempDir()
	c := target(t, `echo "not today"; "$self" part=slow `+quote(filepath.Join(dir, "slow"))+` 100ms & until [ -e `+quote(filepath.Join(dir, "slow"))+` ]; do sleep 0.01; done`)
	_, err := c.Start(t.Context(), &Setup{Name: "test", NoRuntime: true})
	if err == nil || !strings.Contains(err.Error(), "ended before it listened") || !strings.Contains(err.Error(), "not today") {
		t.Errorf("Start = %v; want the reason and what was printed", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "slow"))
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := strconv.Atoi(string(text)); err != nil || runs(pid) {
		t.Errorf("process %d still runs, %v", pid, err)
	}
}
