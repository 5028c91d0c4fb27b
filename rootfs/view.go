package rootfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxLinkHops   = 40   // as the kernel
	maxViewNames  = 1000 // of one listed directory
	maxPathParts  = 4096 // of one path, its links' targets included
	sandboxOthers = 0o001
)

// view is the combined file system of a Tree as the sandbox will see it: links are
// followed from the sandbox's root, and a directory with several sources is merged
// as an overlay does it. It holds its sources open until close, and never leaves
// them.
type view struct {
	dirs   []string
	links  map[string]string
	mounts map[string][]*os.Root // of directories, lowest source first
	files  map[string]fileMount
}

// fileMount is a mounted file: the directory that holds it, and its name there.
type fileMount struct {
	root *os.Root
	name string
}

// node is something found in a view.
type node struct {
	path    string // resolved, without links
	mode    fs.FileMode
	blocked string   // a directory on the way that others may not search, "" if there is none
	root    *os.Root // source that holds it; nil for a directory of the root itself
	rel     string   // its path there
}

// newView opens a Tree's sources. The Tree must not change while the view is used.
func newView(t *Tree) (*view, error) {
	v := &view{dirs: t.Dirs, links: map[string]string{}, mounts: map[string][]*os.Root{}, files: map[string]fileMount{}}
	for _, l := range t.Links {
		v.links[l.Path] = l.Target
	}
	for _, m := range t.Mounts {
		for _, source := range m.Sources {
			if err := v.addSource(m.Target, source); err != nil {
				v.close()
				return nil, fmt.Errorf("open source of %s: %w", m.Target, err)
			}
		}
	}
	return v, nil
}

func (v *view) addSource(target, source string) error {
	info, err := os.Lstat(source)
	if err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		root, err := os.OpenRoot(filepath.Dir(source))
		if err == nil {
			v.files[target] = fileMount{root, filepath.Base(source)}
		}
		return err
	}
	root, err := os.OpenRoot(source)
	if err == nil {
		v.mounts[target] = append(v.mounts[target], root)
	}
	return err
}

func (v *view) close() {
	for _, roots := range v.mounts {
		for _, r := range roots {
			r.Close()
		}
	}
	for _, f := range v.files {
		f.root.Close()
	}
}

// resolve follows an absolute path to its end. What does not exist, loops or runs
// through a file is fs.ErrNotExist.
func (v *view) resolve(name string) (node, error) {
	missing := &fs.PathError{Op: "resolve", Path: name, Err: fs.ErrNotExist}
	pending := strings.Split(name, "/")
	cur := node{path: "/", mode: fs.ModeDir | 0o755}
	hops := 0
	for len(pending) > 0 {
		part := pending[0]
		pending = pending[1:]
		if part == "" || part == "." {
			continue
		}
		if !cur.mode.IsDir() {
			return node{}, missing
		}
		blocked := cur.blocked
		if blocked == "" && cur.mode&sandboxOthers == 0 {
			blocked = cur.path
		}
		next, target, err := v.lstat(path.Join(cur.path, part))
		if err != nil {
			return node{}, err
		}
		next.blocked = blocked
		if next.mode&fs.ModeSymlink == 0 {
			cur = next
			continue
		}
		parts := strings.Split(target, "/")
		if hops++; hops > maxLinkHops || len(parts)+len(pending) > maxPathParts {
			return node{}, missing
		}
		pending = append(parts, pending...)
		cur.blocked = blocked
		if path.IsAbs(target) {
			cur = node{path: "/", mode: fs.ModeDir | 0o755, blocked: blocked}
		}
	}
	return cur, nil
}

// lstat finds an absolute, clean path whose parents are no links, and its target
// if it is a link.
func (v *view) lstat(name string) (n node, target string, err error) {
	if target, ok := v.links[name]; ok {
		return node{path: name, mode: fs.ModeSymlink | 0o777}, target, nil
	}
	if f, ok := v.files[name]; ok {
		info, err := f.root.Lstat(f.name)
		if err != nil {
			return node{}, "", err
		}
		return node{path: name, mode: info.Mode(), root: f.root, rel: f.name}, "", nil
	}
	if roots, ok := v.mounts[name]; ok {
		top := roots[len(roots)-1]
		info, err := top.Stat(".")
		if err != nil {
			return node{}, "", err
		}
		return node{path: name, mode: info.Mode(), root: top, rel: "."}, "", nil
	}
	if name == "/" || slices.Contains(v.dirs, name) {
		return node{path: name, mode: fs.ModeDir | 0o755}, "", nil
	}
	roots, rel := v.mountOf(name)
	for _, root := range slices.Backward(roots) {
		info, err := lstatBelow(root, rel)
		if errors.Is(err, errHidden) {
			break
		}
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return node{}, "", err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			if target, err = root.Readlink(rel); err != nil {
				return node{}, "", err
			}
		}
		return node{path: name, mode: info.Mode(), root: root, rel: rel}, target, nil
	}
	return node{}, "", &fs.PathError{Op: "lstat", Path: name, Err: fs.ErrNotExist}
}

// mountOf finds the mount that name lies below.
func (v *view) mountOf(name string) (roots []*os.Root, rel string) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if roots, ok := v.mounts[dir]; ok {
			return roots, strings.TrimPrefix(name, dir+"/")
		}
	}
	return nil, ""
}

// list names what a resolved directory holds, sorted and merged.
func (v *view) list(dir node) ([]string, error) {
	roots, rel := v.mounts[dir.path], "."
	if roots == nil {
		roots, rel = v.mountOf(dir.path)
	}
	var all []string
	for _, root := range slices.Backward(roots) {
		info, err := lstatBelow(root, rel)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if errors.Is(err, errHidden) || err == nil && !info.IsDir() {
			break
		}
		var names []string
		if err == nil {
			names, err = dirNames(root, rel, maxViewNames)
		}
		if err != nil {
			return nil, err
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// open opens a regular file that resolve has found.
func (n node) open() (*os.File, error) {
	f, err := n.root.OpenFile(n.rel, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is no regular file")
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// errHidden says that a source of an overlay ends the search: what the sources
// below it have at the path is not seen.
var errHidden = errors.New("hidden by a layer above")

// lstatBelow looks for rel in one source of an overlay without following any link.
// A file or link where a directory would have to be, and a whiteout (a character
// device 0:0), hide what lower sources have.
func lstatBelow(root *os.Root, rel string) (info fs.FileInfo, err error) {
	for i := 0; i < len(rel); i++ {
		if rel[i] != '/' {
			continue
		}
		if info, err = root.Lstat(rel[:i]); err != nil {
			return nil, err
		}
		if !info.IsDir() {
			return nil, errHidden
		}
	}
	if info, err = root.Lstat(rel); err != nil {
		return nil, err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
		return nil, errHidden
	}
	return info, nil
}
