//go:build integration

package blob

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/forgetfs"
)

func TestMain(m *testing.M) { os.Exit(forgetfs.Main(m)) }

// small returns a folder on a disk of so many bytes.
func small(t *testing.T, bytes int64) string {
	t.Helper()
	dir := t.TempDir()
	fs, err := forgetfs.Mount(dir, t.TempDir(), bytes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// A full disk refuses an upload, which leaves nothing; what is there can be read, and what is
// removed makes room.
func TestDiskFull(t *testing.T) {
	dir := small(t, 5*chunk)
	s := open(t, dir, Options{})
	there := put(t, s, strings.Repeat("x", 3*chunk))
	if pin, err := s.Put(t.Context(), io.LimitReader(endless{}, 3*chunk), 1<<30); pin != nil || !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want %v", err, ErrNoSpace)
	} else {
		t.Log(err)
	}
	wantFiles(t, dir, file(there))
	if got, err := get(s, there); err != nil || len(got) != 3*chunk {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if err := s.Remove(there); err != nil {
		t.Fatal(err)
	}
	put(t, s, strings.Repeat("y", 3*chunk))
}

// The floor is kept however much an upload brings: at no time is less free.
func TestFloorIsKept(t *testing.T) {
	dir := small(t, 6*chunk)
	s := open(t, dir, Options{Floor: 2 * chunk})
	there := put(t, s, strings.Repeat("x", 2*chunk))
	if _, err := s.Put(t.Context(), readerFunc(func(p []byte) (int, error) {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize < 2*chunk {
			t.Errorf("%d blocks are free, %v", st.Bavail, err)
		}
		return len(p), nil
	}), 1<<30); !errors.Is(err, ErrNoSpace) {
		t.Errorf("%v, want %v", err, ErrNoSpace)
	}
	wantFiles(t, dir, file(there))
	put(t, s, strings.Repeat("z", 2*chunk)) // what may be taken can be taken
}
