package forgetfs

import (
	"maps"
	"time"

	"golang.org/x/sys/unix"
)

// A node is a file, a folder or a symbolic link.
type node struct {
	id       uint64
	mode     uint32 // with the type
	uid, gid uint32
	nlink    uint32 // names that processes see
	lookups  uint64 // what the kernel holds; see FORGET
	atime    time.Time
	mtime    time.Time
	ctime    time.Time

	// Of a file: what processes see, what was last synced, and what happened since.
	data   []byte
	synced []byte
	writes []write

	// Of a folder: the same.
	names       map[string]*node
	syncedNames map[string]*node

	target string // of a symbolic link
}

// A write is a change of a file's content: of bytes at an offset, or, without bytes, of
// its size.
type write struct {
	off  int64
	data []byte
}

// A nameChange makes name in folder dir stand for node to, or for nothing if that is nil.
type nameChange struct {
	dir  *node
	name string
	to   *node
	// needs is what must have happened if this has: the new name if this removes the old one
	// of a rename.
	needs *nameChange
}

func (n *node) isDir() bool  { return n.mode&unix.S_IFMT == unix.S_IFDIR }
func (n *node) isFile() bool { return n.mode&unix.S_IFMT == unix.S_IFREG }

// newNode makes a node that has no name yet.
func (f *FS) newNode(mode uint32) *node {
	f.lastID++
	now := f.now()
	n := &node{id: f.lastID, mode: mode, atime: now, mtime: now, ctime: now}
	if n.isDir() {
		n.names, n.syncedNames = map[string]*node{}, map[string]*node{}
	}
	f.nodes[n.id] = n
	return n
}

// maxFile is the size of the largest file, in bytes: all is in memory.
const maxFile = 1 << 30

// write does w to what processes see of a file.
func (f *FS) write(n *node, w write) error {
	end := w.off + int64(len(w.data))
	if w.off < 0 || end > maxFile {
		return unix.EFBIG
	}
	grown := end - int64(len(n.data))
	if w.data != nil {
		grown = max(grown, 0)
	}
	if grown > 0 && f.space > 0 && grown > f.space-f.used {
		return unix.ENOSPC
	}
	f.used += grown
	n.data = w.apply(n.data)
	n.writes = append(n.writes, w)
	n.mtime = f.now()
	n.ctime = n.mtime
	return nil
}

// apply does w to content.
func (w write) apply(content []byte) []byte {
	end := int(w.off) + len(w.data)
	if w.data == nil && end < len(content) {
		return content[:end]
	}
	if end > len(content) {
		old := len(content)
		if end > cap(content) {
			content = append(make([]byte, 0, end+end/2), content...)
		}
		content = content[:end]
		clear(content[old:])
	}
	copy(content[w.off:], w.data)
	return content
}

// syncFile makes the content of a file survive.
func (f *FS) syncFile(n *node) {
	for _, w := range n.writes {
		n.synced = w.apply(n.synced)
	}
	n.writes = nil
}

// rename changes what a name stands for, as processes see it. needs is as in [nameChange].
func (f *FS) rename(dir *node, name string, to *node, needs *nameChange) *nameChange {
	if old := dir.names[name]; old != nil {
		old.nlink--
		old.ctime = f.now()
		f.release(old)
	}
	delete(dir.names, name)
	if to != nil {
		dir.names[name] = to
		to.nlink++
		to.ctime = f.now()
	}
	dir.mtime = f.now()
	dir.ctime = dir.mtime
	c := &nameChange{dir: dir, name: name, to: to, needs: needs}
	f.renamed = append(f.renamed, c)
	return c
}

// syncFolder makes the names in a folder survive.
func (f *FS) syncFolder(dir *node) {
	disk := names{}
	for _, c := range f.renamed {
		if c.dir == dir {
			disk.do(c, f.renamed)
		}
	}
	for d, list := range disk.of {
		d.syncedNames = list
	}
	left := f.renamed[:0]
	for _, c := range f.renamed {
		if !disk.done[c] {
			left = append(left, c)
		}
	}
	clear(f.renamed[len(left):])
	f.renamed = left
}

// names is what a disk holds of folders.
type names struct {
	of   map[*node]map[string]*node
	done map[*nameChange]bool // these, or later ones of the same name, are in it
}

// in returns what the disk holds of a folder.
func (d *names) in(dir *node) map[string]*node {
	if list, ok := d.of[dir]; ok {
		return list
	}
	if d.of == nil {
		d.of, d.done = map[*node]map[string]*node{}, map[*nameChange]bool{}
	}
	list := maps.Clone(dir.syncedNames)
	d.of[dir] = list
	return list
}

// do brings change c to the disk, after what it needs and in place of what came before it.
// all has all changes, oldest first.
func (d *names) do(c *nameChange, all []*nameChange) {
	list := d.in(c.dir)
	if d.done[c] {
		return
	}
	if c.needs != nil {
		d.do(c.needs, all)
	}
	if c.to != nil {
		list[c.name] = c.to
	} else {
		delete(list, c.name)
	}
	for _, before := range all {
		if before.dir == c.dir && before.name == c.name {
			d.done[before] = true
		}
		if before == c {
			return
		}
	}
}

// release forgets a node that has no name and that nobody has open. What survives may still
// have it.
func (f *FS) release(n *node) {
	if n.nlink == 0 && n.lookups == 0 && n != f.root {
		if f.nodes[n.id] == n {
			f.used -= int64(len(n.data))
		}
		delete(f.nodes, n.id)
	}
}

// free is how many bytes still fit.
func (f *FS) free() int64 {
	if f.space == 0 {
		return 1 << 40
	}
	return max(f.space-f.used, 0)
}
