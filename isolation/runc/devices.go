package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// devices is what every domain shows as /dev.
type devices struct {
	dir  string
	null *os.File // its /dev/null
}

// newDevices makes them at dir. The caller must close them.
func newDevices(dir string) (*devices, error) {
	if err := makeDevices(dir); err != nil {
		return nil, err
	}
	d := &devices{dir: dir}
	var err error
	if d.null, err = os.OpenFile(filepath.Join(dir, "null"), os.O_RDWR, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("devices of sandboxes: %w", err), d.close())
	}
	return d, nil
}

// close lets go of them: the domains that there are keep theirs. Those that are nil need
// no closing.
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

// makeDevices mounts a file system at dir that holds what every domain shows as /dev, and
// that nobody can change any more. Domains share it: libcontainer would make one for
// each, of a dozen mounts (docs/decisions/0022).
func makeDevices(dir string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("devices of sandboxes: %w", err)
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
	if err := os.Mkdir(filepath.Join(dir, "shm"), 0o755); err != nil { // where each domain mounts its own
		return err
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, ""); err != nil {
		return &os.PathError{Op: "make read-only", Path: dir, Err: err}
	}
	return nil
}
