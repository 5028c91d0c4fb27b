package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

// self is this program as a child with a part to play.
func self(part string) *exec.Cmd { return exec.Command("/proc/self/exe", part) }

// child plays a part in a process of its own.
func child(part string) {
	switch part {
	case "exit":
	case "orphan": // the middle process; the one that it starts outlives it
		if err := self("exit").Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "sleep":
		for {
			time.Sleep(time.Hour)
		}
	case "bomb": // every process of it starts others as long as it can
		for {
			if self("bomb").Start() != nil {
				time.Sleep(time.Millisecond)
			}
		}
	default:
		fmt.Fprintln(os.Stderr, "no such part:", part)
		os.Exit(2)
	}
}

func execute(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
	out, err := cmd.CombinedOutput()
	e.Fail(err)
	e.Text = string(out)
	if cmd.ProcessState != nil {
		e.Status = cmd.ProcessState.ExitCode()
	}
}

func clone(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	cmd := self("exit")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(s.N)}
	e.Fail(cmd.Run())
}

func kill(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	e.Fail(syscall.Kill(int(s.N), syscall.SIGKILL))
}

// forkMany ends its children before it returns.
func forkMany(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	var children []*exec.Cmd
	for e.N < s.N {
		cmd := self("sleep")
		if err := cmd.Start(); err != nil {
			e.Fail(err)
			break
		}
		children = append(children, cmd)
		e.N++
	}
	for _, cmd := range children {
		_ = cmd.Process.Kill() // it may be killed already, with others
		_ = cmd.Wait()
	}
}

func bomb(_ context.Context, _ *actor.Actor, _ script.Step, e *script.Entry) {
	e.Fail(self("bomb").Start())
}

// orphans starts processes that become PID 1's, and end then.
func orphans(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	for range s.N {
		if err := self("orphan").Run(); err != nil {
			e.Fail(err)
			return
		}
		e.N++
	}
}

// threads starts threads. The Go runtime ends the process when it cannot have one more.
func threads(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	var up, down sync.WaitGroup
	down.Add(1)
	for range s.N {
		up.Add(1)
		go func() {
			runtime.LockOSThread()
			up.Done()
			down.Wait()
		}()
	}
	up.Wait()
	down.Done()
	e.N = s.N
}
