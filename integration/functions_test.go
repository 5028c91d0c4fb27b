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

	"github.com/sandboxd/sandboxd/integration/script"
)

//go:embed shell/bootstrap
var shellBootstrap []byte

// function makes a function folder whose bootstrap is a program of testbin.
func function(t *testing.T, program string) string {
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

// extensionLayer makes a layer with external extensions under the names given, all
// of them the test extension. Names are letters, digits and underscores.
func extensionLayer(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		place(t, "testextension", filepath.Join(dir, "extensions", name))
	}
	return dir
}

// extensionFlag is the flag that gives one extension its part.
func extensionFlag(name string, e script.Extension) string {
	return "--env=" + script.ExtensionVariable + name + "=" + script.Encode(e)
}

// initFlag is the flag that gives the test runtime the steps of its initialisation.
func initFlag(steps ...script.Step) string {
	return "--env=" + script.InitVariable + "=" + script.Encode(steps)
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
