// Package runfolder makes, checks and locks the folders below /run that all daemons of
// a host share. A lock is held by an open file, so it ends with the process that holds
// it, however that ends.
package runfolder

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Default is where daemons keep their folders unless told otherwise.
const Default = "/run/sandboxd"

// Mode lets others pass through a folder and not list it: libcontainer resolves the
// paths of a sandbox's root as the sandbox's user.
const Mode = 0o711

// LockName is the name of the file in a folder that [Lock] locks.
const LockName = "lock"

// Prepare makes the folder dir and its parents, or checks that the one that exists
// cannot be changed by another user. It returns the folder's absolute path.
func Prepare(dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, Mode); err != nil {
		return "", fmt.Errorf("run folder: %w", err)
	}
	fi, err := os.Lstat(dir)
	if err != nil {
		return "", fmt.Errorf("run folder: %w", err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	if !fi.IsDir() || int(st.Uid) != os.Geteuid() || fi.Mode().Perm()&0o022 != 0 {
		return "", fmt.Errorf("run folder %s (%v, owner %d) can be changed by others; use a folder of your own that only you can write: chmod go-w %[1]s", dir, fi.Mode(), st.Uid)
	}
	return dir, nil
}

// Lock opens the lock file of the folder dir, which it makes if it is missing, and
// locks it as how says (flock(2)). Closing the file gives the lock up. With LOCK_NB
// the error of a lock that is held elsewhere is EWOULDBLOCK.
func Lock(dir string, how int) (*os.File, error) {
	path := filepath.Join(dir, LockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
