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
		store := openTestStore(t, dir)
		image, ref, err := store.TmpTemplate(t.Context(), mb<<20)
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
		again, _, err := store.TmpTemplate(t.Context(), mb<<20)
		var st2 unix.Stat_t
		if err != nil || again != image || unix.Stat(again, &st2) != nil || st2.Ino != st.Ino {
			t.Errorf("second time %s, %v: made again", again, err)
		}
		ziptest.WantTree(t, dir, "staging", "sha256", "sha256/"+ref.Digest, "sha256/"+ref.Digest+"/entry.json",
			"sha256/"+ref.Digest+"/tree", "sha256/"+ref.Digest+"/tree/tmp.ext4")
	}
}

// S-11: an image that is damaged is made anew.
func TestTmpTemplateDamaged(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	image := ""
	for _, damage := range []func() error{
		func() error { return nil }, // not yet there
		func() error { return os.Truncate(image, 1<<20) },
		func() error { return os.WriteFile(image, []byte("x"), 0o600) },
		func() error { // of the same size
			f, err := os.OpenFile(image, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte{0xff}, superblockAt)
				err = errors.Join(err, f.Close())
			}
			return err
		},
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		var ref *Ref
		var err error
		if image, ref, err = store.TmpTemplate(t.Context(), 8<<20); err != nil {
			t.Fatal(err)
		}
		if err := checkImage(image, 8<<20); err != nil {
			t.Error(err)
		}
		closeRef(t, ref)
	}
}

func TestTmpTemplateConcurrently(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		store := openTestStore(t, dir)
		wg.Go(func() {
			if _, _, err := store.TmpTemplate(t.Context(), 8<<20); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if images, err := filepath.Glob(filepath.Join(dir, "sha256/*/tree/tmp.ext4")); err != nil || len(images) != 1 {
		t.Errorf("%q, %v", images, err)
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
}

func TestTmpTemplateErrors(t *testing.T) {
	if _, _, err := openTestStore(t, t.TempDir()).TmpTemplate(t.Context(), 0); !errors.Is(err, invalid.ErrTooLarge) {
		t.Errorf("error %v for no bytes", err)
	}
	_, err := findTool("mke2fs-that-nobody-has")
	if !errors.Is(err, invalid.ErrTool) || !host.Lacks(err, host.Programs) || !strings.Contains(err.Error(), "apt-get install e2fsprogs") {
		t.Errorf("error %v, want invalid.ErrTool and the fix", err)
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
