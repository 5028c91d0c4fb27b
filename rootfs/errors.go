package rootfs

import (
	"errors"
	"fmt"
	"strings"
)

// Kinds of invalid input, for errors.Is. Each is carried by an [InvalidError].
var (
	ErrNotFound      = errors.New("does not exist or cannot be opened")
	ErrPackage       = errors.New("is no usable package")          // corrupt, encrypted, or no zip at all
	ErrUnsafe        = errors.New("holds an entry that is unsafe") // would leave its folder, or is no file
	ErrTooLarge      = errors.New("is over a limit")               // ENV-36 and the limits of this package
	ErrBase          = errors.New("is no usable base tree")
	ErrRuntime       = errors.New("runtime is unknown or not in the base")
	ErrClient        = errors.New("runtime client is missing")
	ErrHandler       = errors.New("handler is missing")
	ErrNoBootstrap   = errors.New("bootstrap is missing")                  // FE-02
	ErrNotExecutable = errors.New("bootstrap cannot be executed")          // FE-02
	ErrArchitecture  = errors.New("bootstrap is for another architecture") // FE-02
	ErrWorkingDir    = errors.New("working directory is unusable")         // FE-03
	ErrImage         = errors.New("is no usable image")                    // FE-04
	ErrPlatform      = errors.New("image is for other platforms")          // FE-04
	ErrDigest        = errors.New("does not match its digest")
	ErrTool          = errors.New("a program of the host is missing")
)

// InvalidError says what is wrong with something the operator gave, and how to put
// it right. Errors of the host itself (a full disk, say) are not InvalidErrors.
type InvalidError struct {
	Kind   error  // one of the kinds of this package
	File   string // what was given: a path of the host, or a flag's value
	Entry  string // the entry of a zip or the path inside; may be empty
	Reason string // what is wrong with it
	Fix    string // what the operator can do; may be empty
	Err    error  // the cause; may be nil
}

func (e *InvalidError) Error() string {
	var b strings.Builder
	b.WriteString("rootfs: ")
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	if e.Entry != "" {
		fmt.Fprintf(&b, "%q: ", shorten(e.Entry))
	}
	b.WriteString(e.Reason)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// Unwrap gives the kind and the cause.
func (e *InvalidError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// shorten keeps a hostile name from flooding a message.
func shorten(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return name[:most] + "…"
}
