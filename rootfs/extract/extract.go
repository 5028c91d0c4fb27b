package extract

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// extract makes the plan's entries below root, which is empty and private to the
// caller. The plan guarantees that no entry lies below a link, and root that
// nothing leaves the folder even if it did. Real bytes are counted, not declared
// ones. Every directory stays usable by its owner, so that it can be removed.
func (p *zipPlan) extract(ctx context.Context, root *os.Root, progress func(done, total int64)) error {
	var done int64
	for _, e := range p.entries {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("extract %s: %w", p.file, err)
		}
		if err := p.makeParents(root, e.name); err != nil {
			return err
		}
		switch e.typ {
		case fs.ModeDir:
			if err := root.MkdirAll(e.name, 0o755); err != nil {
				return fmt.Errorf("extract %s: %w", p.file, err)
			}
			continue
		case fs.ModeSymlink:
			if err := p.extractLink(root, e); err != nil {
				return err
			}
			continue
		}
		before := done
		err := p.extractFile(ctx, root, e, func(n int64) {
			if progress != nil {
				progress(before+n, p.bytes)
			}
			done = before + n
		})
		if err != nil {
			return err
		}
	}
	for name, dir := range p.dirs { // implied ones too: the umask counted when they were made
		err := root.Chmod(name, dir.perm|0o700)
		if err == nil && !dir.modified.IsZero() {
			err = root.Chtimes(name, time.Time{}, SaneTime(dir.modified))
		}
		if err != nil {
			return fmt.Errorf("extract %s: %w", p.file, err)
		}
	}
	return nil
}

// SaneTime returns t in the range of times that all file systems have.
func SaneTime(t time.Time) time.Time {
	const last = 1<<32 - 1
	return time.Unix(min(max(t.Unix(), 0), last), int64(t.Nanosecond()))
}

// makeParents makes the directories above an entry that the zip does not list, or
// lists later.
func (p *zipPlan) makeParents(root *os.Root, name string) error {
	dir := path.Dir(name)
	if dir == "." {
		return nil
	}
	if err := root.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("extract %s: %w", p.file, err)
	}
	return nil
}

func (p *zipPlan) extractFile(ctx context.Context, root *os.Root, e zipEntry, count func(int64)) (err error) {
	f, err := root.OpenFile(e.name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("extract %s: %w", p.file, err)
	}
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("extract %s: %w", p.file, cerr)
		}
	}()
	if err := p.copyEntry(ctx, f, e, count); err != nil {
		return err
	}
	err = f.Chmod(e.perm) // not at creation: the umask would count
	if err == nil {
		err = root.Chtimes(e.name, time.Time{}, SaneTime(e.zf.Modified))
	}
	if err != nil {
		return fmt.Errorf("extract %s: %w", p.file, err)
	}
	return nil
}

func (p *zipPlan) extractLink(root *os.Root, e zipEntry) error {
	var target strings.Builder
	if err := p.copyEntry(context.Background(), &target, e, func(int64) {}); err != nil {
		return err
	}
	if reason := checkLinkTarget(target.String()); reason != "" {
		return &invalid.Error{Kind: invalid.ErrUnsafe, File: p.file, Entry: e.name, Reason: reason, Fix: "make the zip anew with zip -ry"}
	}
	err := root.Symlink(target.String(), e.name)
	if err == nil {
		err = setLinkTime(root, e.name, SaneTime(e.zf.Modified))
	}
	if err != nil {
		return fmt.Errorf("extract %s: %w", p.file, err)
	}
	return nil
}

// setLinkTime sets the modification time of a link itself, which no method of os.Root does.
func setLinkTime(root *os.Root, name string, modified time.Time) error {
	dir, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, unix.NsecToTimespec(modified.UnixNano())}
	err = unix.UtimesNanoAt(int(dir.Fd()), path.Base(name), times, unix.AT_SYMLINK_NOFOLLOW)
	return os.NewSyscallError("utimensat", err)
}

// copyEntry writes an entry's content and checks size and CRC against what the
// archive declares; archive/zip lets a CRC of zero pass.
func (p *zipPlan) copyEntry(ctx context.Context, w io.Writer, e zipEntry, count func(int64)) error {
	r, err := e.zf.Open()
	if err != nil {
		return p.damaged(e, err)
	}
	defer r.Close()
	sum := crc32.NewIEEE()
	size := int64(e.zf.UncompressedSize64)
	var n int64
	buf := make([]byte, min(size+1, 128<<10))
	for {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("extract %s: %w", p.file, err)
		}
		m, rerr := r.Read(buf)
		if n += int64(m); n > size {
			return p.damaged(e, fmt.Errorf("holds more than the %d bytes it declares", size))
		}
		sum.Write(buf[:m])
		if _, err := w.Write(buf[:m]); err != nil {
			return fmt.Errorf("extract %s: %w", p.file, err)
		}
		count(n)
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return p.damaged(e, rerr)
		}
	}
	if n != size {
		return p.damaged(e, fmt.Errorf("holds %d bytes, declares %d", n, size))
	}
	if sum.Sum32() != e.zf.CRC32 {
		return p.damaged(e, fmt.Errorf("checksum does not match"))
	}
	return nil
}
