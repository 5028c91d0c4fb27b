package forgetfs

import (
	"errors"
	"maps"
	"slices"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A handler answers the kernel. It is a type of its own so that the kernel's calls are not
// part of FS.
type handler struct {
	fuse.RawFileSystem // answers ENOSYS

	fs *FS
}

// String implements fuse.RawFileSystem.
func (h *handler) String() string { return "forgetfs" }

// lock takes the lock for a call and returns its release, and the node that the call is for.
// A call that changes something counts.
func (h *handler) lock(id uint64, changes bool) (*node, func(), fuse.Status) {
	h.fs.mu.Lock()
	n := h.fs.nodes[id]
	if h.fs.down || changes && !h.fs.change() {
		return nil, h.fs.mu.Unlock, fuse.EIO
	}
	if n == nil {
		return nil, h.fs.mu.Unlock, fuse.Status(unix.ESTALE)
	}
	return n, h.fs.mu.Unlock, fuse.OK
}

// entry tells the kernel of a node.
func entry(n *node, out *fuse.EntryOut) {
	n.lookups++
	out.NodeId = n.id
	out.Generation = 1
	attributes(n, &out.Attr)
}

func attributes(n *node, out *fuse.Attr) {
	out.Ino, out.Mode, out.Nlink = n.id, n.mode, n.nlink
	out.Owner = fuse.Owner{Uid: n.uid, Gid: n.gid}
	out.Size, out.Blksize = uint64(len(n.data)), 4096
	if n.mode&unix.S_IFMT == unix.S_IFLNK {
		out.Size = uint64(len(n.target))
	}
	out.Blocks = (out.Size + 511) / 512
	out.SetTimes(&n.atime, &n.mtime, &n.ctime)
}

// Lookup finds a name.
func (h *handler) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return status
	}
	n := dir.names[name]
	if n == nil {
		return fuse.ENOENT
	}
	entry(n, out)
	return fuse.OK
}

// Forget says that the kernel holds a node less often.
func (h *handler) Forget(id, lookups uint64) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if n := h.fs.nodes[id]; n != nil {
		n.lookups -= min(lookups, n.lookups)
		h.fs.release(n)
	}
}

// GetAttr is stat.
func (h *handler) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if status.Ok() {
		attributes(n, &out.Attr)
	}
	return status
}

// SetAttr is truncate, chmod, chown and utimes.
func (h *handler) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return status
	}
	if size, ok := in.GetSize(); ok {
		if !n.isFile() {
			return fuse.EINVAL
		}
		if err := h.fs.write(n, write{off: int64(size)}); err != nil {
			return fuse.ToStatus(err)
		}
	}
	if mode, ok := in.GetMode(); ok {
		n.mode = n.mode&unix.S_IFMT | mode&^unix.S_IFMT
	}
	if uid, ok := in.GetUID(); ok {
		n.uid = uid
	}
	if gid, ok := in.GetGID(); ok {
		n.gid = gid
	}
	if t, ok := in.GetATime(); ok {
		n.atime = t
	}
	if t, ok := in.GetMTime(); ok {
		n.mtime = t
	}
	n.ctime = h.fs.now()
	attributes(n, &out.Attr)
	return fuse.OK
}

// make makes a node and its name.
func (h *handler) make(in *fuse.InHeader, name string, mode uint32, out *fuse.EntryOut) (*node, fuse.Status) {
	dir, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return nil, status
	}
	if dir.names[name] != nil {
		return nil, fuse.Status(unix.EEXIST)
	}
	n := h.fs.newNode(mode)
	n.uid, n.gid = in.Uid, in.Gid
	h.fs.rename(dir, name, n, nil)
	entry(n, out)
	return n, fuse.OK
}

// Mknod makes a file; nothing else can be made.
func (h *handler) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.Mode&unix.S_IFMT != unix.S_IFREG {
		return fuse.EPERM
	}
	_, status := h.make(&in.InHeader, name, in.Mode, out)
	return status
}

// Mkdir makes a folder.
func (h *handler) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	_, status := h.make(&in.InHeader, name, unix.S_IFDIR|in.Mode&^unix.S_IFMT, out)
	return status
}

// Symlink makes a symbolic link.
func (h *handler) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	n, status := h.make(in, name, unix.S_IFLNK|0o777, out)
	if status.Ok() {
		h.fs.mu.Lock()
		defer h.fs.mu.Unlock()
		n.target = target
	}
	return status
}

// Readlink reads a symbolic link.
func (h *handler) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return nil, status
	}
	return []byte(n.target), fuse.OK
}

// Create makes a file and opens it.
func (h *handler) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	_, status := h.make(&in.InHeader, name, unix.S_IFREG|in.Mode&^unix.S_IFMT, &out.EntryOut)
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return status
}

// Link gives a file another name.
func (h *handler) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return status
	}
	n := h.fs.nodes[in.Oldnodeid]
	if n == nil || n.isDir() {
		return fuse.EPERM
	}
	if dir.names[name] != nil {
		return fuse.Status(unix.EEXIST)
	}
	h.fs.rename(dir, name, n, nil)
	entry(n, out)
	return fuse.OK
}

