package descriptor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// open makes a file with a name of its own.
func open(t *testing.T, dir, name string) (*os.File, uint64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(f.Name(), &st); err != nil {
		t.Fatal(err)
	}
	return f, st.Ino
}

// While they are borrowed, descriptors lead to their files, even if those are closed and
// others are opened.
func TestBorrowedStayOpen(t *testing.T) {
	dir := t.TempDir()
	a, inodeA := open(t, dir, "a")
	b, inodeB := open(t, dir, "b")
	want := errors.New("returned")
	err := UseAll([]*os.File{a, b}, func(fds []int) error {
		if err := errors.Join(a.Close(), b.Close()); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"c", "d", "e"} {
			f, _ := open(t, dir, name)
			defer f.Close()
		}
		for i, inode := range []uint64{inodeA, inodeB} {
			var st unix.Stat_t
			if err := unix.Fstat(fds[i], &st); err != nil || st.Ino != inode {
				t.Errorf("descriptor %d leads to inode %d, %v; want %d", i, st.Ino, err, inode)
			}
		}
		return want
	})
	if err != want {
		t.Errorf("%v, want what the function returned", err)
	}
	for _, files := range [][]*os.File{{a}, {b, a}, {nil}} {
		err := UseAll(files, func([]int) error { t.Error("called for a closed file"); return nil })
		if err == nil || files[0] != nil && !errors.Is(err, os.ErrClosed) {
			t.Errorf("%v, want that it is closed", err)
		}
	}
	if err := UseAll(nil, func(fds []int) error { return want }); err != want {
		t.Errorf("of no files: %v", err)
	}
}

// The mode of a file stays as it is.
func TestModeStays(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for range 2 {
		err := Use(r, func(fd int) error {
			flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			if flags&unix.O_NONBLOCK == 0 {
				t.Error("the pipe is in blocking mode")
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
}
