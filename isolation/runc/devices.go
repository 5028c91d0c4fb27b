package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// devices is the file system that every domain has as /dev.
type devices struct {
	dir  string   // mount point
	null *os.File // its /dev/null
}

// newDevices mounts the file system at dir. The caller must close it.
func newDevices(dir string) (*devices, error) {
	if err := makeDevices(dir); err != nil {
		return nil, err
	}
	d := &devices{dir: dir}
	var err error
	if d.null, err = os.OpenFile(filepath.Join(dir, "null"), os.O_RDWR, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("create the devices of sandboxes: %w", err), d.close())
	}
	return d, nil
}

// close unmounts the file system. Existing domains keep it. On nil it does nothing.
func (d *devices) close() error {
	if d == nil {
		return nil
	}
	d.null.Close()
	if err := unix.Unmount(d.dir, unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: d.dir, Err: err}
	}
	return nil
}

// makeDevices mounts a read-only file system at dir with the content of /dev. All domains
// share it: libcontainer would create one for each domain, with a dozen mounts
// (docs/decisions/0022).
func makeDevices(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("create the devices of sandboxes: %w", err)
		}
	}()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := unix.Mount("dev", dir, "tmpfs", flags, "mode=755,size=64k,nr_inodes=64"); err != nil {
		return &os.PathError{Op: "mount", Path: dir, Err: err}
	}
	defer func() {
		if err != nil {
			_ = unix.Unmount(dir, unix.MNT_DETACH)
		}
	}()
	for _, d := range isolation.DeviceNodes() {
		path := filepath.Join(dir, d.Name)
		if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(d.Major, d.Minor))); err != nil {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
		if err := os.Chmod(path, 0o666); err != nil { // whatever the umask is
			return err
		}
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "shm"), 0o755); err != nil { // mount point: each domain has its own /dev/shm
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return &os.PathError{Op: "make read-only", Path: dir, Err: err}
	}
	return nil
}
