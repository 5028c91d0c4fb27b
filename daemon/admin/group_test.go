//go:build integration

package admin

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// The members of a group, and nobody else, may use a socket of a group, and find it. Without the
// group it is root's.
func TestListenGroup(t *testing.T) {
	for _, c := range []struct {
		group          string
		gid            int
		socket, folder os.FileMode
	}{
		{"no-such-group-here", 0, 0o600, runfolder.Mode},
		{"", 0, 0o600, runfolder.Mode},
		{"daemon", 1, 0o660, 0o751},
	} {
		runDir := filepath.Join(t.TempDir(), "run")
		i, err := instance.Acquire(runDir)
		if err != nil {
			t.Fatal(err)
		}
		defer i.Close()
		l, err := ListenGroup(i.Info().AdminSocket(), runDir, c.group)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for path, mode := range map[string]os.FileMode{i.Info().AdminSocket(): c.socket, runDir: c.folder} {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if st := info.Sys().(*syscall.Stat_t); info.Mode().Perm() != mode || st.Uid != 0 || int(st.Gid) != c.gid {
				t.Errorf("%s: %s has mode %v, owner %d and group %d", c.group, path, info.Mode(), st.Uid, st.Gid)
			}
		}
		if again, err := instance.Acquire(runDir); err != nil {
			t.Errorf("the next daemon: %v", err)
		} else {
			again.Close()
		}
	}
}
