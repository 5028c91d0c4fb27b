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

// A detached mount is not attached to a mount tree. It exists as a descriptor until it is
// moved to its target in a domain, or closed.
type detached struct {
	fd     int
	target string
}

const readOnly = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// A mapper maps the owners of a mount's files into a domain: the owner of the mounted
// directory appears as root, and all others as nobody. So no file of a host user belongs to
// the sandbox user.
type mapper struct {
	base uint32   // first host id of the domain's range
	root *os.File // user namespace for directories that host root owns; nil maps no owner
}

// clone returns a detached read-only mount of the host's path, without mounts below it. If the
// file system cannot map owners, all files appear as owned by nobody.
func (m mapper) clone(path string) (int, error) {
	// The owner of a code folder may have replaced it by a link since it was checked.
	at, err := unix.Openat2(unix.AT_FDCWD, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return -1, &os.PathError{Op: "open without following links", Path: path, Err: err}
	}
	defer unix.Close(at)
	fd, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	if err := m.restrict(fd); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

func (m mapper) restrict(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	userns := m.root
	if userns == nil {
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: readOnly})
	}
	if st.Uid != 0 || st.Gid != 0 {
		var err error
		if userns, err = newUserNS(st.Uid, st.Gid, m.base); err != nil {
			return err
		}
		defer userns.Close()
	}
	err := descriptor.Use(userns, func(userns int) error {
		attr := unix.MountAttr{Attr_set: readOnly | unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns)}
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr)
	})
	if errors.Is(err, unix.EINVAL) {
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: readOnly})
	}
	return err
}

// stack returns a detached read-only overlay of several directories, later ones on top.
// Overlayfs takes its layers by path, so stack mounts them below scratch, in a mount namespace
// that ends with its thread. The overlay keeps the layers.
func (m mapper) stack(sources []string, scratch string) (fd int, err error) {
	fd = -1
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make mounts private: %w", err)
		}
		if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=700,size=64k"); err != nil {
			return fmt.Errorf("mount %s: %w", scratch, err)
		}
		lower := ""
		for i, src := range sources {
			dir := filepath.Join(scratch, strconv.Itoa(i))
			if err := os.Mkdir(dir, 0o700); err != nil {
				return err
			}
			layer, err := m.clone(src)
			if err != nil {
				return err
			}
			err = unix.MoveMount(layer, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
			unix.Close(layer)
			if err != nil {
				return &os.PathError{Op: "move_mount", Path: dir, Err: err}
			}
			if lower != "" {
				lower = ":" + lower
			}
			lower = dir + lower // overlayfs takes the topmost layer first
		}
		var err error
		fd, err = newFS("overlay", readOnly, "lowerdir", lower)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("create an overlay of %q: %w", sources, err)
	}
	return fd, nil
}

// CheckMounts creates and drops the overlays that sandboxes with these mounts need. So folders
// that the kernel does not lay over each other are refused before there is a sandbox.
func (e *Engine) CheckMounts(mounts []isolation.Mount) error {
	for _, m := range mounts {
		if len(m.Sources) < 2 {
			continue
		}
		fd, err := mapper{}.stack(m.Sources, e.scratch())
		if err != nil {
			return err
		}
		unix.Close(fd)
	}
	return nil
}

// newFS returns a detached mount of a new file system. options are pairs of name and value.
func newFS(kind string, attrs int, options ...string) (int, error) {
	ctx, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(ctx)
	for i := 0; i+1 < len(options); i += 2 {
		if err := unix.FsconfigSetString(ctx, options[i], options[i+1]); err != nil {
			return -1, fmt.Errorf("%s option %s=%s: %w", kind, options[i], options[i+1], err)
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return -1, fmt.Errorf("create %s: %w", kind, err)
	}
	fd, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", kind, err)
	}
	return fd, nil
}

// attach mounts the spec's mounts, in order, in the mount namespace of the process pid, and the
// detached mount tmp at /tmp, unless it is -1. owners maps the owners of files. attach resolves
// targets inside, without following symbolic links, because the root there may be untrusted.
func (e *Engine) attach(pid int, spec isolation.Spec, owners mapper, tmp int) error {
	var ready []detached
	defer func() {
		for _, d := range ready {
			unix.Close(d.fd)
		}
	}()
	for _, m := range spec.Mounts {
		var fd int
		var err error
		if len(m.Sources) == 1 {
			fd, err = owners.clone(m.Sources[0])
		} else {
			fd, err = owners.stack(m.Sources, e.scratch())
		}
		if err != nil {
			return fmt.Errorf("prepare %s: %w", m.Target, err)
		}
		ready = append(ready, detached{fd, m.Target})
	}
	err := inMounts(pid, func() error {
		for _, d := range ready {
			if err := d.move(); err != nil {
				return err
			}
		}
		if tmp < 0 {
			return nil
		}
		return detached{tmp, "/tmp"}.move()
	})
	if err != nil {
		return fmt.Errorf("attach the mounts: %w", err)
	}
	return nil
}

// move attaches d at its target in the mount namespace of the calling thread. The caller still
// owns the descriptor.
func (d detached) move() error {
	at, err := unix.Openat2(unix.AT_FDCWD, d.target, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return fmt.Errorf("open the mount point %s inside: %w", d.target, err)
	}
	defer unix.Close(at)
	if err := unix.MoveMount(d.fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach %s: %w", d.target, err)
	}
	return nil
}
