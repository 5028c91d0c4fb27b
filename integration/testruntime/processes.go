package main

import (
	"log"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
)

// self is this program as a child with a part to play (see child).
func self(part ...string) *exec.Cmd { return exec.Command("/proc/self/exe", part...) }

// child plays a part in a process of its own.
func child(part []string) {
	switch part[0] {
	case "exit":
	case "orphan": // the middle process; the one it starts outlives it
		if err := self("exit").Start(); err != nil {
			log.Fatal(err)
		}
	case "sleep":
		forever()
	case "bomb": // every process of it starts others as long as it can
		for {
			if self("bomb").Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	case "detach": // the middle process of a double fork
		cmd := self("daemon")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			log.Fatal(err)
		}
	case "daemon":
		if err := os.WriteFile(daemonFile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
			log.Fatal(err)
		}
		forever()
	default:
		log.Fatalf("no such part: %s", part[0])
	}
}

// forever waits without end. (An empty select would end the program: the Go runtime
// calls it a deadlock.)
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

// daemonFile is written by the double-forked daemon when it runs.
const daemonFile = "/tmp/daemon.pid"

// detach starts a daemon by double fork and waits until it runs. N is its pid.
func detach(_ *testRuntime, _ script.Step, r *script.Result) {
	os.Remove(daemonFile)
	cmd := self("detach")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		fail(r, err)
		return
	}
	for {
		if text, err := os.ReadFile(daemonFile); err == nil && len(text) > 0 {
			r.N, err = strconv.ParseInt(string(text), 10, 64)
			fail(r, err)
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// forkMany starts up to N children that do nothing, until one cannot be started;
// it notes how many there were, and then ends them.
func forkMany(_ *testRuntime, s script.Step, r *script.Result) {
	var children []*exec.Cmd
	for r.N < s.N {
		cmd := self("sleep")
		if err := cmd.Start(); err != nil {
			fail(r, err)
			break
		}
		children = append(children, cmd)
		r.N++
	}
	for _, cmd := range children {
		cmd.Process.Kill()
		cmd.Wait()
	}
}

// bomb starts a fork bomb and leaves it running.
func bomb(_ *testRuntime, _ script.Step, r *script.Result) { fail(r, self("bomb").Start()) }
