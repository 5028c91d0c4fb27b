package function

import "fmt"

// ID names a revision. Numbers are given once within an epoch; a store begins a new epoch
// whenever it could repeat a number, as when it was restored from a backup. The zero value
// names none.
type ID struct {
	Epoch  uint64
	Number uint64
}

// String is the number after the epoch in hexadecimal.
func (id ID) String() string { return fmt.Sprintf("%x/%d", id.Epoch, id.Number) }

// Entry is the program that a runtime begins with.
type Entry struct {
	Path string   // inside the sandbox
	Args []string // after argv[0]
	Dir  string   // where it starts
}

// Image is what the configuration of a container image says of its program (LOG-33), and
// its variables.
type Image struct {
	Entrypoint, Cmd []string
	WorkingDir      string
	Env             map[string]string
}

// Program is what there is to start in a sandbox, as the code and the layers have it.
type Program struct {
	Bootstrap          Entry
	Extensions         []string // names in /opt/extensions, sorted (EX-01)
	ExtensionsDisabled bool     // EX-05
	Image              *Image   // nil: the code is no container image
}

// HasExtensions reports whether external extensions are to be started.
func (p *Program) HasExtensions() bool { return len(p.Extensions) > 0 && !p.ExtensionsDisabled }

// Revision is a function at one moment. It never changes: an update of the function is
// another revision. It is safe to share.
type Revision struct {
	ID      ID
	Version string // "$LATEST", or the number of a version
	ARN     string // unqualified
	Settings
	Program Program
}

// Latest is the version of a function that was not published.
const Latest = "$LATEST"
