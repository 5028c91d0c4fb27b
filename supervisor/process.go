package supervisor

import (
	"os"
	"strconv"
	"syscall"
)

// ExecRequest describes the process that Exec starts.
type ExecRequest struct {
	Domain string
	Name   string   // unique among the live processes of the domain; not empty
	Path   string   // of the program: absolute, inside the domain; also argument 0
	Args   []string // arguments from 1 on
	Env    []string // NAME=value; nothing else is inherited
	Dir    string   // working directory: absolute, inside the domain; "" means "/"

	// Stdout and Stderr become the process's descriptors 1 and 2, and may be the same file.
	// ExtraFiles, at most 14, become those from 3 on. Descriptor 0 is /dev/null. The caller
	// still owns the files and closes its copies when Exec has returned. Exec puts the files
	// in blocking mode, and makes the sandbox user the owner of pipes, so that programs can
	// open them again as /dev/stderr (docs/decisions/0005).
	Stdout, Stderr *os.File
	ExtraFiles     []*os.File
}

// Exit describes how a process exited.
type Exit struct {
	Code   int            // valid if Signal is zero: 0 to 255
	Signal syscall.Signal // the signal that killed it; zero if it exited by itself

	// OOMKilled is true if the kernel killed the process because the sandbox was out of
	// memory (SUP-17). Signal is SIGKILL then.
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

// Process is the handle of a process that Exec started. It keeps the exit for as long as it
// is referenced, even after the sandbox is closed. It is safe for concurrent use.
type Process struct {
	name string
	id   uint32 // in messages of package wire

	answered chan struct{} // closed when the init handler has said whether the process started
	done     chan struct{} // closed when the process exited, or did not start

	// Written under Sandbox.mu. After answered is closed, startErr may be read without the
	// lock, and after done is closed, exit.
	startErr  error
	earlier   *Process // the previous process with that name; nil once this one has started
	exit      Exit
	abandoned bool           // Exec returned before the process started
	wanted    syscall.Signal // to send when the process starts; zero if none
}

func newProcess(name string, id uint32) *Process {
	return &Process{name: name, id: id, answered: make(chan struct{}), done: make(chan struct{})}
}

// Name returns the name from the request.
func (p *Process) Name() string { return p.name }

// Done returns a channel that is closed when the process itself has been reaped. Children
// that it leaves behind do not delay that (SUP-20).
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how the process exited. Before Done is closed it returns the zero value.
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
