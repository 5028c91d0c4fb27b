package store

import (
	"archive/zip"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// unzipByPath extracts as one writes it in an afternoon: by path, whatever the names.
func unzipByPath(t *testing.T, data []byte, dir string) {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range r.File {
		in, err := f.Open()
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, f.Name)
		if f.Mode()&fs.ModeSymlink != 0 {
			err = os.Symlink(string(body), path)
		} else if err = os.WriteFile(path, body, 0o600); err == nil {
			err = os.Chmod(path, f.Mode())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The control of TestHostileZips: the same kinds of archives do get out of an
// extractor that trusts names.
func TestHostileZipsControl(t *testing.T) {
	for _, tt := range []struct {
		name   string
		data   func(outside string) []byte
		escape string // what then lies in the folder beside
	}{
		{"slip", func(string) []byte { return ziptest.Make(t, ziptest.File{Name: "../outside/evil", Body: "x"}) }, "evil"},
		{"write through a link", func(outside string) []byte {
			return ziptest.Make(t, ziptest.File{Name: "d", Mode: 0o777 | fs.ModeSymlink, Body: outside}, ziptest.File{Name: "d/evil", Body: "x"})
		}, "evil"},
		{"set-id", func(string) []byte {
			return ziptest.Make(t, ziptest.File{Name: "../outside/su", Mode: 0o755 | fs.ModeSetuid, Body: "x"})
		}, "su"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			parent := t.TempDir()
			dir, outside := filepath.Join(parent, "dir"), filepath.Join(parent, "outside")
			for _, d := range []string{dir, outside} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			unzipByPath(t, tt.data(outside), dir)
			info, err := os.Stat(filepath.Join(outside, tt.escape))
			if err != nil {
				t.Fatalf("the archive stays inside: %v", err)
			}
			if tt.name == "set-id" && info.Mode()&fs.ModeSetuid == 0 {
				t.Errorf("mode %v, want set-uid", info.Mode())
			}
		})
	}
}
