package runc

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// tmpVolume is the file system of one sandbox's /tmp: an ext4 image on a loop device, mounted
// once for every domain. The image file has no name, and the loop device releases it with the
// last mount. So the volume disappears with the sandbox, even if the daemon was killed.
type tmpVolume struct {
	mounts []int // detached mounts, one for each domain
}

// newTmp copies the template and mounts the copy count times. owner becomes the owner and
// the group of its root directory, whose mode is the template's.
func newTmp(template string, count int, owner uint32) (_ *tmpVolume, err error) {
	image, err := copyTemplate(template)
	if err != nil {
		return nil, fmt.Errorf("create /tmp: %w", err)
	}
	defer image.Close()
	loop, err := attachLoop(image)
	if err != nil {
		return nil, fmt.Errorf("create /tmp: %w", err)
	}
	defer loop.Close() // the mounts keep the device in use
	v := &tmpVolume{}
	defer func() {
		if err != nil {
			v.Close()
		}
	}()
	for range count {
		// Mounting the same device again gives the same file system. Its content does not
		// survive the sandbox, so barriers are off: each would be an fsync of the image.
		fd, err := newFS("ext4", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "source", loop.Name(), "barrier", "0")
		if err != nil {
			return nil, fmt.Errorf("create /tmp: %w", err)
		}
		v.mounts = append(v.mounts, fd)
	}
	if err := unix.Fchownat(v.mounts[0], "", int(owner), int(owner), unix.AT_EMPTY_PATH); err != nil {
		return nil, fmt.Errorf("set the owner of /tmp: %w", err)
	}
	return v, nil
}

// Close closes the descriptors of the mounts. Mounts that were moved into a domain stay there;
// others are unmounted.
func (v *tmpVolume) Close() {
	for _, fd := range v.mounts {
		unix.Close(fd)
	}
	v.mounts = nil
}

// copyTemplate returns an unnamed copy of the file in the same folder. The copy shares blocks if
// the file system supports that; otherwise copyTemplate copies the data, but not the holes.
func copyTemplate(template string) (_ *os.File, err error) {
	src, err := os.Open(template)
	if err != nil {
		return nil, err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Open(filepath.Dir(template), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open unnamed file in", Path: filepath.Dir(template), Err: err}
	}
	dst := os.NewFile(uintptr(fd), template)
	defer func() {
		if err != nil {
			dst.Close()
		}
	}()
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) == nil {
		return dst, nil
	}
	if err := dst.Truncate(info.Size()); err != nil {
		return nil, err
	}
	for at := int64(0); ; {
		data, err := unix.Seek(int(src.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return dst, nil // the rest is a hole
		}
		if err != nil {
			return nil, &os.PathError{Op: "seek", Path: template, Err: err}
		}
		hole, err := unix.Seek(int(src.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return nil, &os.PathError{Op: "seek", Path: template, Err: err}
		}
		if _, err := src.Seek(data, io.SeekStart); err != nil {
			return nil, err
		}
		if _, err := dst.Seek(data, io.SeekStart); err != nil {
			return nil, err
		}
		if _, err := io.CopyN(dst, src, hole-data); err != nil {
			return nil, err
		}
		at = hole
	}
}

// attachLoop attaches image to a free loop device, which detaches itself after its last use.
func attachLoop(image *os.File) (*os.File, error) {
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return nil, &host.Unsupported{Feature: host.LoopDevices, Need: "the host has no loop devices", Fix: "load the kernel's module: modprobe loop", Err: err}
	}
	if err != nil {
		return nil, fmt.Errorf("open the control file of loop devices: %w", err)
	}
	defer ctl.Close()
	for {
		n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(image.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO}}
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &config)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // EBUSY: another process has taken the device meanwhile
			return nil, fmt.Errorf("configure %s: %w", dev.Name(), err)
		}
	}
}
