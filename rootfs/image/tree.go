package image

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Bounds of the names in a layer.
const (
	maxHops      = 40        // links on the way to one name, as in the kernel
	maxDepth     = 200       // directories in one another
	maxPath      = 4000      // bytes of a name, resolved or not, and of a link's target
	maxComponent = 255       // bytes between two slashes
	maxNameBytes = 256 << 20 // of all names and targets: they are kept in memory
)

// node is something that has been unpacked: a directory (children is not nil), a link
// (target is not empty) or a file.
type node struct {
	children map[string]*node
	target   string
	perm     fs.FileMode // of a directory
	touched  bool        // this layer has made it, or something below it
	hidden   bool        // this layer has hidden all that lower layers have in this directory
	lower    bool        // lower layers have something there that this one has not hidden
	here     bool        // it is in the folder of this layer
	old      string      // of a hard link to a file of a lower layer, that file
	number   int         // of such a link, from 1
}

func newDir(perm fs.FileMode) *node { return &node{children: map[string]*node{}, perm: perm} }

func (n *node) isDir() bool  { return n.children != nil }
func (n *node) isLink() bool { return n.target != "" }

// place is a directory of the tree: its nodes from the top to itself, and their names.
type place struct {
	nodes []*node // the first is the tree's top
	names []string
}

func (p *place) dir() *node { return p.nodes[len(p.nodes)-1] }

// path is the path of name in the place, relative to the top and without links.
func (p *place) path(name string) string {
	if len(p.names) == 0 {
		return name
	}
	return strings.Join(p.names, "/") + "/" + name
}

func (p *place) up() {
	if len(p.names) > 0 {
		p.nodes, p.names = p.nodes[:len(p.nodes)-1], p.names[:len(p.names)-1]
	}
}

// resolve finds the directory of that clean, relative path; links on the way are
// followed with the tree's top as /. Directories that are missing are made if make is
// true, and else are fs.ErrNotExist.
func (u *unpacker) resolve(dir string, make bool) (*place, error) {
	at := &place{nodes: []*node{u.top}}
	var pending []string
	if dir != "." {
		pending = strings.Split(dir, "/")
	}
	for hops := 0; len(pending) > 0; {
		part := pending[0]
		pending = pending[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at.up()
			continue
		}
		next := at.dir().children[part]
		if next != nil && next.isLink() {
			if hops++; hops > maxHops || len(pending) > maxPath {
				return nil, u.unsafe(dir, "leads through too many links")
			}
			pending = append(strings.Split(next.target, "/"), pending...)
			if path.IsAbs(next.target) {
				at = &place{nodes: []*node{u.top}}
			}
			continue
		}
		if next == nil {
			if !make {
				return nil, fmt.Errorf("%q: %w", part, fs.ErrNotExist)
			}
			var err error
			if next, err = u.mkdir(at, part, 0o755); err != nil {
				return nil, err
			}
		}
		if !next.isDir() {
			return nil, u.unsafe(dir, fmt.Sprintf("leads through %q, which is a file", at.path(part)))
		}
		at.nodes, at.names = append(at.nodes, next), append(at.names, part)
	}
	return at, nil
}

// put records a new node, and that this layer has touched what is above it.
func (u *unpacker) put(at *place, name string, n *node) error {
	if u.nameBytes += len(name) + len(n.target); u.nameBytes > maxNameBytes {
		return u.invalid(invalid.ErrTooLarge, "", fmt.Sprintf("its names have more than %d MiB", maxNameBytes>>20), nil)
	}
	n.touched = true
	at.dir().children[strings.Clone(name)] = n
	for _, above := range at.nodes {
		above.touched = true
	}
	return nil
}

// settle makes the directories down to a place in the folder of this layer, if only lower
// layers have them.
func (u *unpacker) settle(at *place) error {
	for i, n := range at.nodes[1:] {
		if n.here {
			continue
		}
		if err := u.root.Mkdir(strings.Join(at.names[:i+1], "/"), 0o700); err != nil {
			return u.host(err)
		}
		n.here = true
	}
	return nil
}

// mkdir makes a directory that is not there.
func (u *unpacker) mkdir(at *place, name string, perm fs.FileMode) (*node, error) {
	full := at.path(name)
	if len(at.nodes) > maxDepth || len(full) > maxPath {
		return nil, u.unsafe(full, fmt.Sprintf("lies more than %d directories or %d bytes deep", maxDepth, maxPath))
	}
	if err := u.countEntry(); err != nil {
		return nil, err
	}
	n := newDir(perm)
	if err := u.put(at, name, n); err != nil {
		return nil, err
	}
	if err := u.settle(at); err != nil {
		return nil, err
	}
	n.here = true
	return n, u.host(u.root.Mkdir(full, 0o700))
}

