package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Caps of one copied /etc; far above what systems have.
const (
	maxCopyBytes   = 64 << 20
	maxCopyEntries = 20_000
	maxCopyDepth   = 32
)

// copier copies parts of a tree that may be hostile and may change meanwhile. It
// takes regular files and directories that everybody may read, so nothing that an
// ordinary local user could not see, and links as they are; devices, pipes and
// sockets are left out. What it makes belongs to the daemon's user, without set-id
// bits. Paths are relative to both roots and the same in both.
type copier struct {
	ctx     context.Context
	from    string // for messages
	src     *os.Root
	dst     *os.Root
	skip    func(rel string) bool
	bytes   int64 // left
	entries int   // left
}

func newCopier(ctx context.Context, from string, src, dst *os.Root, skip func(string) bool) *copier {
	return &copier{ctx: ctx, from: from, src: src, dst: dst, skip: skip, bytes: maxCopyBytes, entries: maxCopyEntries}
}

func (c *copier) tooLarge(rel, what string) error {
	return &invalid.Error{Kind: invalid.ErrTooLarge, File: c.from, Entry: rel, Reason: "has " + what,
		Fix: "this folder is copied for every function: leave out what does not belong in /etc"}
}

// copy takes over rel, which need not exist, with everything below it.
func (c *copier) copy(rel string, depth int) error {
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	if c.skip(rel) {
		return nil
	}
	info, err := c.src.Lstat(rel)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	if c.entries--; c.entries < 0 {
		return c.tooLarge(rel, fmt.Sprintf("more than %d files", maxCopyEntries))
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return c.copyLink(rel)
	case info.IsDir() && info.Mode().Perm()&0o005 == 0o005:
		return c.copyDir(rel, depth)
	case info.Mode().IsRegular() && info.Mode().Perm()&0o004 != 0:
		return c.copyFile(rel)
	}
	return nil
}

func (c *copier) copyLink(rel string) error {
	target, err := c.src.Readlink(rel)
	if err == nil {
		err = c.dst.Symlink(target, rel)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	return nil
}

func (c *copier) copyDir(rel string, depth int) error {
	if depth >= maxCopyDepth {
		return c.tooLarge(rel, fmt.Sprintf("more than %d directories in one another", maxCopyDepth))
	}
	if rel != "." {
		if err := c.dst.Mkdir(rel, 0o755); err != nil {
			return fmt.Errorf("copy %s: %w", c.from, err)
		}
		if err := c.dst.Chmod(rel, 0o755); err != nil {
			return fmt.Errorf("copy %s: %w", c.from, err)
		}
	}
	names, err := dirNames(c.src, rel, c.entries)
	if errors.Is(err, errBound) {
		return c.tooLarge(rel, fmt.Sprintf("more than %d files", maxCopyEntries))
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	for _, name := range names {
		if err := c.copy(path.Join(rel, name), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *copier) copyFile(rel string) (err error) {
	in, err := c.src.OpenFile(rel, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o004 == 0 {
		return nil // replaced meanwhile
	}
	if info.Size() > c.bytes { // also a sparse giant, before it is read
		return c.tooLarge(rel, "more than "+invalid.Megabytes(maxCopyBytes))
	}
	out, err := c.dst.OpenFile(rel, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	defer func() {
		if cerr := out.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("copy %s: %w", c.from, cerr)
		}
	}()
	n, err := io.Copy(out, io.LimitReader(in, c.bytes+1))
	if err != nil {
		return fmt.Errorf("copy %s: %w", c.from, err)
	}
	if c.bytes -= n; c.bytes < 0 {
		return c.tooLarge(rel, "more than "+invalid.Megabytes(maxCopyBytes))
	}
	return out.Chmod(0o644 | info.Mode().Perm()&0o111)
}

// dirNames lists a directory, sorted, or fails with errBound above most names.
func dirNames(root *os.Root, rel string, most int) ([]string, error) {
	f, err := root.OpenFile(rel, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readNames(f, most)
}
