package daemon

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A file has its name once it is published, and replaces no other; before, it has none or a
// hidden one, and goes when it is closed.
func TestUnnamed(t *testing.T) {
	for kind, open := range map[string]func(path string) (*unnamed, error){
		"without a name": newUnnamed,
		"hidden": func(path string) (*unnamed, error) {
			dir, err := os.Open(filepath.Dir(path))
			if err != nil {
				return nil, err
			}
			u := &unnamed{dir: dir, path: path}
			return u, u.hide()
		},
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "b")
			write := func(text string) error {
				u, err := open(path)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(u, text); err != nil {
					t.Fatal(err)
				}
				if _, err := os.Lstat(path); text == "first" && !errors.Is(err, fs.ErrNotExist) {
					t.Error("it has its name too early")
				}
				if text == "never" {
					return u.close()
				}
				return errors.Join(u.publish(), u.close())
			}
			if err := write("never"); err != nil {
				t.Error(err)
			}
			if err := write("first"); err != nil {
				t.Error(err)
			}
			if err := write("second"); !errors.Is(err, fs.ErrExist) {
				t.Errorf("over another file: %v", err)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != "first" {
				t.Errorf("%q, %v", text, err)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info, err)
			}
			if list, err := os.ReadDir(dir); err != nil || len(list) != 1 {
				t.Errorf("%v, %v", list, err)
			}
		})
	}
}
