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
	layer    int         // the last one that made it, or made something below it
	hidden   int         // the last one that hid all that lower layers have in this directory
}

func newDir(perm fs.FileMode, layer int) *node {
	return &node{children: map[string]*node{}, perm: perm, layer: layer}
}

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
	n.layer = u.layer
	at.dir().children[strings.Clone(name)] = n
	for _, above := range at.nodes {
		above.layer = u.layer
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
	n := newDir(perm, u.layer)
	if err := u.put(at, name, n); err != nil {
		return nil, err
	}
	return n, u.host(u.root.Mkdir(full, 0o700))
}

// remove removes what is there by that name, if anything is.
func (u *unpacker) remove(at *place, name string) error {
	n := at.dir().children[name]
	if n == nil {
		return nil
	}
	delete(at.dir().children, name)
	if n.isDir() {
		return u.host(u.root.RemoveAll(at.path(name)))
	}
	return u.host(u.root.Remove(at.path(name)))
}

// hide removes what lower layers have by that name: what this layer has made there
// stays, wherever in the layer its whiteout stands.
func (u *unpacker) hide(at *place, name string) error {
	n := at.dir().children[name]
	switch {
	case n == nil:
		return nil
	case n.layer != u.layer:
		return u.remove(at, name)
	}
	below := &place{nodes: append(at.nodes[:len(at.nodes):len(at.nodes)], n), names: append(at.names[:len(at.names):len(at.names)], name)}
	return u.hideAll(below)
}

// hideAll hides everything in a directory. It does so once a layer, however often a
// layer asks: what comes later is of the layer itself.
func (u *unpacker) hideAll(at *place) error {
	if at.dir().hidden == u.layer {
		return nil
	}
	at.dir().hidden = u.layer
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
		if !n.isDir() {
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
