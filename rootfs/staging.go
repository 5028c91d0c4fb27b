package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// staging is a folder of half-made things. Each is a directory that its maker holds
// an exclusive flock on; the lock dies with the maker, so whoever can lock one has
// found a leftover. No lock is ever waited for.
type staging struct{ dir string }

// openStaging makes the folder if need be and removes what dead makers left in it.
func openStaging(dir string) (staging, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return staging{}, fmt.Errorf("rootfs: make staging folder: %w", err)
	}
	s := staging{dir}
	return s, s.sweep()
}

// sweep removes the stages that nobody holds.
func (s staging) sweep() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("rootfs: list staging folder: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(s.dir, e.Name())
		lock, err := lockDir(path)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // its maker lives, or another sweeper was faster
		}
		if err != nil {
			return fmt.Errorf("rootfs: lock leftover %s: %w", path, err)
		}
		err = os.RemoveAll(path)
		lock.Close()
		if err != nil {
			return fmt.Errorf("rootfs: remove leftover: %w", err)
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
			return nil, fmt.Errorf("rootfs: make stage: %w", err)
		}
		lock, err := lockDir(dir)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue // a sweeper came between: it removes this one
		}
		if err != nil {
			os.Remove(dir)
			return nil, fmt.Errorf("rootfs: lock stage %s: %w", dir, err)
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
	return os.RemoveAll(st.dir)
}

// publish moves name out of the stage to target, durable when it returns. It says
// fs.ErrExist if target is there already and is a directory that holds something.
func (st *stage) publish(name, target string) error {
	if err := unix.Syncfs(int(st.lock.Fd())); err != nil {
		return fmt.Errorf("rootfs: sync stage: %w", err)
	}
	err := os.Rename(filepath.Join(st.dir, name), target)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("rootfs: publish %s: %w", target, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("rootfs: publish: %w", err)
	}
	parent, err := os.Open(filepath.Dir(target))
	if err != nil {
		return fmt.Errorf("rootfs: publish: %w", err)
	}
	defer parent.Close()
	if err := parent.Sync(); err != nil {
		return fmt.Errorf("rootfs: sync %s: %w", parent.Name(), err)
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
