package extract

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What cannot be looked at ends an extraction: nobody could say how much there is. A
// folder that goes while it is looked at does not.
func TestLookFails(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b/c"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	bounds := Bounds{File: "f.zip", Entries: 10, Depth: 10}
	if err := bounds.look(t.Context(), root); err != nil {
		t.Errorf("control: %v", err)
	}
	next, err := unix.Dup(0) // the lowest free descriptor
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(next)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(next) + 2, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	err = bounds.look(t.Context(), root)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, unix.EMFILE) || !strings.Contains(err.Error(), "f.zip") || !strings.Contains(err.Error(), "cannot be counted") {
		t.Errorf("without descriptors: %v", err)
	}
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP} {
		if err := unlessChanged(true, "x", gone); err != nil {
			t.Errorf("%v: %v", gone, err)
		}
	}
}

// Some of the file system is left to others, in bytes and in inodes, if it counts them.
func TestReserve(t *testing.T) {
	for want, st := range map[string]unix.Statfs_t{
		"":                      {Bsize: 4096, Blocks: 1 << 30, Bavail: 1 << 20, Files: 1000, Ffree: 20},
		"200.0 MiB are left":    {Bsize: 4096, Blocks: 1 << 30, Bavail: 200 << 8, Files: 1000, Ffree: 500},
		"524288 bytes are left": {Bsize: 1024, Blocks: 50_000, Bavail: 512},
		"19 inodes are left":    {Bsize: 4096, Blocks: 1 << 30, Bavail: 1 << 29, Files: 1000, Ffree: 19},
	} {
		if got := reserve(&st); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if got := reserve(&unix.Statfs_t{Bsize: 4096}); got != "" { // ramfs counts nothing
		t.Error(got)
	}
}

// Hard links are taken over where they are allowed, if none leads out of the folder.
func TestAdoptHardLinks(t *testing.T) {
	dir := t.TempDir()
	tree := filepath.Join(dir, "tree")
	if err := errors.Join(os.Mkdir(tree, 0o755), os.WriteFile(filepath.Join(tree, "a"), []byte("12345"), 0o644), os.Link(filepath.Join(tree, "a"), filepath.Join(tree, "b"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	bounds := Bounds{File: "x", Bytes: 5, Entries: 2, Depth: 1, HardLinks: true}
	if n, err := bounds.Adopt(root); err != nil || n != 5 {
		t.Errorf("%d, %v", n, err)
	}
	if err := os.Link(filepath.Join(tree, "a"), filepath.Join(dir, "outside")); err != nil {
		t.Fatal(err)
	}
	if _, err := bounds.Adopt(root); err == nil || !strings.Contains(err.Error(), "outside of the folder") {
		t.Errorf("%v", err)
	}
}
