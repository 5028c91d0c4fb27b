package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// newUserNS makes a user namespace that maps one user and one group, uid and gid, to the
// host's id.
//
// It takes a process to make one, and Go makes such a process by a fork, which in a
// daemon with a large heap takes longer than all the rest of a sandbox's creation:
// its pages become copy-on-write. This process shares the daemon's memory instead,
// touches none of it, and is killed when the namespace is open.
func newUserNS(uid, gid, id uint32) (ns *os.File, err error) {
	err = onOwnThread(func() error { // the process dies with this thread
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
		return nil, fmt.Errorf("user namespace for files of %d:%d: %w", uid, gid, err)
	}
	return ns, nil
}

// spawnIdle makes a process in new namespaces that waits for its death: by endIdle, or
// that of the calling thread. It shares this one's memory and files.
func spawnIdle(namespaces uintptr) (pid int, err error) {
	// A signal's handler must not run there: it would take this thread's stack for its own.
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

// cloneIdle calls clone(2). The new process runs none of Go: it asks for SIGKILL on
// the death of its parent, ends if its parent is not the process parent by then, and
// waits. It returns the process id, or an errno below zero. Every signal is blocked.
//
//go:noescape
func cloneIdle(flags, parent uintptr) (pid int)

// endIdle ends what spawnIdle made. A kill that fails is tried again: what is not killed
// here dies with the thread, but then nobody reaps it.
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

// writeExisting writes to a file of the kernel's in one call.
func writeExisting(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
