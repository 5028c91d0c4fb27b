package extract

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Bounds say what another process may leave in a folder that it fills for us. The zero
// value allows nothing.
type Bounds struct {
	File      string // what the files come from, for messages
	Bytes     int64  // of all files, a sparse one with what it seems to have
	Entries   int    // files, directories and links
	Depth     int    // path components of an entry
	HardLinks bool   // whether a file may have several names, all of them in the folder
	// Progress, if not nil, is told how many bytes there are, whenever Watch has looked.
	Progress func(bytes int64)
}

const (
	// lookEvery is how often a folder is looked at while it is filled, or less often, so
	// that looking takes a tenth of the time at most.
	lookEvery = 200 * time.Millisecond
	// maxReserve bounds what is left to others of the file system: a fiftieth of it.
	maxReserve = 256 << 20
)

var errOver = errors.New("there is more than the limits allow")

// Watch runs fill, which lets another process fill root, and ends its context if more
// is there than the bounds allow, or if hardly anything is left of the file system: an
// extractor that keeps to its limits never sees that, but one that the archive has
// taken over does. What cannot be looked at ends it too, since it could be anything.
// Watch returns when fill has returned. Its error is that of fill, or of what ended it: if
// there was too much, an [invalid.Error] of kind invalid.ErrTooLarge.
func (b Bounds) Watch(ctx context.Context, root *os.Root, fill func(context.Context) error) error {
	return run(ctx, root, fill, b.watch, b.watchSpace)
}

// run runs fill until one of the watchers has an error.
func run(ctx context.Context, root *os.Root, fill func(context.Context) error, watchers ...func(context.Context, *os.Root) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	watched := make(chan error, len(watchers))
	for _, watch := range watchers {
		go func() {
			err := watch(ctx, root)
			if err != nil {
				stop(err)
			}
			watched <- err
		}()
	}
	err := fill(ctx)
	stop(nil)
	var over error
	for range watchers {
		over = cmp.Or(over, <-watched)
	}
	return cmp.Or(over, err)
}

// watch returns nil once ctx has ended.
func (b Bounds) watch(ctx context.Context, root *os.Root) error {
	timer := time.NewTimer(lookEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		began := time.Now()
		if err := b.look(ctx, root); err != nil {
			return err
		}
		timer.Reset(max(lookEvery, 10*time.Since(began)))
	}
}

// look looks once. What changes or goes meanwhile is no error.
func (b Bounds) look(ctx context.Context, root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return b.unseen(err)
	}
	defer dir.Close()
	c := newCount(b)
	err = walk(int(dir.Fd()), ".", ".", true, func(_ int, _, name string, st *unix.Stat_t) error {
		return cmp.Or(ctx.Err(), c.add(name, st))
	})
	if errors.Is(err, errOver) {
		return &invalid.Error{Kind: invalid.ErrTooLarge, File: b.File, Fix: invalid.FixLeaveOut,
			Reason: fmt.Sprintf("was stopped: its extraction makes more than %s or %d files", invalid.Megabytes(b.Bytes), b.Entries)}
	}
	if err != nil && ctx.Err() == nil {
		return b.unseen(err)
	}
	if b.Progress != nil {
		b.Progress(c.bytes)
	}
	return nil
}

// unseen is the error of what cannot be looked at.
func (b Bounds) unseen(err error) error {
	return fmt.Errorf("the extraction of %s was stopped, because what it makes cannot be counted: %w; see whether the file system of --state-dir is sound", b.File, err)
}

// WatchSpace is Watch for a process that writes to files without a name on the file system of
// root: of the bounds it knows only what is left there.
func (b Bounds) WatchSpace(ctx context.Context, root *os.Root, fill func(context.Context) error) error {
	return run(ctx, root, fill, b.watchSpace)
}

// watchSpace is watch for the file system. Looking at it costs nothing, so it is looked
// at as often however many files there are in the folder.
func (b Bounds) watchSpace(ctx context.Context, root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return b.unseen(err)
	}
	defer dir.Close()
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
			return b.unseen(os.NewSyscallError("fstatfs", err))
		}
		if left := reserve(&st); left != "" {
			return &invalid.Error{Kind: invalid.ErrTooLarge, File: b.File, Fix: "make room there, or choose another folder with --state-dir",
				Reason: fmt.Sprintf("was stopped: %s on the file system of %s", left, root.Name())}
		}
	}
}

