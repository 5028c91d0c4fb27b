package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// merge applies an unpacked layer to a tree. The tree gets more names for the layer's files,
// not copies. What is in the layer's folder may be anything that its process has left there:
// nothing is followed out of the tree, and what cannot be is an error.
func merge(layer, tree *os.Root) error {
	links := newLinker()
	defer links.close()
	held, err := holdLinks(layer, tree, links)
	if err != nil {
		return err
	}
	hides, err := marks(layer, hideFolder)
	if err != nil {
		return err
	}
	for _, name := range hides {
		hidden, err := layer.Readlink(path.Join(hideFolder, name))
		if err == nil {
			err = tree.RemoveAll(hidden)
		}
		if err != nil {
			return fmt.Errorf("hide what a lower layer has: %w", err)
		}
	}
	from, err := layer.Open(addFolder)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := tree.Open(".")
	if err != nil {
		return err
	}
	defer to.Close()
	if err := links.linkAll(from, to); err != nil {
		return err
	}
	return held.place(tree)
}

// checkMarks makes sure that a layer's folder has what merge needs, and that the paths in it are
// below the tree's top. It keeps the layer of a process that was taken over out of the store.
func checkMarks(layer *os.Root) error {
	info, err := layer.Lstat(addFolder)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no folder", addFolder)
	}
	if err != nil {
		return err
	}
	for _, folder := range []string{hideFolder, linkFolder} {
		names, err := marks(layer, folder)
		if err != nil {
			return err
		}
		for _, name := range names {
			target, err := layer.Readlink(path.Join(folder, name))
			if err != nil {
				return err
			}
			if !filepath.IsLocal(target) || target == "." {
				return fmt.Errorf("%q leads out of the image", invalid.Shorten(target))
			}
			if number, is := strings.CutSuffix(name, linkNew); is && folder == linkFolder {
				if _, err := layer.Lstat(path.Join(folder, number+linkOld)); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// marks lists a folder of numbered links.
func marks(layer *os.Root, folder string) ([]string, error) {
	dir, err := layer.Open(folder)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return dir.Readdirnames(-1)
}

// heldLinks are hard links to files of lower layers, in a folder of the tree with a name that no
// layer knows, until the layer has hidden what it hides.
type heldLinks struct {
	folder string            // "" if there are none
	names  map[string]string // of the tree, by the name in the folder
}

func holdLinks(layer, tree *os.Root, links *linker) (h heldLinks, err error) {
	names, err := marks(layer, linkFolder)
	if err != nil || len(names) == 0 {
		return h, err
	}
	h = heldLinks{folder: fmt.Sprintf(".links-%016x", rand.Uint64()), names: map[string]string{}}
	if err := tree.Mkdir(h.folder, 0o700); err != nil {
		return h, err
	}
	folder, err := tree.Open(h.folder)
	if err != nil {
		return h, err
	}
	defer folder.Close()
	for _, name := range names {
		number, is := strings.CutSuffix(name, linkNew)
		if !is {
			continue
		}
		newPath, err := layer.Readlink(path.Join(linkFolder, name))
		if err != nil {
			return h, err
		}
		oldPath, err := layer.Readlink(path.Join(linkFolder, number+linkOld))
		if err != nil {
			return h, err
		}
		if err := holdLink(tree, links, oldPath, folder, number); err != nil {
			return h, fmt.Errorf("link to a file of a lower layer: %w", err)
		}
		h.names[number] = newPath
	}
	return h, nil
}

// holdLink gives the file at oldPath of the tree another name in the folder.
func holdLink(tree *os.Root, links *linker, oldPath string, folder *os.File, name string) error {
	dir, err := tree.Open(path.Dir(oldPath))
	if err != nil {
		return err
	}
	defer dir.Close()
	return links.link(dir, path.Base(oldPath), folder, name)
}

// place gives the links their names.
func (h heldLinks) place(tree *os.Root) error {
	if h.folder == "" {
		return nil
	}
	for number, name := range h.names {
		if err := tree.Rename(path.Join(h.folder, number), name); err != nil {
			return fmt.Errorf("link to a file of a lower layer: %w", err)
		}
	}
	return tree.RemoveAll(h.folder)
}

// linkAll gives everything in the directory from a name in the directory to. Directories are
// merged, and get the permissions of those in from. It follows no link.
func (l *linker) linkAll(from, to *os.File) error {
	for {
		names, err := from.Readdirnames(1000)
		for _, name := range names {
			if err := l.linkOne(from, to, name); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (l *linker) linkOne(from, to *os.File, name string) error {
	fail := func(op string, err error) error {
		return &fs.PathError{Op: op, Path: path.Join(to.Name(), name), Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail("look at", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		err := l.link(from, name, to, name)
		if errors.Is(err, unix.EEXIST) { // in the place of a file; a directory has been hidden
			if err = unix.Unlinkat(int(to.Fd()), name, 0); err == nil {
				err = l.link(from, name, to, name)
			}
		}
		if err != nil {
			return fail("link", err)
		}
		return nil
	}
	if err := unix.Mkdirat(int(to.Fd()), name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
		return fail("mkdir", err)
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	source, err := openAt(from, name, flags)
	if err != nil {
		return fail("open", err)
	}
	defer source.Close()
	target, err := openAt(to, name, flags)
	if err != nil {
		return fail("open", err)
	}
	defer target.Close()
	if err := l.linkAll(source, target); err != nil {
		return err
	}
	if err := target.Chmod(fs.FileMode(st.Mode) & fs.ModePerm); err != nil {
		return fail("chmod", err)
	}
	return nil
}

func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path.Join(dir.Name(), name)), nil
}

// sendLower tells an UnpackJob what is in the tree that lower layers make.
func sendLower(w io.Writer, tree *os.Root) error {
	err := fs.WalkDir(tree.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == "." {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		target := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = tree.Readlink(name); err != nil {
				return err
			}
		}
		return writeMessage(w, msgNode, encodeNode(name, target, info.Mode()))
	})
	if err != nil {
		return err
	}
	return writeMessage(w, msgLower, nil)
}

// encodeNode is the body of a msgNode: the permissions in two bytes, a byte that is 1 for a
// directory, the path, and, of a link, its target after a NUL byte.
func encodeNode(name, target string, mode fs.FileMode) []byte {
	b := binary.LittleEndian.AppendUint16(nil, uint16(mode.Perm()))
	if mode.IsDir() {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = append(b, name...)
	if target != "" {
		b = append(append(b, 0), target...)
	}
	return b
}

// decodeNode is the inverse of encodeNode.
func decodeNode(b []byte) (n *node, name string, err error) {
	if len(b) < 4 {
		return nil, "", errProtocol
	}
	perm := fs.FileMode(binary.LittleEndian.Uint16(b)) & fs.ModePerm
	name, target, _ := strings.Cut(string(b[3:]), "\x00")
	n = &node{target: target}
	if b[2] == 1 {
		n = newDir(perm)
	}
	n.lower = true
	return n, name, nil
}
