package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds say what another process may leave in a folder that it fills for us. The zero
// value allows nothing.
type Bounds struct {
	File      string // what the files come from, for messages
	Bytes     int64  // of all files, a sparse one with what it seems to have
	Entries   int    // files, directories and links
	Depth     int    // path components of an entry
	HardLinks bool   // whether a file may have several names, all of them in the folder
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
// taken over does. Watch returns when fill has returned. Its error is that of fill, or
// an [InvalidError] of kind ErrTooLarge.
func (b Bounds) Watch(ctx context.Context, root *os.Root, fill func(context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	watched := make(chan error, 1)
	go func() {
		err := b.watch(ctx, root)
		stop(err)
		watched <- err
	}()
	err := fill(ctx)
	stop(nil)
	if over := <-watched; over != nil {
		return over
	}
	return err
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
	c := newCount(b)
	err := fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		return c.add(name, info)
	})
	if errors.Is(err, errOver) {
		return &InvalidError{Kind: ErrTooLarge, File: b.File, Fix: fixTooMany,
			Reason: fmt.Sprintf("was stopped: its extraction makes more than %s or %d files", megabytes(b.Bytes), b.Entries)}
	}
	var st unix.Statfs_t
	if dir, err := root.Open("."); err == nil {
		err = unix.Fstatfs(int(dir.Fd()), &st)
		dir.Close()
		if left := reserve(&st); err == nil && left != "" {
			return &InvalidError{Kind: ErrTooLarge, File: b.File, Fix: "make room there, or choose another folder with --state-dir",
				Reason: fmt.Sprintf("was stopped: %s on the file system of %s", left, root.Name())}
		}
	}
	return nil
}

// reserve says what is scarce in a file system, "" if nothing is. One that does not
// count has none.
func reserve(st *unix.Statfs_t) string {
	free, least := int64(st.Bavail)*st.Bsize, min(maxReserve, int64(st.Blocks)*st.Bsize/50)
	switch {
	case free < least:
		return megabytes(free) + " are left"
	case st.Ffree < st.Files/50:
		return fmt.Sprintf("%d inodes are left", st.Ffree)
	}
	return ""
}

// Adopt makes what another process has left below root ours, and says how many bytes
// its files have. That process has ended, and may have done anything: what no extractor
// makes is an error.
func (b Bounds) Adopt(root *os.Root) (bytes int64, err error) {
	c := newCount(b)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch kind := info.Mode() & (fs.ModeType | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky); {
		case kind == 0 && (b.HardLinks || info.Sys().(*syscall.Stat_t).Nlink == 1):
		case kind == fs.ModeDir, kind == fs.ModeSymlink:
		default:
			return fmt.Errorf("%q is a %v, which no extraction makes", shorten(name), info.Mode())
		}
		if err := c.add(name, info); err != nil {
			return err
		}
		return root.Lchown(name, os.Geteuid(), os.Getegid())
	})
	if err == nil {
		err = c.complete()
	}
	if err != nil {
		return 0, fmt.Errorf("rootfs: take over the files of %s: %w", b.File, err)
	}
	return c.bytes, nil
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

// add counts one entry, or says errOver.
func (c *count) add(name string, info fs.FileInfo) error {
	if c.entries++; c.entries > c.most.Entries || strings.Count(name, "/") >= c.most.Depth {
		return errOver
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	if st := info.Sys().(*syscall.Stat_t); st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		left, seen := c.missing[id]
		if seen {
			c.missing[id] = left - 1
			return nil
		}
		c.missing[id] = uint64(st.Nlink) - 1
	}
	if info.Size() > c.most.Bytes-c.bytes {
		return errOver
	}
	c.bytes += info.Size()
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