// reserve says what is scarce in a file system, "" if nothing is. One that does not
// count has none.
func reserve(st *unix.Statfs_t) string {
	free, least := int64(st.Bavail)*st.Bsize, min(maxReserve, int64(st.Blocks)*st.Bsize/50)
	switch {
	case free < least:
		return invalid.Megabytes(free) + " are left"
	case st.Ffree < st.Files/50:
		return fmt.Sprintf("%d inodes are left", st.Ffree)
	}
	return ""
}

// Adopt makes what another process has left below root ours, and says how many bytes
// its files have. That process has ended, and may have done anything: what no extractor
// makes is an error. So is what has another owner than root, who was that process's user.
func (b Bounds) Adopt(root *os.Root) (bytes int64, err error) {
	dir, err := root.Open(".")
	if err != nil {
		return 0, fmt.Errorf("take over the files of %s: %w", b.File, err)
	}
	defer dir.Close()
	c := newCount(b)
	var owner uint32
	own := func(at int, base string) error {
		return unix.Fchownat(at, base, os.Geteuid(), os.Getegid(), unix.AT_SYMLINK_NOFOLLOW)
	}
	err = walk(int(dir.Fd()), ".", ".", false, func(at int, base, name string, st *unix.Stat_t) error {
		if name == "." {
			owner = st.Uid
		}
		const special = unix.S_ISUID | unix.S_ISGID | unix.S_ISVTX
		switch kind := st.Mode & unix.S_IFMT; {
		case st.Uid != owner:
			return fmt.Errorf("%q is another user's", invalid.Shorten(name))
		case kind == unix.S_IFREG && st.Mode&special == 0 && (b.HardLinks || st.Nlink == 1):
		case kind == unix.S_IFDIR && st.Mode&special == 0, kind == unix.S_IFLNK:
		default:
			return fmt.Errorf("%q is of mode %#o and has %d names, which no extraction makes", invalid.Shorten(name), st.Mode, st.Nlink)
		}
		if err := c.add(name, st); err != nil {
			return err
		}
		if shared(st) {
			return nil
		}
		return own(at, base)
	})
	if err == nil {
		err = c.complete()
	}
	if err == nil && len(c.missing) > 0 { // now all of their names are known to be here
		err = walk(int(dir.Fd()), ".", ".", false, func(at int, base, _ string, st *unix.Stat_t) error {
			if shared(st) {
				return own(at, base)
			}
			return nil
		})
	}
	if err != nil {
		return 0, fmt.Errorf("take over the files of %s: %w", b.File, err)
	}
	return c.bytes, nil
}

// walk calls visit with the folder that is base in the open folder at, and with all that
// is below it: each by the open folder that it is in, its name there and its path. It
// follows no link, whatever changes meanwhile. If changing, what has gone, or has become
// something else, is left out.
func walk(at int, base, name string, changing bool, visit func(at int, base, name string, st *unix.Stat_t) error) error {
	var st unix.Stat_t
	if err := unix.Fstatat(at, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return unlessChanged(changing, name, err)
	}
	if err := visit(at, base, name, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	fd, err := unix.Openat(at, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return unlessChanged(changing, name, err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1000)
		for _, n := range names {
			if err := walk(fd, n, path.Join(name, n), changing, visit); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return unlessChanged(changing, name, err)
		}
	}
}

// unlessChanged is nil for the errors of a file that is not there any more, and of a
// folder that is none any more.
func unlessChanged(changing bool, name string, err error) error {
	if changing && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)) {
		return nil
	}
	return &fs.PathError{Op: "look at", Path: name, Err: err}
}

// count adds up what is in a folder.
type count struct {
	most    Bounds
	entries int // without the folder itself
	bytes   int64
	missing map[inode]uint64 // names of files with several of them that were not seen yet
}

type inode struct{ dev, ino uint64 }

func newCount(most Bounds) *count {
	return &count{most: most, entries: -1, missing: map[inode]uint64{}}
}

// shared reports whether a file, or a link, has another name.
func shared(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 }

// add counts one entry, or says errOver.
func (c *count) add(name string, st *unix.Stat_t) error {
	if c.entries++; c.entries > c.most.Entries || strings.Count(name, "/") >= c.most.Depth {
		return errOver
	}
	if shared(st) {
		id := inode{st.Dev, st.Ino}
		left, seen := c.missing[id]
		if seen {
			c.missing[id] = left - 1
			return nil
		}
		c.missing[id] = uint64(st.Nlink) - 1
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if st.Size > c.most.Bytes-c.bytes {
		return errOver
	}
	c.bytes += st.Size
	return nil
}

// complete makes sure that no file has a name elsewhere, where it could still be
// written.
func (c *count) complete() error {
	for _, left := range c.missing {
		if left != 0 {
			return errors.New("a file has a name outside of the folder")
		}
	}
	return nil
}
