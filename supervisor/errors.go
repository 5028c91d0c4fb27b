package supervisor

import (
	"syscall"
)

// ErrorKind classifies what the supervisor refuses (SUP-15). It is itself an error,
// for errors.Is(err, supervisor.InvalidState).
type ErrorKind uint8

// The kinds of errors. There is no kind "serde": requests are values here.
const (
	// Failure means that something went wrong that the request is not to blame for,
	// or that the domain could not do what it asks; also a deadline that passed.
	Failure ErrorKind = iota
	// NoSuchEntity means that a domain or process of that name was never there.
	NoSuchEntity
	// InvalidState means that the request does not fit the state of the sandbox, of
	// the domain, or of the process.
	InvalidState
)

func (k ErrorKind) Error() string {
	switch k {
	case NoSuchEntity:
		return "no such entity"
	case InvalidState:
		return "invalid state"
	default:
		return "failure"
	}
}

// Error is the error of every request to a Sandbox.
type Error struct {
	Kind    ErrorKind
	Op      string // the request, in lower case
	Sandbox string // its id
	Domain  string // "" if the request is not for one domain
	Process string // "" if the request is not for a process
	Err     error  // the cause; never nil
}

func (e *Error) Error() string {
	text := "" + e.Op + " in " + e.Sandbox
	if e.Domain != "" {
		text += "/" + e.Domain
	}
	if e.Process != "" {
		text += "/" + e.Process
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is reports whether target is the kind of e.
func (e *Error) Is(target error) bool { return target == e.Kind }

// ExecError says why a program did not start. It is inside the *Error that Exec
// returns. errors.Is tells fs.ErrNotExist from fs.ErrPermission (SUP-04, EX-03, FE-02).
type ExecError struct {
	Path   string // the program
	Dir    string // the working directory
	BadDir bool   // entering Dir failed, and not the start of Path
	Errno  syscall.Errno
}

func (e *ExecError) Error() string {
	if e.BadDir {
		return "enter directory " + e.Dir + ": " + e.Errno.Error()
	}
	return "start " + e.Path + ": " + e.Errno.Error()
}

// Unwrap returns the errno.
func (e *ExecError) Unwrap() error { return e.Errno }
