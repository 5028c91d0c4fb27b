package runc

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A tree gets what is asked for, and nothing beyond it is touched: not by a path with
// "..", and not through a link that leads out.
func TestRootTree(t *testing.T) {
	outside := t.TempDir()
	dir := filepath.Join(outside, "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	tree, err := openRootTree(dir, uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for _, err := range []error{
		tree.mkdir("/a"), tree.mkdir("/a/b"), tree.mkdir("/a"), tree.touch("/a/b/file"), tree.touch("/a/b/file"),
		tree.symlink("b", "/a/in"), tree.mkdir("/a/in/c"),
		tree.symlink("../..", "/a/out"), tree.symlink("/", "/a/top"), tree.mkdir("/a/../../d"),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for path, target := range map[string]string{"a/in": "b", "a/out": "../..", "a/top": "/"} {
		if got, err := os.Readlink(filepath.Join(dir, path)); got != target || err != nil {
			t.Errorf("%s leads to %q, %v; want %q", path, got, err, target)
		}
	}
	for _, path := range []string{"a/b/file", "a/b/c", "d"} {
		if _, err := os.Lstat(filepath.Join(dir, path)); err != nil {
			t.Error(err)
		}
	}
	for name, err := range map[string]error{
		"a folder outside, by a relative link":  tree.mkdir("/a/out/x"),
		"a folder outside, by an absolute link": tree.mkdir("/a/top/x"),
		"a file outside":                        tree.touch("/a/out/x"),
		"a link outside":                        tree.symlink("y", "/a/out/x"),
	} {
		if !errors.Is(err, unix.EXDEV) {
			t.Errorf("%s: %v, want EXDEV", name, err)
		}
	}
	for name, err := range map[string]error{"root": tree.mkdir("/"), "no folder": tree.touch("/none/x"), "a link twice": tree.symlink("b", "/a/in")} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("beside the root there is %v, %v", entries, err)
	}
}
