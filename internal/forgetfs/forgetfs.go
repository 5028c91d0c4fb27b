// Package forgetfs is a file system for tests that loses what was not synced, as a disk
// does when the power is cut (docs/decisions/0052). Only tests import it.
//
// A folder's content is loaded into memory and served through FUSE. [FS.Stop] cuts the
// power: from then on every call fails. [FS.Survivors] writes what a disk might hold then
// into a folder, as often as asked and different for each seed:
//
//   - The content of a file that was synced (fsync, fdatasync) is there. Each sector that was
//     written since holds any value that it had since, and the size is any that the file had.
//   - A name that was made, moved or removed before its folder was synced is as it was then.
//     Each later change of a name has happened or not, in any order, but for a rename, which
//     loses the old name only if the new one is there.
//   - Mode, owner and times are as they were last.
//
// That is what POSIX promises and no more: syncing a file does not keep its name. Real
// file systems mostly keep more, so what withstands this one withstands them.
//
// Locks and shared mappings work. What was written to a mapping counts as written once the
// kernel writes it back, at the latest with msync or fsync.
package forgetfs

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FS is a mounted file system. Its methods can be called from several goroutines.
type FS struct {
	dir     string
	server  *fuse.Server
	served  chan struct{} // closed when the kernel has let go of the mount
	stopped chan struct{} // closed by the cut

	mu      sync.Mutex // of all that follows, and of the nodes
	down    bool
	left    int // changes until then is called; negative if it is not to be
	then    func()
	nodes   map[uint64]*node
	lastID  uint64
	lists   map[uint64][]fuse.DirEntry // of open folders
	root    *node
	renamed []*nameChange // changes of names that are not synced, oldest first
	counts  Counts
	space   int64 // bytes that fit; 0 for no bound
	used    int64
	now     func() time.Time
}

// Counts says what was asked of a file system so far.
type Counts struct {
	Changes     int // writes, changes of sizes and of names, and syncs
	FileSyncs   int
	FolderSyncs int
}

// Mount loads what is in folder disk and mounts the file system at folder dir; space is how
// many bytes fit, 0 any number. The caller must be root, and must call [FS.Close]. It may use
// the mount, but must not map files of it nor start processes with a working folder or open
// files there: it would wait for itself.
func Mount(dir, disk string, space int64) (*FS, error) {
	f := newFS(space)
	if err := f.load(disk); err != nil {
		return nil, fmt.Errorf("load %s: %w", disk, err)
	}
	server, err := fuse.NewServer(&handler{RawFileSystem: fuse.NewDefaultRawFileSystem(), fs: f}, dir, &fuse.MountOptions{
		AllowOther:        true,
		Options:           []string{"default_permissions"},
		FsName:            "forgetfs",
		Name:              "forgetfs",
		MaxWrite:          1 << 20,
		DisableXAttrs:     true,
		DirectMountStrict: true,
		// Nobody but the kernel changes what it caches.
		ExplicitDataCacheControl: true,
		DisableReadDirPlus:       true,
	})
	if err != nil {
		return nil, fmt.Errorf("mount a FUSE file system at %s: %w", dir, err)
	}
	f.dir, f.server = dir, server
	go func() {
		defer close(f.served)
		server.Serve()
	}()
	if err := server.WaitMount(); err != nil {
		return nil, errors.Join(fmt.Errorf("wait for the mount at %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// newFS returns a file system without content that is not mounted.
func newFS(space int64) *FS {
	f := &FS{
		served: make(chan struct{}), stopped: make(chan struct{}),
		nodes: map[uint64]*node{}, lists: map[uint64][]fuse.DirEntry{},
		left: -1, space: space, now: time.Now,
	}
	f.root = f.newNode(unix.S_IFDIR | 0o755)
	f.root.nlink = 1
	return f
}

// Close ends and unmounts the file system, even if processes use it or wait for it: they get
// errors.
func (f *FS) Close() error {
	f.Stop()
	// Aborting the connection wakes everybody; detaching needs nobody's leave.
	if err := unix.Unmount(f.dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount %s: %w", f.dir, err)
	}
	<-f.served
	return nil
}

// Stop cuts the power: what is asked for from now on fails with EIO.
func (f *FS) Stop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stop()
}

// stop is Stop for who holds mu.
func (f *FS) stop() {
	if !f.down {
		f.down = true
		close(f.stopped)
	}
}

// StopAfter cuts the power at the nth change from now on, which does not happen.
func (f *FS) StopAfter(n int) { f.At(n, f.stop) }

// At calls then at the nth change from now on, before it happens, and nothing else meanwhile:
// then must neither use the mount nor call a method of f. A later call replaces an earlier
// one whose time has not come.
func (f *FS) At(n int, then func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.then = n-1, then
}

// Stopped is closed when the power is cut.
func (f *FS) Stopped() <-chan struct{} { return f.stopped }

// Counts returns what was asked for so far.
func (f *FS) Counts() Counts {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.counts
}

// change is called before each change. It reports whether the change may happen.
func (f *FS) change() bool {
	if f.left == 0 {
		f.then()
	}
	if f.left >= 0 {
		f.left--
	}
	if f.down {
		return false
	}
	f.counts.Changes++
	return true
}
