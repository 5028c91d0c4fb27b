package supervisor

import (
	"os"
	"strconv"
	"syscall"
)

// ExecRequest says what to run.
type ExecRequest struct {
	Domain string
	Name   string   // unique among the live processes of the domain; not empty
	Path   string   // absolute path inside the domain; also the program's argument 0
	Args   []string // arguments after that
	Env    []string // complete, as NAME=value: nothing is inherited
	Dir    string   // absolute path inside the domain; "" is "/"

	// Stdout and Stderr are the process's descriptors 1 and 2, ExtraFiles those
	// from 3 on, at most 14; descriptor 0 is /dev/null. The files stay the
	// caller's, who closes its copies when Exec has returned. They are put in
	// blocking mode, and pipes among them are given to the sandbox user, so that
	// programs can open them again as /dev/stderr (docs/decisions/0005).
	Stdout, Stderr *os.File
	ExtraFiles     []*os.File
}

// Exit says how a process ended.
type Exit struct {
	Code   int            // valid if Signal is zero: 0 to 255
	Signal syscall.Signal // the signal that ended it; zero if it exited by itself

	// OOMKilled is set if the kernel killed the process because the sandbox was
	// out of memory (SUP-17). Signal is SIGKILL then.
	OOMKilled bool
}

// String returns the text of SUP-16, such as "exit status 1" or "signal: killed".
func (e Exit) String() string {
	if e.Signal != 0 {
		return "signal: " + e.Signal.String()
	}
	return "exit status " + strconv.Itoa(e.Code)
}

func exitOf(status syscall.WaitStatus) Exit {
	if status.Signaled() {
		return Exit{Signal: status.Signal()}
	}
	return Exit{Code: status.ExitStatus()}
}

// Process is the handle of a process that Exec started. It holds the exit as long as
// it is referenced, whatever becomes of the sandbox. It is safe for concurrent use.
type Process struct {
	name string
	id   uint32 // in the language of the control socket

	answered chan struct{} // closed when it is known whether the process started
	done     chan struct{} // closed when it ended, or did not start

	// Written under Sandbox.mu. startErr is final once answered is closed, exit once
	// done is closed; readers of those need no lock.
	startErr  error
	earlier   *Process // the one of that name before, until this one has started
	exit      Exit
	abandoned bool           // Exec returned before it started
	wanted    syscall.Signal // to be sent when it starts
}

func newProcess(name string, id uint32) *Process {
	return &Process{name: name, id: id, answered: make(chan struct{}), done: make(chan struct{})}
}

// Name returns the name from the request.
func (p *Process) Name() string { return p.name }

// Done is closed when the process itself has been reaped; what it leaves behind does
// not delay that (SUP-20).
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended. It is valid when Done is closed, and zero before.
func (p *Process) Exit() Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return Exit{}
	}
}

func (p *Process) isAnswered() bool { return isClosed(p.answered) }
func (p *Process) isDone() bool     { return isClosed(p.done) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
