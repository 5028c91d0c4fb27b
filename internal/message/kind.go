package message

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// Errors whose kind both sides of a line know.
var (
	// ErrUnknownRevision says that root knows no revision of that number, or knows it no
	// more.
	ErrUnknownRevision = errors.New("there is no such revision")
	// ErrUnknownSandbox says that there is no sandbox of that number. It was closed a moment
	// ago, most likely.
	ErrUnknownSandbox = errors.New("there is no such sandbox")
	// ErrTooMany says that there are as many sandboxes as there may be.
	ErrTooMany = errors.New("there are too many sandboxes")
	// ErrNoControl says that there is no control process at the moment, or that it does not
	// take connections. There may be one a moment later.
	ErrNoControl = errors.New("the control process is not there")
	// ErrNoWorker says the same of the worker.
	ErrNoWorker = errors.New("the worker is not there")
	// ErrDigest says that a file has another digest than was announced.
	ErrDigest = errors.New("the file has another digest than was announced")
	// ErrTooLarge says that code or a layer exceeds the limits, packed or unpacked.
	ErrTooLarge = errors.New("the code is larger than allowed")
	// ErrUnusable says that code cannot be run here, whatever is tried: the runtime client is
	// missing, for example.
	ErrUnusable = errors.New("the code cannot be used")
	// ErrPackage says that code or a layer is no zip that can be extracted.
	ErrPackage = errors.New("the code is no zip that can be extracted")
)

// kinds are the errors that keep their identity across a line, each by its place: a bit of
// Kinds. Add new ones at the end.
var kinds = []error{
	context.Canceled, context.DeadlineExceeded, errors.ErrUnsupported,
	ErrUnknownRevision, ErrUnknownSandbox, ErrTooMany, ErrRevision,
	fs.ErrNotExist, fs.ErrExist, fs.ErrPermission, net.ErrClosed, os.ErrDeadlineExceeded,
	ErrNoControl, ErrNoWorker, ErrDigest, ErrTooLarge, ErrPackage, ErrUnusable,
}

// Kinds says of which kinds an error is, in the form in which that crosses a line: a bit
// for each kind, and the number of the system call's error, if there is one.
type Kinds struct {
	Set   uint32
	Errno uint32
}

// KindsOf returns the kinds of err.
func KindsOf(err error) (k Kinds) {
	for i, kind := range kinds {
		if errors.Is(err, kind) {
			k.Set |= 1 << i
		}
	}
	if errno, ok := errors.AsType[unix.Errno](err); ok {
		k.Errno = uint32(errno)
	}
	return k
}

// Error is an error that came across a line: its text, and its kinds for errors.Is. Of an
// error of a system call errors.As finds the number.
type Error struct {
	Text  string
	Kinds Kinds
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the kinds that this side knows, and the number.
func (e *Error) Unwrap() []error {
	var list []error
	for i, kind := range kinds {
		if e.Kinds.Set&(1<<i) != 0 {
			list = append(list, kind)
		}
	}
	if e.Kinds.Errno != 0 {
		list = append(list, unix.Errno(e.Kinds.Errno))
	}
	return list
}
