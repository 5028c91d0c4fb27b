package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// chunk is how much of an upload is in memory.
const chunk = 1 << 20

// A Pin keeps a blob that nothing refers to yet. Its methods can be called from several
// goroutines.
type Pin struct {
	Digest Digest
	Size   int64

	release func()
}

// Release gives the pin up: the blob goes with the next sweep unless something refers to
// it. It may be called again.
func (p *Pin) Release() { p.release() }

// Put keeps what r has, at most limit bytes, and returns once it is on the disk. It waits
// while as many others are written as may be at once. What is there already is written
// anew, which mends it if it was damaged. If it fails, nothing is left. Kinds of errors:
// ErrTooLarge, ErrNoSpace; errors of r and ctx are returned as they are.
func (s *Store) Put(ctx context.Context, r io.Reader, limit int64) (*Pin, error) {
	return s.put(ctx, r, limit, nil)
}

// PutDigest is Put for content whose digest is known: other content is refused with
// ErrDigest.
func (s *Store) PutDigest(ctx context.Context, r io.Reader, limit int64, want Digest) (*Pin, error) {
	return s.put(ctx, r, limit, &want)
}

// Restore is PutDigest without a bound and without a pin, for what a backup has. No sweep may
// run meanwhile.
func (s *Store) Restore(ctx context.Context, d Digest, r io.Reader) error {
	pin, err := s.PutDigest(ctx, r, math.MaxInt64, d)
	if err == nil {
		pin.Release()
	}
	return err
}

func (s *Store) put(ctx context.Context, r io.Reader, limit int64, want *Digest) (pin *Pin, err error) {
	select {
	case s.uploads <- struct{}{}:
		defer func() { <-s.uploads }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	s.last++
	name := path.Join(temp, strconv.FormatUint(s.last, 10))
	s.mu.Unlock()
	f, err := s.root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, storing(err)
	}
	defer func() {
		f.Close()
		if err != nil {
			// What cannot be removed now is removed at the next start.
			_ = s.root.Remove(name)
		}
	}()
	d, size, err := s.write(ctx, f, r, limit)
	if err != nil {
		return nil, err
	}
	if want != nil && d != *want {
		return nil, fmt.Errorf("store a blob: %w: it is %x, not %x", ErrDigest, d, *want)
	}
	if err := failpoint.Do(failpoint.SyncBlob, f.Sync); err != nil {
		return nil, storing(err)
	}
	pin = s.pin(d, size) // before the blob has its name, so that no sweep finds it without
	err = s.root.Rename(name, file(d))
	if err == nil {
		err = failpoint.Do(failpoint.SyncBlobFolder, func() error { return s.syncFolder(path.Dir(file(d))) })
	}
	if err != nil {
		pin.Release()
		return nil, storing(err)
	}
	return pin, nil
}

// write copies r to f and returns the digest and the size.
func (s *Store) write(ctx context.Context, f io.Writer, r io.Reader, limit int64) (d Digest, size int64, err error) {
	hash := sha256.New()
	buf := make([]byte, chunk)
	for {
		if err := ctx.Err(); err != nil {
			return d, 0, err
		}
		n, readErr := fill(r, buf)
		if int64(n) > limit-size {
			return d, 0, fmt.Errorf("store a blob: %w: it has more than %d bytes", ErrTooLarge, limit)
		}
		if err := s.space(int64(n)); err != nil {
			return d, 0, err
		}
		if _, err := f.Write(buf[:n]); err != nil {
			return d, 0, storing(err)
		}
		hash.Write(buf[:n])
		size += int64(n)
		if errors.Is(readErr, io.EOF) {
			return Digest(hash.Sum(nil)), size, nil
		}
		if readErr != nil {
			return d, 0, readErr
		}
	}
}

// fill reads until buf is full or r ends or fails. Unlike [io.ReadFull] it tells the end from
// an [io.ErrUnexpectedEOF] of r, which is what an upload ends with that was cut off.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Free returns how many bytes of the disk are free for this process.
func (s *Store) Free() (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.dir.Fd()), &st); err != nil {
		return 0, fmt.Errorf("see how much space is left: %w", err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// space checks that n more bytes leave enough of the disk.
func (s *Store) space(n int64) error {
	free, err := s.Free()
	if err != nil {
		return err
	}
	if free-n < s.options.Floor {
		return fmt.Errorf("store a blob: %w: %d bytes are free, at least %d more are to be written, and %d must stay free; free space on the disk of the state folder", ErrNoSpace, free, n, s.options.Floor)
	}
	return nil
}

// storing gives an error of the disk its kind.
func storing(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return noSpace{err}
	}
	return fmt.Errorf("store a blob: %w", err)
}

// noSpace is an error of a full disk.
type noSpace struct{ error }

func (e noSpace) Error() string {
	return fmt.Sprintf("store a blob: %v; free space on the disk of the state folder", e.error)
}

// Is reports whether target is ErrNoSpace.
func (e noSpace) Is(target error) bool { return target == ErrNoSpace }

// Unwrap returns the cause.
func (e noSpace) Unwrap() error { return e.error }

// Pin keeps a blob that is there, for who is about to refer to it. The kind of error is
// ErrNotFound.
func (s *Store) Pin(d Digest) (*Pin, error) {
	pin := s.pin(d, 0)
	size, err := s.Size(d)
	if err != nil {
		pin.Release()
		return nil, err
	}
	pin.Size = size
	return pin, nil
}

// pin waits for a removal of the blob to end.
func (s *Store) pin(d Digest, size int64) *Pin {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pins[d]++
	return &Pin{Digest: d, Size: size, release: sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pins[d]--; s.pins[d] == 0 {
			delete(s.pins, d)
		}
	})}
}