// Unlink removes a file's name.
func (h *handler) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return h.remove(in, name, false)
}

// Rmdir removes an empty folder.
func (h *handler) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return h.remove(in, name, true)
}

func (h *handler) remove(in *fuse.InHeader, name string, folder bool) fuse.Status {
	dir, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return status
	}
	n := dir.names[name]
	if err := removable(n, folder); err != nil {
		return fuse.ToStatus(err)
	}
	h.fs.rename(dir, name, nil, nil)
	return fuse.OK
}

// removable says why a node's name cannot be removed as a folder's or as a file's.
func removable(n *node, folder bool) error {
	switch {
	case n == nil:
		return unix.ENOENT
	case folder && !n.isDir():
		return unix.ENOTDIR
	case !folder && n.isDir():
		return unix.EISDIR
	case folder && len(n.names) > 0:
		return unix.ENOTEMPTY
	}
	return nil
}

// Rename moves a name.
func (h *handler) Rename(_ <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	dir, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return status
	}
	n, newDir := dir.names[from], h.fs.nodes[in.Newdir]
	if n == nil || newDir == nil {
		return fuse.ENOENT
	}
	old := newDir.names[to]
	switch {
	case in.Flags&^unix.RENAME_NOREPLACE != 0:
		return fuse.EINVAL
	case in.Flags != 0 && old != nil:
		return fuse.Status(unix.EEXIST)
	case old == n:
		return fuse.OK
	}
	if err := removable(old, n.isDir()); err != nil && !errors.Is(err, unix.ENOENT) {
		return fuse.ToStatus(err)
	}
	added := h.fs.rename(newDir, to, n, nil)
	h.fs.rename(dir, from, nil, added)
	return fuse.OK
}

// Open opens a file.
func (h *handler) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, in.Flags&unix.O_TRUNC != 0)
	defer unlock()
	if status.Ok() && in.Flags&unix.O_TRUNC != 0 {
		status = fuse.ToStatus(h.fs.write(n, write{}))
	}
	out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	return status
}

// Read reads a file.
func (h *handler) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return nil, status
	}
	from := min(in.Offset, uint64(len(n.data)))
	return fuse.ReadResultData(buf[:copy(buf, n.data[from:])]), fuse.OK
}

// Write writes to a file.
func (h *handler) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return 0, status
	}
	w := write{off: int64(in.Offset), data: append([]byte{}, data...)}
	if err := h.fs.write(n, w); err != nil {
		return 0, fuse.ToStatus(err)
	}
	return uint32(len(data)), fuse.OK
}

// Fallocate makes a file larger.
func (h *handler) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if !status.Ok() {
		return status
	}
	end := int64(in.Offset + in.Length)
	switch {
	case in.Mode != 0:
		return fuse.Status(unix.EOPNOTSUPP)
	case end <= int64(len(n.data)):
		return fuse.OK
	}
	return fuse.ToStatus(h.fs.write(n, write{off: end}))
}

// Flush is what close does; it syncs nothing.
func (h *handler) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.OK }

// Fsync makes a file's content survive.
func (h *handler) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if status.Ok() {
		h.fs.counts.FileSyncs++
		h.fs.syncFile(n)
	}
	return status
}

// FsyncDir makes the names in a folder survive.
func (h *handler) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, true)
	defer unlock()
	if status.Ok() {
		h.fs.counts.FolderSyncs++
		h.fs.syncFolder(n)
	}
	return status
}

// OpenDir begins to list a folder.
func (h *handler) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return status
	}
	h.fs.lastID++
	out.Fh = h.fs.lastID
	h.fs.lists[out.Fh] = n.list()
	return fuse.OK
}

// list returns what is in a folder.
func (n *node) list() []fuse.DirEntry {
	list := []fuse.DirEntry{{Name: ".", Mode: unix.S_IFDIR, Ino: n.id}, {Name: "..", Mode: unix.S_IFDIR}}
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		child := n.names[name]
		list = append(list, fuse.DirEntry{Name: name, Mode: child.mode, Ino: child.id})
	}
	return list
}

// ReadDir lists a folder, as it is when the listing begins.
func (h *handler) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return status
	}
	if in.Offset == 0 { // rewinddir
		h.fs.lists[in.Fh] = n.list()
	}
	list := h.fs.lists[in.Fh]
	for _, e := range list[min(in.Offset, uint64(len(list))):] {
		if !out.AddDirEntry(e) {
			break
		}
	}
	return fuse.OK
}

// ReleaseDir ends a listing.
func (h *handler) ReleaseDir(in *fuse.ReleaseIn) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	delete(h.fs.lists, in.Fh)
}

// StatFs says how much fits.
func (h *handler) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	_, unlock, status := h.lock(in.NodeId, false)
	defer unlock()
	if !status.Ok() {
		return status
	}
	const block = 4096
	free := uint64(h.fs.free()) / block
	*out = fuse.StatfsOut{
		Bsize: block, Frsize: block, NameLen: 255,
		Bfree: free, Bavail: free, Blocks: free + uint64(h.fs.used)/block,
		Files: 1 << 20, Ffree: 1 << 20,
	}
	return fuse.OK
}
