package blob

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Open opens a blob for reading from its beginning to its end, where its digest is checked: if
// it is damaged, an error of kind ErrDamaged stands in place of [io.EOF]. Who does not read
// to the end has read what nobody has checked; see [Store.Verified]. If there is no such
// blob, the error is of kind ErrNotFound.
func (s *Store) Open(d Digest) (io.ReadCloser, error) {
	f, err := s.file(d)
	if err != nil {
		return nil, err
	}
	return &reader{file: f, want: d, hash: sha256.New()}, nil
}

// reader is what Open returns.
type reader struct {
	file *os.File
	want Digest
	hash hash.Hash
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.file.Read(p)
	r.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if Digest(r.hash.Sum(nil)) != r.want {
			return n, damaged(r.want)
		}
		return n, io.EOF
	}
	if err != nil {
		return n, fmt.Errorf("read blob %x: %w", r.want, err)
	}
	return n, nil
}

// Close implements io.Closer.
func (r *reader) Close() error { return r.file.Close() }

func damaged(d Digest) error {
	return fmt.Errorf("blob %x: %w; restore it from a backup, or upload it again", d, ErrDamaged)
}

// Verified reads a whole blob, checks its digest, and returns its file from the beginning,
// to be closed by the caller. Kinds of errors: ErrNotFound, ErrDamaged.
func (s *Store) Verified(ctx context.Context, d Digest) (*os.File, error) {
	f, err := s.file(d)
	if err != nil {
		return nil, err
	}
	if err := check(ctx, f, d); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Verify reads a whole blob and checks its digest. Kinds of errors: ErrNotFound, ErrDamaged.
func (s *Store) Verify(ctx context.Context, d Digest) error {
	f, err := s.file(d)
	if err != nil {
		return err
	}
	defer f.Close()
	return check(ctx, f, d)
}

// check reads f and checks its digest.
func check(ctx context.Context, f *os.File, d Digest) error {
	r := &reader{file: f, want: d, hash: sha256.New()}
	buf := make([]byte, 128<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := r.Read(buf); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// Size returns how many bytes a blob has. The kind of error is ErrNotFound.
func (s *Store) Size(d Digest) (int64, error) {
	info, err := s.root.Lstat(file(d))
	if err != nil || !info.Mode().IsRegular() {
		return 0, missing(d, err)
	}
	return info.Size(), nil
}

// file opens the file of a blob.
func (s *Store) file(d Digest) (*os.File, error) {
	// Anything else than a file must neither be waited for nor be read.
	if _, err := s.Size(d); err != nil {
		return nil, err
	}
	f, err := s.root.Open(file(d))
	if err != nil {
		return nil, missing(d, err)
	}
	return f, nil
}

// missing is the error of a blob that cannot be opened for err, or is no file.
func missing(d Digest, err error) error {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("blob %x: %w", d, ErrNotFound)
	}
	return fmt.Errorf("open blob %x: %w", d, err)
}

// List returns the digests of all blobs, in order.
func (s *Store) List(ctx context.Context) ([]Digest, error) {
	list, err := s.names(shards)
	if err != nil {
		return nil, fmt.Errorf("list the blobs: %w", err)
	}
	var all []Digest
	for _, shard := range list {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		names, err := s.names(path.Join(shards, shard))
		if errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list the blobs: %w", err)
		}
		for _, name := range names {
			// Files with other names are nobody's blobs.
			if d, err := Parse(name); err == nil && file(d) == path.Join(shards, shard, name) {
				all = append(all, d)
			}
		}
	}
	slices.SortFunc(all, func(a, b Digest) int { return slices.Compare(a[:], b[:]) })
	return all, nil
}
