package harness

import (
	"archive/zip"
	_ "embed"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// First returns the first entry of who with the name.
func First(t *testing.T, journal script.Entries, who, name string) script.Entry {
	t.Helper()
	found := journal.By(who).Named(name)
	if len(found) == 0 {
		t.Fatalf("no entry %s of %s in %+v", name, who, journal)
	}
	return found[0]
}

// BeatAtSIGTERM has a runtime go on after SIGTERM and print heartbeats.
var BeatAtSIGTERM = script.Step{Op: "onterm", Steps: []script.Step{heartbeat}}

// ShellBootstrap is a function in shell, see [Daemon.Shell].
//
//go:embed shell/bootstrap
var ShellBootstrap []byte

// Actor is the name of the scripted function and extension in Testbin.
const Actor = "actor"

// Function makes a folder of the scripted function, which does steps before its first
// next. Its entries are printed as well as noted, and those of steps are in reports.
func Function(t *testing.T, init ...script.Step) string {
	t.Helper()
	dir := ProgramFunction(t, Actor)
	program := script.Program{Announce: true, Quiet: true}
	if len(init) > 0 {
		program.Starts = [][]script.Step{init}
	}
	WriteFile(t, filepath.Join(dir, script.File), []byte(script.Encode(program)), 0o644)
	return dir
}

// ProgramFunction makes a function folder whose bootstrap is a program of Testbin.
func ProgramFunction(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	Place(t, program, filepath.Join(dir, "bootstrap"))
	return dir
}

// ShellFunction makes a function folder whose bootstrap is a shell script.
func ShellFunction(t *testing.T, text []byte) string {
	t.Helper()
	dir := t.TempDir()
	WriteFile(t, filepath.Join(dir, "bootstrap"), text, 0o755)
	return dir
}

// Extensions are the steps of external extensions by their names.
type Extensions map[string][]script.Step

// Layer makes a layer with external extensions. Their entries are printed as well as
// noted.
func Layer(t *testing.T, list Extensions) string {
	t.Helper()
	dir := t.TempDir()
	for name, steps := range list {
		Place(t, Actor, filepath.Join(dir, "extensions", name))
		program := script.Program{Announce: true, Starts: [][]script.Step{steps}}
		WriteFile(t, filepath.Join(dir, script.Folder, name+".json"), []byte(script.Encode(program)), 0o644)
	}
	return dir
}

// Both registers an extension for all events there are.
var Both = script.Step{Op: "register", Data: `{"events":["INVOKE","SHUTDOWN"]}`}

// Idle is an extension that wants no event: it asks once and waits for ever.
func Idle() []script.Step {
	return []script.Step{{Op: "register", Data: `{"events":[]}`}, {Op: "serve"}}
}

// Watch is an extension that takes every event, and does steps at each INVOKE.
func Watch(each ...script.Step) []script.Step {
	return []script.Step{Both, {Op: "serve", Steps: each}}
}

// Stubborn is an extension that goes on after SHUTDOWN and prints heartbeats.
func Stubborn() []script.Step {
	return []script.Step{Both, {Op: "serve", Last: []script.Step{heartbeat}}}
}

// heartbeat prints "heartbeat" entries for ever.
var heartbeat = script.Step{Op: "heartbeat", MS: 10}

// Note leaves an entry that is printed.
func Note(name string) script.Step { return script.Step{Op: "note", Name: name} }

// Respond answers the current invocation. It is for events that are Answered.
func Respond(data string) script.Step {
	return script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/response", Data: data}
}

// Place puts a program of Testbin at path, as a hard link where that is possible.
func Place(t *testing.T, program, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(Testbin, program)
	if os.Link(source, path) == nil {
		return
	}
	WriteFile(t, path, ReadFile(t, source), 0o755)
}

// ReadFile returns what is in a file.
func ReadFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// WriteFile writes a file, and makes the folders above it.
func WriteFile(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// ZipFile makes a zip with one entry.
func ZipFile(t *testing.T, name string, mode fs.FileMode, content io.Reader) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "function.zip")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := zip.NewWriter(f)
	header := &zip.FileHeader{Name: name, Method: zip.Deflate}
	header.SetMode(mode)
	entry, err := w.CreateHeader(header)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(entry, content); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// Config writes a configuration file with what only such a file can set.
func Config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	WriteFile(t, path, []byte(text), 0o644)
	return "--config=" + path
}

// OneCPU is the memory setting, in MB, that is worth a whole CPU (ENV-32): tests
// that look at times use it so that the quota does not come into them.
const OneCPU = "--memory=1769"
