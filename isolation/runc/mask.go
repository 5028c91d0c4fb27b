package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/isolation"
)

// inMounts runs f in the mount namespace of the process pid, on its own thread.
func inMounts(pid int, f func() error) error {
	mntns, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", "mnt"))
	if err != nil {
		return err
	}
	defer mntns.Close()
	return onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := descriptor.Use(mntns, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNS) }); err != nil {
			return fmt.Errorf("enter the mount namespace: %w", err)
		}
		return f()
	})
}

// mask hides what /proc shows about the host from a domain of the sandbox with the cgroup group,
// and shows the files that tell it its limits. The process pid is, or is about to become, the
// domain's init handler. Then mask receives from handshake: true after the init
// handler has sent its handshake, false if that failed. After true it makes /proc/sys
// read-only, and makes all mounts nosuid. The domain must not contain any file of a function
// yet.
//
// libcontainer can hide paths too, but with a dozen system calls for each path. One is enough
// while nothing in the domain is untrusted.
func (e *Engine) mask(pid int, group *parentCgroup, domain string, handshake <-chan bool) error {
	empty, err := unix.OpenTree(unix.AT_FDCWD, e.empty(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("mask: %w", &os.PathError{Op: "open_tree", Path: e.empty(), Err: err})
	}
	defer unix.Close(empty)
	cgroups, err := e.cgroupMount(group, domain)
	if err != nil {
		return fmt.Errorf("mask: %w", err)
	}
	if cgroups >= 0 {
		defer unix.Close(cgroups)
	}
	err = inMounts(pid, func() error {
		if err := hide(isolation.MaskedPaths(), empty); err != nil {
			return err
		}
		if err := e.showLimits(cgroups); err != nil {
			return err
		}
		if !<-handshake {
			return nil
		}
		// Do not use a detached mount: it counts as a mount namespace of the domain's user
		// namespace, and the init handler has set the limit for those to 0.
		if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
			return &os.PathError{Op: "mount", Path: "/proc/sys", Err: err}
		}
		closed := unix.MountAttr{Attr_set: readOnly | unix.MOUNT_ATTR_NOEXEC}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/proc/sys", 0, &closed); err != nil {
			return fmt.Errorf("make /proc/sys read-only: %w", err)
		}
		nosuid := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
		if err := unix.MountSetattr(unix.AT_FDCWD, "/", unix.AT_RECURSIVE, &nosuid); err != nil {
			return fmt.Errorf("make all mounts nosuid: %w", err)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("mask: %w", err)
	}
	return nil
}

// hide mounts /dev/null over files, and empty, a detached mount of an empty directory, over
// directories. It ignores paths that do not exist.
func hide(paths []string, empty int) error {
	var null unix.Stat_t
	if err := unix.Stat("/dev/null", &null); err != nil {
		return &os.PathError{Op: "stat", Path: "/dev/null", Err: err}
	}
	if null.Mode&unix.S_IFMT != unix.S_IFCHR || null.Rdev != unix.Mkdev(1, 3) {
		return errors.New("/dev/null is not the null device")
	}
	folder := "" // first directory, over which empty is mounted
	for _, path := range paths {
		err := unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
		switch {
		case !errors.Is(err, unix.ENOTDIR): // path is not a directory
		case folder == "":
			folder = path
			err = detached{empty, path}.move()
		default:
			err = unix.Mount(folder, path, "", unix.MS_BIND, "")
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "hide", Path: path, Err: err}
		}
	}
	return nil
}