// remove removes what is there by that name, if anything is, and hides it if lower layers have
// it.
func (u *unpacker) remove(at *place, name string) error {
	n := at.dir().children[name]
	if n == nil {
		return nil
	}
	delete(at.dir().children, name)
	if n.lower {
		if err := u.mark(hideFolder, &u.hides, "", at.path(name)); err != nil {
			return err
		}
	}
	if err := u.dropLinks(n); err != nil {
		return err
	}
	switch {
	case !n.here:
		return nil
	case n.isDir():
		return u.host(u.root.RemoveAll(at.path(name)))
	}
	return u.host(u.root.Remove(at.path(name)))
}

// dropLinks forgets the hard links to files of lower layers in what is removed.
func (u *unpacker) dropLinks(n *node) error {
	if n.number > 0 {
		at := fmt.Sprintf("%s/%d", linkFolder, n.number)
		return u.host(errors.Join(u.layerRoot.Remove(at+linkNew), u.layerRoot.Remove(at+linkOld)))
	}
	for _, below := range n.children {
		if below.touched {
			if err := u.dropLinks(below); err != nil {
				return err
			}
		}
	}
	return nil
}

// The folders that a layer is unpacked to. Paths are the targets of symbolic links with numbers
// for names: so they need no form of their own, and no directories.
const (
	addFolder  = "add"  // what the layer has
	hideFolder = "hide" // paths of lower layers that it hides
	linkFolder = "link" // hard links to files of lower layers: N.new is one to N.old
	linkNew    = ".new"
	linkOld    = ".old"
)

// mark notes a path in a folder, under the next number if suffix is that of the first note of it.
func (u *unpacker) mark(folder string, count *int, suffix, path string) error {
	if suffix != linkOld {
		*count++
	}
	return u.host(u.layerRoot.Symlink(path, fmt.Sprintf("%s/%d%s", folder, *count, suffix)))
}

// hide removes what lower layers have by that name: what this layer has made there
// stays, wherever in the layer its whiteout stands.
func (u *unpacker) hide(at *place, name string) error {
	n := at.dir().children[name]
	switch {
	case n == nil:
		return nil
	case !n.touched:
		return u.remove(at, name)
	}
	below := &place{nodes: append(at.nodes[:len(at.nodes):len(at.nodes)], n), names: append(at.names[:len(at.names):len(at.names)], name)}
	return u.hideAll(below)
}

// hideAll hides everything in a directory. It does so once, however often the layer asks: what
// comes later is of the layer itself.
func (u *unpacker) hideAll(at *place) error {
	if at.dir().hidden {
		return nil
	}
	at.dir().hidden = true
	for name := range at.dir().children {
		if err := u.hide(at, name); err != nil {
			return err
		}
	}
	return nil
}

// finish gives the directories their permissions, which while unpacking could have
// kept its maker out. Its owner can always remove the tree.
func (u *unpacker) finish() error { return u.chmodAll(&place{nodes: []*node{u.top}}) }

func (u *unpacker) chmodAll(at *place) error {
	for name, n := range at.dir().children {
		if !n.isDir() || !n.here {
			continue
		}
		if err := u.host(u.root.Chmod(at.path(name), n.perm|0o700)); err != nil {
			return err
		}
		below := &place{nodes: append(at.nodes, n), names: append(at.names, name)}
		if err := u.chmodAll(below); err != nil {
			return err
		}
	}
	return nil
}

// cleanName gives the path of an entry relative to the tree's top, or says why it has
// none. A leading slash is dropped, as all unpackers of images do.
func cleanName(name string) (clean, reason string) {
	if name == "" {
		return "", "has no name"
	}
	if len(name) > maxPath {
		return "", fmt.Sprintf("has a name of more than %d bytes", maxPath)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", "has a NUL byte in its name"
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", "would leave the image"
		}
		if len(part) > maxComponent {
			return "", fmt.Sprintf("has a path component of more than %d bytes", maxComponent)
		}
	}
	return path.Clean(strings.TrimLeft(name, "/")), ""
}

// The marks of layers, OCI image-spec "Whiteouts".
const (
	whiteout     = ".wh."            // and the name that it hides
	whiteoutMeta = whiteout + ".wh." // of the union file system that made the layer
	opaque       = whiteoutMeta + ".opq"
)

var errNoWhiteout = errors.New("no whiteout")

// parseWhiteout says what an entry hides: a name in dir, or all of dir if the name is
// "". It says errNoWhiteout of other entries. meta is true if the entry has no meaning
// here at all.
func parseWhiteout(dir, base string) (hides string, meta bool, err error) {
	for part := range strings.SplitSeq(dir, "/") {
		switch {
		case strings.HasPrefix(part, whiteoutMeta):
			return "", true, nil
		case strings.HasPrefix(part, whiteout):
			return "", false, errors.New("lies below a whiteout")
		}
	}
	hides, is := strings.CutPrefix(base, whiteout)
	switch {
	case !is:
		return "", false, errNoWhiteout
	case base == opaque:
		return "", false, nil
	case hides == "" || hides == "." || hides == "..":
		return "", false, errors.New("is a whiteout of nothing")
	}
	return hides, false, nil
}
