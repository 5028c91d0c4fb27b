package function

import (
	"fmt"
	"strconv"
	"strings"
)

// ID identifies a revision. A number is used once within an epoch. A store begins a new
// epoch whenever it might repeat a number, for example after a restore from a backup. The
// zero value identifies no revision.
type ID struct {
	Epoch  uint64
	Number uint64
}

// String returns the epoch in hexadecimal and the number, as in "1f/3".
func (id ID) String() string { return fmt.Sprintf("%x/%d", id.Epoch, id.Number) }

// MarshalText implements encoding.TextMarshaler: the text is that of String, which no reader
// of JSON rounds.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ID) UnmarshalText(text []byte) error {
	epoch, number, _ := strings.Cut(string(text), "/")
	e, err1 := strconv.ParseUint(epoch, 16, 64)
	n, err2 := strconv.ParseUint(number, 10, 64)
	if err1 != nil || err2 != nil {
		return fmt.Errorf("the id of a revision is like 1f/3, not %q", text)
	}
	id.Epoch, id.Number = e, n
	return nil
}

// Entry describes the program that starts a runtime.
type Entry struct {
	Path string   // inside the sandbox
	Args []string // after argv[0]
	Dir  string   // its working directory
}

// Image is the part of a container image's configuration that describes its program
// (LOG-33), with the environment variables.
type Image struct {
	Entrypoint, Cmd []string
	WorkingDir      string
	Env             map[string]string
}

// Program describes the programs to start in a sandbox, as found in the code and layers.
type Program struct {
	Bootstrap          Entry
	Extensions         []string // names in /opt/extensions, sorted (EX-01)
	ExtensionsDisabled bool     // EX-05
	Locale             string   // LANG (ENV-10); "" if the code is a container image
	Image              *Image   // nil if the code is not a container image
}

// HasExtensions reports whether a sandbox starts external extensions.
func (p *Program) HasExtensions() bool { return len(p.Extensions) > 0 && !p.ExtensionsDisabled }

// Revision is one immutable state of a function; an update of the function creates another
// revision. A Revision is safe for concurrent use as long as nothing changes it.
type Revision struct {
	ID      ID
	Version string // "$LATEST", or the number of a version
	ARN     string // unqualified
	Settings
	Program Program
}

// Latest is the version of an unpublished function.
const Latest = "$LATEST"
