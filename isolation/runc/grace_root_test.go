//go:build integration

package runc

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func cgroupsOfProcess(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// The early wait for a move moves nobody.
func TestBeginMove(t *testing.T) {
	own := engine.place.own
	if (own == nil) != (engine.place.host.Mode == ModeLegacy) {
		t.Fatalf("on a %s host the way to wait is %v", engine.place.host.Mode, own)
	}
	before := cgroupsOfProcess(t)
	if err := own.beginMove(); err != nil {
		t.Error(err)
	}
	if after := cgroupsOfProcess(t); after != before {
		t.Errorf("cgroups before:\n%safter:\n%s", before, after)
	}
}

// Nor does it bring a daemon back that was moved since, or one whose path is that of a
// cgroup namespace while /sys/fs/cgroup shows the whole tree.
func TestBeginMoveElsewhere(t *testing.T) {
	host, own := engine.place.host, engine.place.own
	if own == nil {
		return // TestBeginMove says whether it may be
	}
	root := unifiedRoot
	if host.Mode == ModeUnified {
		root = cgroupRoot
	}
	made := filepath.Join(root, engine.place.group, "elsewhere")
	if err := os.Mkdir(made, 0o755); err != nil {
		t.Fatal(err)
	}
	move := func(made string) {
		if err := os.WriteFile(filepath.Join(made, "cgroup.procs"), []byte("0"), 0); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() {
		if _, err := own.procs.WriteString("0"); err != nil {
			t.Error(err)
		}
		if err := unix.Rmdir(made); err != nil {
			t.Error(err)
		}
	})
	move(made)
	moved := cgroupsOfProcess(t)
	stays := func(what string, f *foothold) {
		t.Helper()
		if err := f.beginMove(); err != nil {
			t.Error(err)
		}
		if now := cgroupsOfProcess(t); now != moved {
			t.Errorf("%s: the process has moved:\n%sfrom:\n%s", what, now, moved)
			move(made)
		}
	}
	stays("moved since", own)
	var f *foothold
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
		f = newFoothold(host)
		return f.beginMove()
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	stays("in a cgroup namespace", nil)
}
