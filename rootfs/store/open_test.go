package store

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// openFile returns an open file with that content and its digest.
func openFile(t *testing.T, content []byte) (*os.File, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	sum := sha256.Sum256(content)
	return f, hex.EncodeToString(sum[:])
}

// A zip that comes as an open file is the entry of its digest, which the file's offset does
// not change, and is found without the file afterwards.
func TestAddOpenZip(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	content := ziptest.Make(t, ziptest.File{Name: "f", Body: "text"})
	path := ziptest.Write(t, t.TempDir(), content)
	f, digest := openFile(t, content)
	if ref, err := s.HoldZip(t.Context(), digest, "the code", extract.Limits{}); ref != nil || err != nil {
		t.Fatalf("%+v, %v before it was added", ref, err)
	}
	if _, err := f.Seek(7, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	ref, err := s.AddOpenZip(t.Context(), f, digest, "the code", extract.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Close()
	if b, err := os.ReadFile(filepath.Join(ref.Dir, "f")); string(b) != "text" || err != nil || ref.Digest != digest || ref.Size != 4 {
		t.Errorf("%q, %v in %+v", b, err, ref)
	}
	if at, err := f.Seek(0, io.SeekCurrent); at != 7 || err != nil {
		t.Errorf("the offset is %d, %v", at, err)
	}
	same, err := s.AddZip(t.Context(), path, extract.Limits{}, nil)
	if err != nil || same.Dir != ref.Dir {
		t.Errorf("the same zip by its path: %+v, %v", same, err)
	}
	again, err := s.HoldZip(t.Context(), digest, "the code", extract.Limits{})
	if err != nil || again.Dir != ref.Dir {
		t.Errorf("%+v, %v", again, err)
	}
	if err := errors.Join(same.Close(), again.Close()); err != nil {
		t.Error(err)
	}
	if _, err := s.HoldZip(t.Context(), digest, "the code", extract.Limits{UnzippedBytes: 3}); !errors.Is(err, invalid.ErrTooLarge) {
		t.Errorf("under narrower limits: %v", err)
	}
}

// A file that is not what was announced leaves nothing.
func TestAddOpenZipRefuses(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	content := ziptest.Make(t, ziptest.File{Name: "f", Body: "text"})
	zip, digest := openFile(t, content)
	_, other := openFile(t, append(bytes.Clone(content), 0))
	text, of := openFile(t, []byte("no zip"))
	folder, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	pipe, end, err := os.Pipe() // never has anything
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	defer end.Close()
	for name, c := range map[string]struct {
		file   *os.File
		digest string
		limits extract.Limits
		want   error
	}{
		"another digest": {zip, other, extract.Limits{}, invalid.ErrDigest},
		"no zip":         {text, of, extract.Limits{}, invalid.ErrPackage},
		"a folder":       {folder, digest, extract.Limits{}, invalid.ErrPackage},
		"a pipe":         {pipe, digest, extract.Limits{}, invalid.ErrPackage},
		"a large file":   {zip, digest, extract.Limits{ZipBytes: 10}, invalid.ErrTooLarge},
		"much in it":     {zip, digest, extract.Limits{UnzippedBytes: 3}, invalid.ErrTooLarge},
	} {
		ref, err := s.AddOpenZip(t.Context(), c.file, c.digest, "the code", c.limits)
		if !errors.Is(err, c.want) || ref != nil {
			t.Errorf("%s: %+v, %v; want %v", name, ref, err, c.want)
		}
	}
	for _, dir := range []string{s.entries, s.staging.dir} {
		if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
			t.Errorf("%s has %d entries, %v", dir, len(left), err)
		}
	}
}
