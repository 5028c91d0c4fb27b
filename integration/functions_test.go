//go:build integration

package integration

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

//go:embed shell/bootstrap
var shellBootstrap []byte

// actor is the name of the scripted function and extension in testbin.
const actor = "actor"

// function makes a folder of the scripted function, which does steps before its first
// next. Its entries are printed as well as noted, and those of steps are in reports.
func function(t *testing.T, init ...script.Step) string {
	t.Helper()
	dir := programFunction(t, actor)
	program := script.Program{Announce: true, Quiet: true}
	if len(init) > 0 {
		program.Starts = [][]script.Step{init}
	}
	writeFile(t, filepath.Join(dir, script.File), []byte(script.Encode(program)), 0o644)
	return dir
}

// programFunction makes a function folder whose bootstrap is a program of testbin.
func programFunction(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	place(t, program, filepath.Join(dir, "bootstrap"))
	return dir
}

// shellFunction makes a function folder whose bootstrap is a shell script.
func shellFunction(t *testing.T, text []byte) string {
	t.Helper()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "bootstrap"), text, 0o755)
	return dir
}

// extensions are the steps of external extensions by their names.
type extensions map[string][]script.Step

// layer makes a layer with external extensions. Their entries are printed as well as
// noted.
func layer(t *testing.T, list extensions) string {
	t.Helper()
	dir := t.TempDir()
	for name, steps := range list {
		place(t, actor, filepath.Join(dir, "extensions", name))
		program := script.Program{Announce: true, Starts: [][]script.Step{steps}}
		writeFile(t, filepath.Join(dir, script.Folder, name+".json"), []byte(script.Encode(program)), 0o644)
	}
	return dir
}

// both registers an extension for all events there are.
var both = script.Step{Op: "register", Data: `{"events":["INVOKE","SHUTDOWN"]}`}

// idle is an extension that wants no event: it asks once and waits for ever.
func idle() []script.Step {
	return []script.Step{{Op: "register", Data: `{"events":[]}`}, {Op: "serve"}}
}

// watch is an extension that takes every event, and does steps at each INVOKE.
func watch(each ...script.Step) []script.Step {
	return []script.Step{both, {Op: "serve", Steps: each}}
}

// stubborn is an extension that goes on after SHUTDOWN and prints heartbeats.
func stubborn() []script.Step {
	return []script.Step{both, {Op: "serve", Last: []script.Step{heartbeat}}}
}

// heartbeat prints "heartbeat" entries for ever.
var heartbeat = script.Step{Op: "heartbeat", MS: 10}

// note leaves an entry that is printed.
func note(name string) script.Step { return script.Step{Op: "note", Name: name} }

// respond answers the current invocation. It is for events that are Answered.
func respond(data string) script.Step {
	return script.Step{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/response", Data: data}
}

// place puts a program of testbin at path, as a hard link where that is possible.
func place(t *testing.T, program, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(testbin, program)
	if os.Link(source, path) == nil {
		return
	}
	writeFile(t, path, readFile(t, source), 0o755)
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, path string, data []byte, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, mode); err != nil {
		t.Fatal(err)
	}
}

// zipFile makes a zip with one entry.
func zipFile(t *testing.T, name string, mode fs.FileMode, content io.Reader) string {
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
