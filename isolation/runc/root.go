package runc

import (
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// A rootTree creates files in the root of a sandbox, and never outside of it, whatever links it
// contains. It works like an os.Root, but resolves each folder once, and not again for each of
// its names, of which there may be a hundred. It is not safe for concurrent use.
type rootTree struct {
	fd      int
	owner   int            // user and group of all that it creates
	folders map[string]int // open folders, by path below the root
}

func openRootTree(dir string, owner uint32) (*rootTree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return &rootTree{fd: fd, owner: int(owner), folders: map[string]int{".": fd}}, nil
}

func (t *rootTree) Close() {
	for _, fd := range t.folders {
		unix.Close(fd)
	}
}

// below opens name, a path below the root.
func (t *rootTree) below(name string, flags int, mode uint64) (int, error) {
	return unix.Openat2(t.fd, name, &unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// split opens the folder of file, and returns it with the last element of file.
func (t *rootTree) split(file string) (folder int, name string, err error) {
	clean := path.Clean("/" + file)[1:] // without ".."
	if clean == "" {
		return -1, "", unix.EINVAL
	}
	parent := path.Dir(clean)
	folder, known := t.folders[parent]
	if !known {
		if folder, err = t.below(parent, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return -1, "", err
		}
		t.folders[parent] = folder
	}
	return folder, path.Base(clean), nil
}

// mkdir creates a folder, unless it exists.
func (t *rootTree) mkdir(dir string) error {
	folder, name, err := t.split(dir)
	if err == nil {
		if err = unix.Mkdirat(folder, name, 0o755); err == nil || errors.Is(err, fs.ErrExist) {
			err = unix.Fchownat(folder, name, t.owner, t.owner, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	if err != nil {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return nil
}

// remove removes a file, or with the flag AT_REMOVEDIR an empty folder.
func (t *rootTree) remove(file string, flags int) error {
	folder, name, err := t.split(file)
	if err == nil {
		err = unix.Unlinkat(folder, name, flags)
	}
	if err != nil {
		return &os.PathError{Op: "remove", Path: file, Err: err}
	}
	return nil
}

// write creates a file, or replaces the content of one. It belongs to root of the host, so
// that not even root of a domain may change it.
func (t *rootTree) write(file, content string) error {
	folder, name, err := t.split(file)
	if err == nil {
		var fd int
		fd, err = unix.Openat2(folder, name, &unix.OpenHow{
			Flags: unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC | unix.O_CLOEXEC, Mode: 0o644, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
		})
		if err == nil {
			f := os.NewFile(uintptr(fd), file)
			_, err = f.WriteString(content)
			return errors.Join(err, f.Chmod(0o644), f.Close()) // whatever the umask is
		}
	}
	return &os.PathError{Op: "write", Path: file, Err: err}
}

func (t *rootTree) symlink(target, link string) error {
	folder, name, err := t.split(link)
	if err == nil {
		if err = unix.Symlinkat(target, folder, name); err == nil {
			err = unix.Fchownat(folder, name, t.owner, t.owner, unix.AT_SYMLINK_NOFOLLOW)
		}
	}
	if err != nil {
		return &os.LinkError{Op: "symlink", Old: target, New: link, Err: err}
	}
	return nil
}

// touch creates an empty file, unless it exists.
func (t *rootTree) touch(file string) error {
	fd, err := t.below(path.Clean("/" + file)[1:], unix.O_CREAT|unix.O_RDONLY, 0o444)
	if err != nil {
		return &os.PathError{Op: "create", Path: file, Err: err}
	}
	return unix.Close(fd)
}
