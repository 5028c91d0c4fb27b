// Package testdaemon runs programs of this project for tests and benchmarks: it starts
// one, collects what it prints, waits until it serves, and sees its end. A program that it
// has started never outlives the one that started it.
package testdaemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// Process is a program that is to run, runs, or has ended. Its fields may be read when
// Start has returned; its methods may then be called from any goroutine.
type Process struct {
	Cmd *exec.Cmd // to be changed before Start only
	Log *Book     // what the command prints; empty if it prints elsewhere

	done chan struct{} // closed when the process is reaped
}

// New returns a process that does not run yet.
func New(cmd *exec.Cmd) *Process {
	return &Process{Cmd: cmd, Log: NewBook(), done: make(chan struct{})}
}

// Start starts the command. What it prints goes into Log unless the command has a place
// for it already. The kernel kills the process when this one ends, in whatever way.
func (p *Process) Start() error {
	if p.Cmd.Stdout == nil && p.Cmd.Stderr == nil {
		p.Cmd.Stdout, p.Cmd.Stderr = p.Log, p.Log
	}
	if p.Cmd.WaitDelay == 0 {
		p.Cmd.WaitDelay = time.Second // for its output, which others may have open
	}
	if p.Cmd.SysProcAttr == nil {
		p.Cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.Cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	if err := onParent(p.Cmd.Start); err != nil {
		return err
	}
	go func() {
		_ = p.Cmd.Wait() // the state tells
		p.Log.End()
		close(p.done)
	}()
	return nil
}

// parent is the thread that starts all processes. Pdeathsig is sent when the thread ends
// that has started a process, so this one must live as long as the program does.
var parent = sync.OnceValue(func() chan<- func() {
	work := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range work {
			f()
		}
	}()
	return work
})

// onParent runs f on the thread that starts processes.
func onParent(f func() error) error {
	result := make(chan error, 1)
	parent() <- func() { result <- f() }
	return <-result
}

// Done is closed when the process has ended and is reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Ended reports whether the process has ended and is reaped.
func (p *Process) Ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// ExitCode is that of a process that has ended: -1 after a signal.
func (p *Process) ExitCode() int { return p.Cmd.ProcessState.ExitCode() }

// Signal sends a signal. It is no error if the process has ended.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.Cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, p.Cmd.Path, err)
	}
	return nil
}

// Wait waits for the end of the process. One that is still there after limit is killed,
// which is an error.
func (p *Process) Wait(limit time.Duration) error {
	timeout := time.NewTimer(limit)
	defer timeout.Stop()
	select {
	case <-p.done:
		return nil
	case <-timeout.C:
		if p.Ended() {
			return nil
		}
		p.Kill()
		return fmt.Errorf("%s still ran after %v and was killed", p.Cmd.Path, limit)
	}
}

// Stop ends the process with SIGTERM and waits for its end as [Process.Wait] does.
func (p *Process) Stop(limit time.Duration) error {
	return errors.Join(p.Signal(syscall.SIGTERM), p.Wait(limit))
}

// Kill ends the process with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.Cmd.Process.Kill() // it may have ended
	<-p.done
}

// Accepting waits until the process takes TCP connections at an address. Nobody tells when
// it does, so it is tried again and again.
func (p *Process) Accepting(ctx context.Context, addr string) error {
	again := time.NewTicker(2 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it listened: %v", p.Cmd.Path, p.Cmd.ProcessState)
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-again.C:
		}
	}
}
