package confine

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/internal/descriptor"
)

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

// NeedLandlock returns a [host.Unsupported] if the kernel's Landlock is off or older than the
// version given: 2 knows files with several names, 4 ports.
func NeedLandlock(version int) error {
	lacking := &host.Unsupported{Feature: host.Landlock, Fix: "add landlock to the kernel's lsm= list, or use a newer kernel"}
	switch has := LandlockVersion(); {
	case has == 0:
		lacking.Need = "the kernel has no Landlock, or it is off"
	case has < version:
		lacking.Need = fmt.Sprintf("the kernel has version %d of Landlock, and it takes version %d", has, version)
	default:
		return nil
	}
	return lacking
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
// and execute what is readable, and what is needed.
func (n Needs) landlock() error {
	least := 1
	if n.Links {
		least = 2
	}
	if err := NeedLandlock(least); err != nil {
		return err
	}
	attr, size := rights(LandlockVersion())
	if n.Connect {
		attr.Handled_access_net &^= unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
	}
	ruleset, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return fmt.Errorf("landlock: %w", os.NewSyscallError("landlock_create_ruleset", errno))
	}
	defer unix.Close(int(ruleset))
	for _, path := range readable {
		if err := allowPath(ruleset, path, unix.LANDLOCK_ACCESS_FS_READ_FILE|unix.LANDLOCK_ACCESS_FS_EXECUTE); err != nil {
			return err
		}
	}
	for _, path := range n.Files {
		if err := allowPath(ruleset, path, unix.LANDLOCK_ACCESS_FS_READ_FILE|unix.LANDLOCK_ACCESS_FS_READ_DIR); err != nil {
			return err
		}
	}
	folders := func(list []*os.File, access uint64) error {
		for _, f := range list {
			if err := descriptor.Use(f, func(fd int) error { return allow(ruleset, fd, access) }); err != nil {
				return fmt.Errorf("landlock: %s: %w", f.Name(), err)
			}
		}
		return nil
	}
	if err := folders(n.Folders, attr.Handled_access_fs); err != nil {
		return err
	}
	if err := folders(n.Readable, unix.LANDLOCK_ACCESS_FS_READ_FILE|unix.LANDLOCK_ACCESS_FS_READ_DIR); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0, 0); errno != 0 {
		return fmt.Errorf("landlock: %w", os.NewSyscallError("landlock_restrict_self", errno))
	}
	return nil
}

// allowPath is allow for a path, whose links are followed, if it exists.
func allowPath(ruleset uintptr, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err == nil {
		defer unix.Close(fd)
		var st unix.Stat_t
		if err = unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			access &^= unix.LANDLOCK_ACCESS_FS_READ_DIR // which a file has not
		}
		if err == nil {
			err = allow(ruleset, fd, access)
		}
	}
	if err != nil {
		return fmt.Errorf("landlock: %s: %w", path, err)
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
