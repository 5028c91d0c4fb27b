package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Names below the state folder of what belongs to the control process. The lock is root's: one
// daemon at a time has the folder.
const (
	controlName = "control"
	controlLock = "control.lock"
)

// controlFolder is the folder of the control process, in which it keeps all that it knows.
type controlFolder struct {
	path string
	uid  uint32   // its owner: a leased id, which nothing else on this host has
	dir  *os.File // open, for Landlock
	lock *os.File
	end  func() error // ends the lease
	keys rootKeys     // beside the folder
}

// close gives up the folder for the next daemon.
func (f *controlFolder) close() error {
	var err error
	if f.end != nil {
		err = f.end()
	}
	for _, file := range []*os.File{f.dir, f.lock} {
		if file != nil {
			file.Close()
		}
	}
	return err
}

// openControlFolder opens the folder, which it makes if it is missing, and leases the id of
// its owner. If that id is in use, it leases another one, and what is in the folder gets a new
// owner. openKeys returns the keys for the state folder; isNew says that it has no control
// folder yet.
func (d *Daemon) openControlFolder(openKeys func(state string, isNew bool) (rootKeys, error)) (_ *controlFolder, err error) {
	f := &controlFolder{}
	defer func() {
		if err != nil {
			err = fmt.Errorf("open the control folder: %w", errors.Join(err, f.close()))
		}
	}()
	state, err := passable(d.cfg.StateDir)
	if err != nil {
		return nil, err
	}
	f.path = filepath.Join(state, controlName)
	if f.lock, err = lockFile(filepath.Join(state, controlLock)); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("another 'sandboxd serve' uses --state-dir %s; choose another folder, or end that daemon ('sandboxd ps' lists daemons)", state)
	}
	if err != nil {
		return nil, err
	}
	// The keys come first: if this start is cut short, the next one finds the folder still new.
	_, err = os.Lstat(f.path)
	if f.keys, err = openKeys(state, errors.Is(err, fs.ErrNotExist)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(f.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	if f.dir, err = os.OpenFile(f.path, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.dir.Fd()), &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	f.uid = st.Uid
	same, err := d.leases.AcquireAt(d.instance.Dir(), st.Uid)
	if err == nil && !same {
		f.uid, err = d.leases.Acquire(d.instance.Dir())
	}
	if err != nil {
		return nil, err
	}
	f.end = func() error { return d.leases.Release(f.uid) }
	if !same {
		if err := giveFolder(f.dir, f.path, int(f.uid)); err != nil {
			return nil, err
		}
	}
	return f, os.NewSyscallError("fchmod", unix.Fchmod(int(f.dir.Fd()), 0o700))
}

// passable returns the path of the folder dir without links, which it makes if it is missing.
// It lets others pass through dir, and makes sure that they can pass through the folders above:
// the control process is no root, and opens its files by their paths.
func passable(dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return "", err
	}
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		if err != nil {
			return "", err
		}
		if mode := info.Mode().Perm(); mode&0o001 == 0 {
			if at != dir {
				return "", fmt.Errorf("%s lies below %s, which users other than root may not pass through (mode %04o), and the control process is one; choose another --state-dir, or chmod o+x %[2]s", dir, at, mode)
			}
			if err := os.Chmod(at, mode|0o111); err != nil {
				return "", err
			}
		}
		if at == filepath.Dir(at) {
			return dir, nil
		}
	}
}

// lockFile makes a file of root's and locks it. The error is unix.EWOULDBLOCK if another
// process has it locked.
func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// maxFolderDepth bounds the folders in one another; the control process makes a few.
const maxFolderDepth = 32

// giveFolder makes uid the owner of the folder dir, which path names in messages, and of what
// is in it. The process that has filled it may have been taken over: links are not followed,
// and whatever is neither a folder nor a file with one name is an error. The folder itself
// comes last, so that a call that was cut short is made again.
func giveFolder(dir *os.File, path string, uid int) error {
	return giveBelow(dir, path, uid, 0)
}

func giveBelow(dir *os.File, path string, uid, depth int) error {
	if depth > maxFolderDepth {
		return fmt.Errorf("%s: more than %d folders in one another; remove it", path, maxFolderDepth)
	}
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := giveEntry(dir, name, filepath.Join(path, name), uid, depth); err != nil {
			return err
		}
	}
	return os.NewSyscallError("fchown", unix.Fchown(int(dir.Fd()), uid, uid))
}

// giveEntry is giveBelow for what has that name in dir. It changes what it has opened, so
// nothing can take its place meanwhile.
func giveEntry(dir *os.File, name, path string, uid, depth int) error {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		return odd(path)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	switch kind := st.Mode & unix.S_IFMT; {
	case kind == unix.S_IFDIR:
		return giveBelow(f, path, uid, depth+1)
	case kind == unix.S_IFREG && st.Nlink == 1:
		return os.NewSyscallError("fchown", unix.Fchown(fd, uid, uid))
	}
	return odd(path)
}

// odd is the error for what the control process does not make.
func odd(path string) error {
	return fmt.Errorf("%s is neither a folder nor a file with one name, which sandboxd does not make; remove it", path)
}
