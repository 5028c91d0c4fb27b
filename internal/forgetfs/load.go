package forgetfs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// load takes what is in a folder as what the disk holds.
func (f *FS) load(dir string) error {
	return f.loadFolder(f.root, dir, map[uint64]*node{})
}

// loadFolder loads what is in the folder at path as n's. seen has the files with several
// names by their number.
func (f *FS) loadFolder(n *node, path string, seen map[uint64]*node) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	n.take(info)
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, entry := range list {
		at := filepath.Join(path, entry.Name())
		child, err := f.loadEntry(at, seen)
		if err != nil {
			return err
		}
		child.nlink++
		n.names[entry.Name()] = child
	}
	n.syncedNames = maps.Clone(n.names)
	return nil
}

// loadEntry loads what is at path.
func (f *FS) loadEntry(path string, seen map[uint64]*node) (*node, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	stat := info.Sys().(*syscall.Stat_t)
	if n := seen[stat.Ino]; n != nil {
		return n, nil
	}
	n := f.newNode(stat.Mode)
	n.take(info)
	switch {
	case n.isDir():
		return n, f.loadFolder(n, path, seen)
	case n.isFile():
		seen[stat.Ino] = n
		n.synced, err = os.ReadFile(path)
		n.data = append([]byte(nil), n.synced...)
		f.used += int64(len(n.data))
	case stat.Mode&unix.S_IFMT == unix.S_IFLNK:
		n.target, err = os.Readlink(path)
	default:
		err = fmt.Errorf("%s: only files, folders and symbolic links can be loaded", path)
	}
	return n, err
}

// take gives n the mode, owner and times of a file.
func (n *node) take(info os.FileInfo) {
	stat := info.Sys().(*syscall.Stat_t)
	n.mode, n.uid, n.gid = stat.Mode, stat.Uid, stat.Gid
	n.atime, n.mtime, n.ctime = time.Unix(stat.Atim.Unix()), info.ModTime(), time.Unix(stat.Ctim.Unix())
}
