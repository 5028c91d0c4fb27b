package main

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kept are the capabilities of the init handler while it works: to become the
// sandbox user in a child, and to signal it (docs/decisions/0001).
const kept = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID | 1<<unix.CAP_KILL

// userLimits are the limits of the domain's user namespace. Without them a process
// without any capability could use up quotas that the host counts on the creator of
// the namespace, the host's root (SEC-21), or make namespaces of its own.
var userLimits = []struct{ name, value string }{
	{"max_user_namespaces", "0"}, // first: its absence shows that /proc/sys is not there
	{"max_pid_namespaces", "0"},
	{"max_net_namespaces", "0"},
	{"max_mnt_namespaces", "0"},
	{"max_ipc_namespaces", "0"},
	{"max_uts_namespaces", "0"},
	{"max_cgroup_namespaces", "0"},
	{"max_time_namespaces", "0"},
	{"max_inotify_instances", "16"},
	{"max_inotify_watches", "8192"},
	{"max_fanotify_groups", "0"},
	{"max_fanotify_marks", "0"},
}

// tieToDaemon makes the kernel kill this process when the thread that created it
// ends, frozen or not (docs/decisions/0033), and hides its memory and
// descriptors from every process that is not the host's root.
func tieToDaemon() error {
	if err := prctlAll(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_PDEATHSIG", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_DUMPABLE", err)
	}
	return nil
}

// writeLimits needs CAP_SYS_RESOURCE in the user namespace. A kernel may lack a
// limit, but not the first, which is older than all that sandboxd needs.
func writeLimits(dir string) error {
	for i, limit := range userLimits {
		err := writeFile(dir+"/"+limit.name, limit.value)
		if i > 0 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeFile writes to a file of the kernel's that exists, in one call. It goes without
// package os, which would have the netpoller look at each.
func writeFile(path, text string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Write(fd, []byte(text))
	if err == nil && n < len(text) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// dropPrivileges leaves the three capabilities of kept and nothing else. The bounding
// set becomes empty: it cannot take away what is permitted already, but it would be
// inherited, and children must have all five sets empty.
func dropPrivileges() error {
	for c := uintptr(0); ; c++ {
		set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0)
		if err == unix.EINVAL { // beyond the last capability of this kernel
			break
		}
		if err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_READ", err)
		}
		if set == 0 {
			continue
		}
		if err := prctlAll(unix.PR_CAPBSET_DROP, c, 0); err != nil {
			return os.NewSyscallError("prctl PR_CAPBSET_DROP", err)
		}
	}
	if err := prctlAll(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0); err != nil {
		return os.NewSyscallError("prctl PR_CAP_AMBIENT_CLEAR_ALL", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	sets := [2]unix.CapUserData{{Effective: kept, Permitted: kept}}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&sets[0])), 0)
	if errno != 0 {
		return os.NewSyscallError("capset", errno)
	}
	return nil
}

// prctlAll calls prctl on every thread: capabilities and the death signal belong to
// threads, and the Go runtime chooses which one forks.
func prctlAll(option int, arg2, arg3 uintptr) error {
	_, _, errno := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, uintptr(option), arg2, arg3, 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
