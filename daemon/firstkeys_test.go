package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/seal"
)

// At the first start root makes both keys, in files that only root can read, and never others
// in place of them. A start that was cut short is made up for.
func TestOpenRootKeys(t *testing.T) {
	state := t.TempDir()
	open := func(isNew bool) (rootKeys, error) {
		return openRootKeys(state, "", "http://127.0.0.1:9000", "us-east-1", isNew)
	}
	first, err := open(true)
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^export AWS_ENDPOINT_URL_LAMBDA=http://127\.0\.0\.1:9000 AWS_DEFAULT_REGION=us-east-1 AWS_ACCESS_KEY_ID=AKSD[A-Z2-7]{16} AWS_SECRET_ACCESS_KEY=[A-Z2-7]{40}\n$`)
	if !form.MatchString(first.text) || !strings.Contains(first.text, first.firstKey.ID) || !strings.Contains(first.text, first.firstKey.Secret) {
		t.Errorf("%+v", first)
	}
	entries, err := os.ReadDir(state)
	if err != nil || len(entries) != 2 {
		t.Errorf("%v, %v; want two files", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	key, err := os.ReadFile(first.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, isNew := range []bool{true, false} { // the start was cut short, or not
		again, err := open(isNew)
		if err != nil || again.firstKey != first.firstKey || again.text != "" {
			t.Errorf("new %v: %+v, %v; want the same key, and nothing to tell", isNew, again, err)
		}
		if now, err := os.ReadFile(first.hostKey); err != nil || !bytes.Equal(now, key) {
			t.Errorf("new %v: another host key, %v", isNew, err)
		}
	}
	if err := os.Remove(first.file); err != nil {
		t.Fatal(err)
	}
	if k, err := open(false); err != nil || k.firstKey.ID != "" || k.text != "" {
		t.Errorf("after the operator has removed it: %+v, %v", k, err)
	}
}

// A host key that is not as it must be is an error, and never replaced by a new one, which
// could decrypt nothing.
func TestHostKeyFiles(t *testing.T) {
	state := t.TempDir()
	own := filepath.Join(t.TempDir(), "own.key")
	open := func(hostKey string) error {
		_, err := openRootKeys(state, hostKey, "", "", false)
		return err
	}
	if err := open(""); err == nil || !strings.Contains(err.Error(), "host.key") || !strings.Contains(err.Error(), "copy it there") {
		t.Errorf("a missing one: %v", err)
	}
	if err := open(own); err == nil {
		t.Error("the operator's is missing, and that is no error")
	}
	if err := seal.Create(own); err != nil {
		t.Fatal(err)
	}
	if err := open(own); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(own, 0o640); err != nil {
		t.Fatal(err)
	}
	if err := open(own); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Errorf("one that others can read: %v", err)
	}
	if entries, err := os.ReadDir(state); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v; want nothing in the state folder", entries, err)
	}
}

// The file of the first key is root's, or its content is not believed.
func TestReadFirst(t *testing.T) {
	path := filepath.Join(t.TempDir(), "first-key")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for text, id := range map[string]string{
		"export AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b\n":       "a",
		"export AWS_ACCESS_KEY_ID=a\nexport AWS_SECRET_ACCESS_KEY=b": "a",
		"AWS_ACCESS_KEY_ID=a":     "",
		"":                        "",
		"AWS_SECRET_ACCESS_KEY=b": "",
		strings.Repeat("x", 2*maxFirstKey) + " AWS_ACCESS_KEY_ID=a b=c": "",
	} {
		write(text, 0o600)
		if k, err := readFirst(path); err != nil || k.ID != id {
			t.Errorf("%.60q: %+v, %v", text, k, err)
		}
	}
	write("export AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b\n", 0o644)
	if k, err := readFirst(path); err == nil || k.ID != "" {
		t.Errorf("one that others can read: %+v", k)
	}
	link := path + ".link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if _, err := readFirst(link); err == nil {
		t.Error("a link was followed")
	}
}

// Only a terminal is shown a secret.
func TestIsTerminal(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if IsTerminal(&bytes.Buffer{}) || IsTerminal(w) || IsTerminal(null) {
		t.Error("a terminal was seen where there is none")
	}
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	if !IsTerminal(terminal) {
		t.Error("no terminal was seen")
	}
}
