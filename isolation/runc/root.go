package runc

import (
	"errors"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// A rootTree is the root of a sandbox that is being filled. Nothing that is made lies
// outside of it, whatever links it has. It does what an os.Root would do, but looks up
// a folder once and not once for each of some hundred names in it. For one goroutine.
type rootTree struct {
	fd      int
	owner   int            // of all that is made, user and group
	folders map[string]int // open ones, by path below the root
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

// below opens name, a path in the tree.
func (t *rootTree) below(name string, flags int, mode uint64) (int, error) {
	return unix.Openat2(t.fd, name, &unix.OpenHow{
		Flags: uint64(flags | unix.O_CLOEXEC), Mode: mode, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// split finds the folder of a path from the root on, and the name in it.
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

// mkdir makes a folder, if there is none.
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

// touch makes an empty file, if there is none.
func (t *rootTree) touch(file string) error {
	fd, err := t.below(path.Clean("/" + file)[1:], unix.O_CREAT|unix.O_RDONLY, 0o444)
	if err != nil {
		return &os.PathError{Op: "create", Path: file, Err: err}
	}
	return unix.Close(fd)
}
