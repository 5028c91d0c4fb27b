package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// staging is a folder of half-made things. Each is a directory that its maker holds
// an exclusive flock on; the lock dies with the maker, so whoever can lock one has
// found a leftover. No lock is ever waited for.
type staging struct {
	dir      string
	leftover error // why something stayed that a dead maker has left; nil if nothing did
}

// openStaging makes the folder if need be and removes what dead makers left in it.
func openStaging(dir string) (staging, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return staging{}, fmt.Errorf("make staging folder: %w", err)
	}
	s := staging{dir: dir}
	return s, s.sweep()
}

// sweep removes the stages that nobody holds. What cannot be removed stays, and is no
// reason not to make others: leftover says why it stayed.
func (s *staging) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list staging folder: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		lock, err := lockDir(path)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // its maker lives, or another sweeper was faster
		}
		if err == nil {
			err = removeStage(lock, path)
			lock.Close()
		}
		if err != nil {
			s.leftover = fmt.Errorf("remove leftover %s: %w", path, err)
		}
	}
	return nil
}

// stage is one half-made thing, owned by its maker until close.
type stage struct {
	dir  string
	lock *os.File
}

// begin makes an empty stage.
func (s staging) begin() (*stage, error) {
	for {
		dir, err := os.MkdirTemp(s.dir, "new-")
		if err != nil {
			return nil, fmt.Errorf("make stage: %w", err)
		}
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // a sweeper came between: it removes this one
		}
		if err != nil {
			os.Remove(dir)
			return nil, fmt.Errorf("lock stage %s: %w", dir, err)
		}
		if !sameFile(lock, dir) { // locked only after a sweeper had removed it
			lock.Close()
			continue
		}
		return &stage{dir: dir, lock: lock}, nil
	}
}

// close removes what is left in the stage and gives up the lock.
func (st *stage) close() error {
	defer st.lock.Close()
	return removeStage(st.lock, st.dir)
}

// removeStage removes the directory at path, which is open as top, with all that is in
// it. Who has filled it may have made a tree deeper than descriptors or stack go, so it
// is made flat: what a directory holds moves to the top, under a number, before it goes.
func removeStage(top *os.File, path string) error {
	f := flattener{top: int(top.Fd())}
	dir, err := openDir(f.top, ".")
	if err != nil {
		return fmt.Errorf("open stage: %w", err)
	}
	defer dir.Close()
	for {
		none := true
		err := eachName(dir, func(name string) error {
			none = false
			return f.remove(name)
		})
		if errors.Is(err, unix.EXDEV) { // of an overlay's lower layer, which no extraction has filled
			return os.RemoveAll(path)
		}
		if err != nil {
			return err
		}
		if none {
			return os.Remove(path)
		}
		if _, err := dir.Seek(0, io.SeekStart); err != nil { // what has moved up may not have been seen
			return err
		}
	}
}

// flattener removes what is in the open directory top.
type flattener struct {
	top   int
	moved int // the last number that was given
}

// remove removes what has that name in top, or, of a directory, all but the
// directories in it, which move to the top.
func (f *flattener) remove(name string) error {
	isDir, err := unlink(f.top, name)
	if !isDir {
		return err
	}
	dir, err := openDir(f.top, name)
	if err != nil {
		return fmt.Errorf("open %q: %w", invalid.Shorten(name), err)
	}
	defer dir.Close()
	err = eachName(dir, func(inside string) error {
		isDir, err := unlink(int(dir.Fd()), inside)
		if !isDir {
			return err
		}
		return f.moveUp(int(dir.Fd()), inside)
	})
	if err != nil {
		return err
	}
	_, err = unlink(f.top, name) // is there still if it changed while it was read
	return err
}

// moveUp moves a directory to the top.
func (f *flattener) moveUp(at int, name string) error {
	for {
		f.moved++
		err := unix.Renameat(at, name, f.top, strconv.Itoa(f.moved)) // in place of an empty directory at most
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTDIR):
			continue // the number is taken
		}
		return fmt.Errorf("move %q: %w", invalid.Shorten(name), err)
	}
}

// unlink removes a file or an empty directory, and says if it is a directory that holds
// something. What is gone is removed.
func unlink(at int, name string) (full bool, err error) {
	err = unix.Unlinkat(at, name, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(at, name, unix.AT_REMOVEDIR)
	}
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		return true, nil
	}
	return false, fmt.Errorf("remove %q: %w", invalid.Shorten(name), err)
}

func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// eachName calls do for what is in a directory.
func eachName(dir *os.File, do func(name string) error) error {
	for {
		names, err := dir.Readdirnames(1000)
		for _, name := range names {
			if err := do(name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", invalid.Shorten(dir.Name()), err)
		}
	}
}

// publish moves name out of the stage to target, durable when it returns. It says
// fs.ErrExist if target is there already and is a directory that holds something.
func (st *stage) publish(name, target string) error {
	if err := unix.Syncfs(int(st.lock.Fd())); err != nil {
		return fmt.Errorf("sync stage: %w", err)
	}
	err := os.Rename(filepath.Join(st.dir, name), target)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("publish %s: %w", target, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	parent, err := os.Open(filepath.Dir(target))
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", parent.Name(), err)
	}
	return nil
}

// lockDir opens a directory and takes its lock, or fails at once.
func lockDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
