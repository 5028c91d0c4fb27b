// Package ziptest makes zips for tests, with any content and any names.
package ziptest

import (
	"archive/zip"
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// File is an entry of a test zip. Mode 0 is 0644; links have their target as body. Change, if
// it is not nil, changes the entry's header before it is written.
type File struct {
	Name   string
	Mode   fs.FileMode
	Body   string
	Change func(*zip.FileHeader)
}

// Make makes an archive with archive/zip, which does not object to any name.
func Make(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, f := range files {
		h := &zip.FileHeader{Name: f.Name, Method: zip.Deflate}
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		h.SetMode(f.Mode)
		if f.Body == "" {
			h.Method = zip.Store
		}
		if f.Change != nil {
			f.Change(h)
		}
		fw, err := w.CreateHeader(h)
		if err == nil && f.Body != "" {
			_, err = io.WriteString(fw, f.Body)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// WantTree fails unless dir holds exactly these paths.
func WantTree(t testing.TB, dir string, want ...string) {
	t.Helper()
	var got []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); err == nil && rel != "." {
			got = append(got, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("tree is %q, want %q", got, want)
	}
}
func Write(t testing.TB, dir string, data []byte) string {
	t.Helper()
	name := filepath.Join(dir, "code.zip")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
