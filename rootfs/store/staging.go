package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// staging is a folder of stages: what is being made, and what is being removed. Each is
// a directory on which the process at work holds an exclusive flock. The lock dies with
// the process, so a stage that can be locked is a leftover. No lock is ever waited for.
type staging struct {
	dir      string
	leftover error // why a leftover could not be removed when the store was opened; nil if all were
}

// The names of stages begin with what they are.
const (
	halfMade = "new-"  // an entry that is being made
	setAside = "gone-" // an entry that was taken out of the store and is being removed
)

// openStaging makes the folder if need be and removes what dead processes have left half
// made. [Store.Collect] removes the rest: a start must not wait for that, which may be large.
func openStaging(dir string) (staging, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return staging{}, fmt.Errorf("make staging folder: %w", err)
	}
	s := staging{dir: dir}
	names, err := s.names()
	if err != nil {
		return staging{}, err
	}
	for _, name := range names {
		if strings.HasPrefix(name, setAside) {
			continue
		}
		if _, err := s.sweep(context.Background(), name); err != nil {
			s.leftover = err
		}
	}
	return s, nil
}

// names lists the stages.
func (s staging) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list staging folder: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// sweep removes the stage of that name unless a process works on it, and reports whether
// it did.
func (s staging) sweep(ctx context.Context, name string) (removed bool, err error) {
	path := filepath.Join(s.dir, name)
	lock, err := lockDir(path)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
		return false, nil // its process lives, or another sweeper was faster
	}
	if err == nil {
		defer lock.Close()
		if !sameFile(lock, path) { // another sweeper had removed it before it was locked
			return false, nil
		}
		err = removeStage(ctx, lock, path)
	}
	if err != nil {
		return false, fmt.Errorf("remove leftover %s: %w", path, invalid.Cause(err))
	}
	return true, nil
}

// stage is one half-made thing, owned by its maker until close.
type stage struct {
	dir  string
	lock *os.File
}

// begin makes an empty stage.
func (s staging) begin() (*stage, error) {
	for {
		dir, err := os.MkdirTemp(s.dir, halfMade)
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

// adopt makes a stage of the directory at path, on which the caller holds the exclusive
// lock. When adopt returns, the directory has left its old place for good, also after a
// power cut. It needs no room on the disk, which may be full.
func (s staging) adopt(path string, lock *os.File) (*stage, error) {
	for {
		dir := filepath.Join(s.dir, fmt.Sprintf("%s%08x", setAside, rand.Uint32()))
		err := os.Rename(path, dir)
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
			continue // the name is taken
		}
		if err != nil {
			return nil, fmt.Errorf("set aside: %w", err)
		}
		if err := errors.Join(syncDir(filepath.Dir(path)), syncDir(s.dir)); err != nil {
			return nil, err // it is a leftover now
		}
		return &stage{dir: dir, lock: lock}, nil
	}
}

// close removes what is left in the stage and gives up the lock.
func (st *stage) close() error { return st.remove(context.Background()) }

// remove is close, but stops when ctx ends. The rest is a leftover then.
func (st *stage) remove(ctx context.Context) error {
	defer st.lock.Close()
	return removeStage(ctx, st.lock, st.dir)
}

// removeStage removes the directory at path, which is open as top, with all that is in
// it. Who has filled it may have made a tree deeper than descriptors or stack go, so it
// is made flat: what a directory holds moves to the top, under a number, before it goes.
func removeStage(ctx context.Context, top *os.File, path string) error {
	f := flattener{ctx: ctx, top: int(top.Fd())}
	dir, err := openDir(f.top, ".")
	if err != nil {
		return fmt.Errorf("open stage: %w", err)
	}
	defer dir.Close()
	for {
		none := true
		err := eachName(dir, func(name string) error {
			none = false
			defer failpoint.Pass(failpoint.EntryHalfRemoved)
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
	ctx   context.Context // the removal stops when it ends
	top   int
	moved int // the last number that was given
}

// remove removes what has that name in top, or, of a directory, all but the
// directories in it, which move to the top.
func (f *flattener) remove(name string) error {
	if err := f.ctx.Err(); err != nil {
		return err
	}
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
		if err := f.ctx.Err(); err != nil {
			return err
		}
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

// publish moves name out of the stage to target. When it returns, the disk has the data of the
// files, and the name. It says fs.ErrExist if target is there already and is a directory that
// holds something.
func (st *stage) publish(name, target string) error {
	if err := writeBack(filepath.Join(st.dir, name)); err != nil {
		return fmt.Errorf("write back stage: %w", err)
	}
	err := os.Rename(filepath.Join(st.dir, name), target)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("publish %s: %w", target, fs.ErrExist)
	}
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	failpoint.Pass(failpoint.EntryPublished)
	return syncDir(filepath.Dir(target))
}

// writeBack has the disk write the data of all files below dir, and waits for it. What other
// programs have written to the same file system is theirs to wait for, which could take
// minutes: syncfs would. Nor does it commit the journal for each file. The names and sizes of the
// files follow with the journal when the entry's new name is synced; after a power cut on a
// file system that orders them otherwise, an entry is short of its description, and made anew.
func writeBack(dir string) error {
	const begin, end = unix.SYNC_FILE_RANGE_WRITE, unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
	for _, flags := range []int{begin, end} { // so that the disk has many files to write at once
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
			if errors.Is(err, fs.ErrPermission) {
				return nil // not root, as in a test: a power cut shows as damage
			}
			if err != nil {
				return err
			}
			defer f.Close()
			if err = unix.SyncFileRange(int(f.Fd()), 0, 0, flags); errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
				err = f.Sync() // a file system that does not know it
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// syncDir makes durable which names a directory has.
func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// lockDir opens a directory and locks it exclusively, or fails at once.
func lockDir(path string) (*os.File, error) { return flockDir(path, unix.LOCK_EX) }

// testHookOpened is called when a directory is open and not yet locked. Tests do there what
// another process may do.
var testHookOpened = func(path string) {}

// flockDir opens a directory, without following a link, and locks it, or fails at once.
func flockDir(path string, how int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	testHookOpened(path)
	if err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// unlock gives up a lock and closes its file. Closing alone is not enough: between fork and
// exec a child has the file open too, and the lock lasts until the last one is closed.
func unlock(f *os.File) error {
	return errors.Join(os.NewSyscallError("flock", unix.Flock(int(f.Fd()), unix.LOCK_UN)), f.Close())
}

func sameFile(f *os.File, path string) bool {
	a, errA := f.Stat()
	b, errB := os.Lstat(path)
	return errA == nil && errB == nil && os.SameFile(a, b)
}
