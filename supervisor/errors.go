package supervisor

import (
	"syscall"
)

// ErrorKind classifies errors (SUP-15). It is itself an error, so that callers can use
// errors.Is(err, supervisor.InvalidState).
type ErrorKind uint8

// The kinds of errors. The kind "serde" of SUP-15 does not exist here, because requests are
// not serialized.
const (
	// Failure means that a valid request failed, or that its deadline has passed.
	Failure ErrorKind = iota
	// NoSuchEntity means that no domain or process has that name.
	NoSuchEntity
	// InvalidState means that the state of the sandbox, the domain or the process does not
	// allow the request.
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

// Error is the type of all errors that methods of Sandbox return.
type Error struct {
	Kind    ErrorKind
	Op      string // name of the request, in lower case
	Sandbox string // id of the sandbox
	Domain  string // "" if the request is not for one domain
	Process string // "" if the request is not for a process
	Err     error  // the cause; never nil
}

func (e *Error) Error() string {
	text := e.Op + " in " + e.Sandbox
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

// ExecError reports why a program did not start. The *Error that Exec returns wraps it. Use
// errors.Is to check for fs.ErrNotExist and fs.ErrPermission (SUP-04, EX-03, FE-02).
type ExecError struct {
	Path   string // the program
	Dir    string // the working directory
	BadDir bool   // Dir could not be entered; else Path could not be started
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
