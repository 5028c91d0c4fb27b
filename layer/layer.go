// Package layer makes layers with AWS's runtime client and SDK for a language: sandboxd
// layer. The languages' own package managers install them, from lock files with hashes that
// this package holds, in a sandbox. [Main] is the program in that sandbox: it finds out
// which registry the package manager uses, has the proxy of the sandbox connect to nothing
// else, runs the package manager, and writes the layer as a zip to standard output.
//
// Nothing of this package but [Find] and [Runtime] is for the privileged process.
package layer

import (
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// Command is argv[0] of the program in the sandbox. Its arguments are the name of the
// runtime and the addresses of registries.
const Command = "sandboxd-layer"

// IsProcess reports whether this process is the program in the sandbox: then main must
// call [Main].
func IsProcess() bool { return os.Args[0] == Command }

// Where things are in the sandbox.
const (
	// LockDir is where the lock files are shown.
	LockDir = "/var/task/lock"
	// ProxyAddr is where the proxy of the sandbox listens, the only way out.
	ProxyAddr = "127.0.0.1:9001"
	// AllowPath is the path of the proxy's own resource: a PUT of lines host:port says once
	// what the sandbox may connect to.
	AllowPath = "/allow"

	workDir = "/tmp/work"
	outDir  = "/tmp/layer"
)

//go:embed locks
var locks embed.FS

// Runtime is a runtime of which a layer can be made.
type Runtime struct {
	Name    string // of Lambda, such as python3.11
	version string // such as 3.11
	family  *family
}

// family is a language.
type family struct {
	prefix, suffix string
	versions       []string
	lock           func(version string) map[string]string // folders of locks, by the name in LockDir; nil if we have none
	recipe         func(*job) recipe
}

// recipe is how the package manager of a language installs a layer. Its functions are called
// in this order.
type recipe interface {
	// prepare checks that the base has what the installation needs.
	prepare() error
	// registries returns the addresses (URLs) of the registry that the package manager uses
	// unless the operator names another one.
	registries() ([]string, error)
	// install fills outDir.
	install() error
}

var families = []*family{
	{
		prefix: "python", versions: []string{"3.9", "3.10", "3.11", "3.12", "3.13", "3.14"},
		lock: func(version string) map[string]string {
			if version == "3.9" { // the last versions for it
				return map[string]string{".": "locks/python3.9"}
			}
			return map[string]string{".": "locks/python"}
		},
		recipe: func(j *job) recipe { return &python{job: j} },
	},
	{
		prefix: "nodejs", suffix: ".x", versions: []string{"18", "20", "22", "24"},
		lock: func(version string) map[string]string {
			switch version {
			case "18": // the SDK wants Node 20
				return map[string]string{"client": "locks/nodejs/client3"}
			case "24": // the first without handlers that take a callback
				return map[string]string{"client": "locks/nodejs/client4", "sdk": "locks/nodejs/sdk"}
			default:
				return map[string]string{"client": "locks/nodejs/client3", "sdk": "locks/nodejs/sdk"}
			}
		},
		recipe: func(j *job) recipe { return &node{job: j} },
	},
	{
		prefix: "java", versions: []string{"11", "17", "21", "25"},
		lock:   func(string) map[string]string { return map[string]string{".": "locks/java"} },
		recipe: func(j *job) recipe { return &java{job: j} },
	},
	{
		prefix: "ruby", versions: []string{"3.1", "3.2", "3.3", "3.4"},
		recipe: func(j *job) recipe { return &ruby{job: j} },
	},
}

// Names returns the names of all runtimes of which a layer can be made.
func Names() (names []string) {
	for _, f := range families {
		for _, version := range f.versions {
			names = append(names, f.prefix+version+f.suffix)
		}
	}
	return names
}

// Find finds a runtime by its name.
func Find(name string) (*Runtime, error) {
	for _, f := range families {
		version, ok := strings.CutPrefix(name, f.prefix)
		if version, cut := strings.CutSuffix(version, f.suffix); ok && cut && slices.Contains(f.versions, version) {
			return &Runtime{Name: name, version: version, family: f}, nil
		}
	}
	return nil, fmt.Errorf("there is no layer for the runtime %q; there are layers for %s", name, strings.Join(Names(), ", "))
}

// Lock returns the lock files of the runtime by their names in [LockDir]; nil if sandboxd has
// none and the operator must name some.
func (r *Runtime) Lock() (map[string][]byte, error) {
	if r.family.lock == nil {
		return nil, nil
	}
	files := map[string][]byte{}
	for dir, from := range r.family.lock(r.version) {
		entries, err := fs.ReadDir(locks, from)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			text, err := locks.ReadFile(path.Join(from, e.Name()))
			if err != nil {
				return nil, err
			}
			files[path.Join(dir, e.Name())] = text
		}
	}
	return files, nil
}
