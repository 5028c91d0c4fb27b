package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// newUserNS creates a user namespace that maps the user uid and the group gid to the host id
// id.
//
// Creating one takes a process. Go would fork it, which in a daemon with a large heap takes
// longer than the rest of a sandbox's creation, because all pages become copy-on-write. The
// process of spawnIdle shares the daemon's memory instead, does not touch it, and is killed
// when the namespace is open.
func newUserNS(uid, gid, id uint32) (ns *os.File, err error) {
	err = onOwnThread(func() error { // the process is killed when this thread ends
		pid, err := spawnIdle(unix.CLONE_NEWUSER)
		if err != nil {
			return os.NewSyscallError("clone", err)
		}
		proc := filepath.Join("/proc", strconv.Itoa(pid))
		err = writeExisting(filepath.Join(proc, "uid_map"), fmt.Sprintf("%d %d 1", uid, id))
		if err == nil {
			err = writeExisting(filepath.Join(proc, "gid_map"), fmt.Sprintf("%d %d 1", gid, id))
		}
		if err == nil {
			ns, err = os.Open(filepath.Join(proc, "ns", "user"))
		}
		return errors.Join(err, endIdle(pid))
	})
	if err != nil {
		return nil, fmt.Errorf("create a user namespace for files of %d:%d: %w", uid, gid, err)
	}
	return ns, nil
}

// spawnIdle starts a process in new namespaces that does nothing until it is killed, by endIdle
// or because the calling thread ends. It shares memory and files with this process.
func spawnIdle(namespaces uintptr) (pid int, err error) {
	// Block all signals: a handler must not run in the new process, because it would use the
	// stack of this thread.
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return 0, err
	}
	r := cloneIdle(namespaces|unix.CLONE_VM|unix.CLONE_FILES|uintptr(unix.SIGCHLD), uintptr(os.Getpid()))
	err = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	if r < 0 {
		return 0, unix.Errno(-r)
	}
	if err != nil {
		return 0, errors.Join(err, endIdle(r))
	}
	return r, nil
}

// cloneIdle calls clone(2). The new process runs no Go code: it requests SIGKILL as its parent
// death signal, exits if its parent is not the process parent any more, and pauses. cloneIdle
// returns the process id, or a negative errno. The caller must have blocked every signal.
//
//go:noescape
func cloneIdle(flags, parent uintptr) (pid int)

// endIdle kills and reaps a process of spawnIdle. It tries again if the kill fails: otherwise
// the process would be killed when the thread ends, and not be reaped.
func endIdle(pid int) error {
	var err error
	for range 3 {
		if err = unix.Kill(pid, unix.SIGKILL); err == nil {
			break
		}
	}
	if err != nil {
		return os.NewSyscallError("kill", err)
	}
	for {
		_, err := unix.Wait4(pid, nil, 0, nil)
		if err != unix.EINTR {
			return os.NewSyscallError("wait4", err)
		}
	}
}

// writeExisting writes text to an existing file, such as one in /proc, with one system call.
func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
