package confine

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoLandlock says that the kernel has no Landlock, or that it is off.
var ErrNoLandlock = errors.New("the kernel has no Landlock")

// readable is what the dynamic loader and the Go runtime read when a program starts.
// What does not exist is left out.
var readable = []string{"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/sys/kernel/mm/transparent_hugepage"}

// LandlockVersion returns the version of the kernel's interface, 0 if there is none.
func LandlockVersion() int {
	v, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(v)
}

// rights are those that Landlock can take in a version of its interface, and the size of
// the structure that it knows (linux/landlock.h).
func rights(version int) (a unix.LandlockRulesetAttr, size uintptr) {
	files := map[int]uint{1: 13, 2: 14, 3: 15, 4: 15} // how many there are of files'
	a.Handled_access_fs, size = 1<<16-1, unsafe.Offsetof(a.Handled_access_net)
	if n, ok := files[version]; ok {
		a.Handled_access_fs = 1<<n - 1
	}
	if version >= 4 {
		a.Handled_access_net, size = unix.LANDLOCK_ACCESS_NET_BIND_TCP|unix.LANDLOCK_ACCESS_NET_CONNECT_TCP, unsafe.Offsetof(a.Scoped)
	}
	if version >= 6 {
		a.Scoped = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
		size = unsafe.Offsetof(a.Scoped) + unsafe.Sizeof(a.Scoped)
	}
	return a, size
}

// landlock takes every right that Landlock knows from the calling thread, but to read
// and execute what is readable, and all rights in the folders.
func landlock(folders ...*os.File) error {
	version := LandlockVersion()
	if version == 0 {
		return ErrNoLandlock
	}
	attr, size := rights(version)
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("confine: Landlock: %w", os.NewSyscallError("landlock_create_ruleset", errno))
	}
	defer unix.Close(int(ruleset))
	for _, path := range readable {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err == nil {
			err = allow(ruleset, fd, unix.LANDLOCK_ACCESS_FS_READ_FILE|unix.LANDLOCK_ACCESS_FS_EXECUTE)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("confine: Landlock: %s: %w", path, err)
		}
	}
	for _, f := range folders {
		if err := allow(ruleset, int(f.Fd()), attr.Handled_access_fs); err != nil {
			return fmt.Errorf("confine: Landlock: %s: %w", f.Name(), err)
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return fmt.Errorf("confine: Landlock: %w", os.NewSyscallError("landlock_restrict_self", errno))
	}
	return nil
}

// allow adds to the ruleset that what is at and below fd may be used so.
func allow(ruleset uintptr, fd int, access uint64) error {
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, ruleset, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("landlock_add_rule", errno)
	}
	return nil
}
