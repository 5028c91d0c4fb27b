// Package invalid says what is wrong with something that the operator gave, a package,
// a base or an image, and how to put it right. Its errors can travel from the process
// that has read a stranger's bytes to the one that tells the operator.
package invalid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/host"
)

// Kinds of invalid input, for errors.Is. Each is carried by an [Error].
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

	// Tool is also a host.Unsupported: it is the host that is to be put right.
	ErrTool error = &host.Unsupported{Feature: host.Programs, Need: "a program of the host is missing"}
)

// Error says what is wrong with something the operator gave, and how to put
// it right. Errors of the host itself (a full disk, say) are not Errors.
type Error struct {
	Kind   error  // one of the kinds of this package
	File   string // what was given: a path of the host, or a flag's value
	Entry  string // the entry of a zip or the path inside; may be empty
	Reason string // what is wrong with it
	Fix    string // what the operator can do; may be empty
	Err    error  // the cause; may be nil
}

// kinds are those that an extraction can find, by the number under which they travel.
var kinds = []error{ErrPackage, ErrUnsafe, ErrTooLarge, ErrNotFound, ErrImage, ErrPlatform, ErrDigest}

// maxEncoded bounds an encoded error: names and reasons are shorter by far.
const maxEncoded = 64 << 10

// Encode turns the error of an extraction into bytes for another process.
func Encode(err error) []byte {
	e := &Error{Reason: err.Error()}
	number := len(kinds) // of none
	if invalid, ok := errors.AsType[*Error](err); ok {
		e, number = invalid, slices.Index(kinds, invalid.Kind)
	}
	cause := ""
	if e.Err != nil {
		cause = e.Err.Error()
	}
	b := []byte{byte(number)}
	for _, s := range []string{e.Entry, e.Reason, e.Fix, cause} {
		s = s[:min(len(s), maxEncoded/8)]
		b = append(binary.LittleEndian.AppendUint32(b, uint32(len(s))), s...)
	}
	return b
}

// Decode is the inverse of Encode; file is what was extracted. Whatever the
// bytes, it returns an error, whose message is short and can be printed: an extractor
// that its input has taken over chooses the words.
func Decode(file string, b []byte) error {
	malformed := fmt.Errorf("the extraction of %s failed, and did not say why", file)
	if len(b) == 0 || len(b) > maxEncoded {
		return malformed
	}
	number, rest := int(b[0]), b[1:]
	var text [4]string
	for i := range text {
		if len(rest) < 4 || uint64(binary.LittleEndian.Uint32(rest)) > uint64(len(rest)-4) {
			return malformed
		}
		n := binary.LittleEndian.Uint32(rest)
		text[i], rest = string(rest[4:4+n]), rest[4+n:]
	}
	if number >= len(kinds) {
		return errors.New(Printable(text[1]))
	}
	e := &Error{Kind: kinds[number], File: file, Entry: text[0], Reason: Printable(text[1]), Fix: Printable(text[2])}
	if text[3] != "" {
		e.Err = errors.New(Printable(text[3]))
	}
	return e
}

// Printable keeps a stranger's text from flooding a message or moving a cursor.
func Printable(s string) string {
	const most = 2000
	if len(s) > most {
		s = s[:most] + "…"
	}
	if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		s = strconv.Quote(s)
	}
	return s
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		b.WriteString(e.File + ": ")
	}
	if e.Entry != "" {
		fmt.Fprintf(&b, "%q: ", Shorten(e.Entry))
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
func (e *Error) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Shorten keeps a hostile name from flooding a message.
func Shorten(name string) string {
	const most = 200
	if len(name) <= most {
		return name
	}
	return name[:most] + "…"
}

// FixLeaveOut is the Fix of what is larger than the limits.
const FixLeaveOut = "leave out what the function does not need"

// Megabytes is a size as messages have it.
func Megabytes(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// Cause is err without the path that an [fs.PathError] repeats, for messages that name
// the file anyway.
func Cause(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
