package store

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// TestTmpTemplate (ENV-30): makeImage itself checks mode, inodes and usable bytes of
// what it made; here the file system is checked by e2fsck and for its size.
func TestTmpTemplate(t *testing.T) {
	for _, mb := range []int64{1, 512, 10_240} {
		dir := t.TempDir()
		image, err := TmpTemplate(t.Context(), dir, mb<<20)
		if err != nil {
			t.Fatal(err)
		}
		fsck, err := findTool("e2fsck")
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(fsck, "-f", "-n", image).CombinedOutput(); err != nil {
			t.Errorf("e2fsck of %d MiB: %v\n%s", mb, err, out)
		}
		if err := checkImage(image, mb<<20); err != nil {
			t.Error(err)
		}
		if err := checkImage(image, (mb<<20)*103/100+4<<20); err == nil {
			t.Errorf("image of %d MiB has room for 3 %% more", mb)
		}
		var st unix.Stat_t
		if err := unix.Stat(image, &st); err != nil {
			t.Fatal(err)
		}
		if used := st.Blocks * 512; used > 2<<20+(mb<<20)/500 {
			t.Errorf("image of %d MiB is not sparse: %d bytes", mb, used)
		}
		again, err := TmpTemplate(t.Context(), dir, mb<<20)
		var st2 unix.Stat_t
		if err != nil || again != image || unix.Stat(again, &st2) != nil || st2.Ino != st.Ino {
			t.Errorf("second time %s, %v: made again", again, err)
		}
		ziptest.WantTree(t, dir, "staging", filepath.Base(image))
	}
}

// S-11: an image that is damaged is made anew.
func TestTmpTemplateDamaged(t *testing.T) {
	dir := t.TempDir()
	for _, damage := range []func(string) error{
		func(string) error { return nil }, // not yet there
		func(image string) error { return os.Truncate(image, 1<<20) },
		func(image string) error { return os.WriteFile(image, []byte("x"), 0o600) },
	} {
		if err := damage(filepath.Join(dir, "tmp-v1-8388608.ext4")); err != nil {
			t.Fatal(err)
		}
		image, err := TmpTemplate(t.Context(), dir, 8<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkImage(image, 8<<20); err != nil {
			t.Error(err)
		}
	}
}

func TestTmpTemplateConcurrently(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if _, err := TmpTemplate(t.Context(), dir, 8<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	ziptest.WantTree(t, dir, "staging", "tmp-v1-8388608.ext4")
}

func TestTmpTemplateErrors(t *testing.T) {
	if _, err := TmpTemplate(t.Context(), t.TempDir(), 0); !errors.Is(err, invalid.TooLarge) {
		t.Errorf("error %v for no bytes", err)
	}
	_, err := findTool("mke2fs-that-nobody-has")
	if !errors.Is(err, invalid.Tool) || !host.Lacks(err, host.Programs) || !strings.Contains(err.Error(), "apt-get install e2fsprogs") {
		t.Errorf("error %v, want invalid.Tool and the fix", err)
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := os.WriteFile(image, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkImage(image, 1); err == nil {
		t.Error("zeros pass as a file system")
	}
}
