//go:build integration

package rootfs

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// A program on a file system that is mounted noexec is refused; a sandbox shows it so. In the
// overlay of several layers it can be executed.
func TestNoExec(t *testing.T) {
	dir := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if _, err := prepareDir(t, FunctionOptions{Code: dir}); err != nil { // as it is mounted first
		t.Error(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	_, err := prepareDir(t, FunctionOptions{Code: dir})
	if !errors.Is(err, invalid.ErrNotExecutable) || !strings.Contains(err.Error(), "noexec") {
		t.Errorf("%v", err)
	}
	empty := makeTree(t, ziptest.File{Name: "x"})
	if _, err := prepareDir(t, FunctionOptions{Code: empty, Layers: []string{dir}}); !errors.Is(err, invalid.ErrNotExecutable) {
		t.Errorf("one layer: %v", err)
	}
	if f, err := prepareDir(t, FunctionOptions{Code: empty, Layers: []string{dir, empty}}); err != nil || f.Bootstrap != "/opt/bootstrap" {
		t.Errorf("two layers: %+v, %v", f, err)
	}
}
