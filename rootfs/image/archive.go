package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// maxArchiveFiles bounds the files of an archive, which are listed in memory.
const maxArchiveFiles = 10_000

// archiveFiles are the files of a tar archive. The archive is read once, to find where
// each file's bytes are; nothing of it is unpacked.
type archiveFiles struct {
	f    *os.File
	at   map[string]extent
	same map[string]string // links: to which name
}

// extent is where a file's bytes are.
type extent struct{ start, size int64 }

// openArchive opens a file, unread.
func openArchive(given string) (_ *os.File, err error) {
	f, err := os.OpenFile(given, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &invalid.Error{Kind: invalid.ErrNotFound, File: given, Reason: "cannot be opened", Err: reason(err)}
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		err = fmt.Errorf("%s: %w", given, err)
	case !info.Mode().IsRegular():
		err = &invalid.Error{Kind: invalid.ErrImage, File: given, Reason: "is neither a directory nor a file",
			Fix: "give an OCI layout or an archive"}
	default:
		return f, nil
	}
	f.Close()
	return nil, err
}

// plainArchive gives the archive itself, or, of a compressed one, spool with what it holds:
// the files of an image are read in any order.
func (j ReadJob) plainArchive(ctx context.Context, archive, spool *os.File) (*os.File, error) {
	bad := func(kind error, reason, fix string, err error) error {
		return &invalid.Error{Kind: kind, File: j.Image, Reason: reason, Fix: fix, Err: err}
	}
	head := make([]byte, 6)
	n, err := archive.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", j.Image, err)
	}
	switch head = head[:n]; {
	case bytes.Equal(head, []byte("\xfd7zXZ\x00")):
		return nil, bad(invalid.ErrImage, "is compressed with xz, which is not known here", "decompress it with xz -d, or compress it with gzip or zstd", nil)
	case bytes.HasPrefix(head, []byte("BZh")):
		return nil, bad(invalid.ErrImage, "is compressed with bzip2, which is not known here", "decompress it with bzip2 -d, or compress it with gzip or zstd", nil)
	case !compressed(head):
		return archive, nil
	}
	count, err := newVerifier(ctx, archive, v1.Hash{}, -1, func(int64) {})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", j.Image, err)
	}
	plain, done, err := decompress(count)
	if err != nil {
		return nil, bad(invalid.ErrImage, "is damaged", fixBuild, err)
	}
	defer done()
	out := &spoolWriter{f: spool}
	switch size, err := io.Copy(out, io.LimitReader(plain, j.Spool+1)); {
	case out.err != nil:
		return nil, fmt.Errorf("decompress %s: %w", j.Image, out.err)
	case ctx.Err() != nil:
		return nil, fmt.Errorf("decompress %s: %w", j.Image, ctx.Err())
	case err != nil:
		return nil, bad(invalid.ErrImage, "is damaged", fixBuild, err)
	case size > j.Spool:
		return nil, bad(invalid.ErrTooLarge, "has more than "+invalid.Megabytes(j.Spool)+" once it is decompressed", invalid.FixLeaveOut, nil)
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return nil, fmt.Errorf("decompress %s: %w", j.Image, err)
	}
	return spool, nil
}

// spoolWriter keeps the error of the disk apart from those of the archive.
type spoolWriter struct {
	f   *os.File
	err error
}

func (w *spoolWriter) Write(p []byte) (n int, err error) {
	if n, err = w.f.Write(p); err != nil {
		w.err = err
	}
	return n, err
}

// listArchive lists the files of an archive. It reads f, which stays the caller's.
func listArchive(ctx context.Context, given string, f *os.File) (files, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", given, err)
	}
	a := &archiveFiles{f: f, at: map[string]extent{}, same: map[string]string{}}
	return a, a.list(ctx, given, info.Size())
}

// list finds the archive's files.
func (a *archiveFiles) list(ctx context.Context, given string, size int64) error {
	bad := func(kind error, entry, reason string, err error) error {
		return &invalid.Error{Kind: kind, File: given, Entry: entry, Reason: reason, Err: err,
			Fix: "make it with docker save, or as a tar of an OCI layout"}
	}
	tr := tar.NewReader(a.f)
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", given, err)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bad(invalid.ErrImage, "", "cannot be read as an archive", err)
		}
		if n >= maxArchiveFiles {
			return bad(invalid.ErrTooLarge, "", fmt.Sprintf("has more than %d files", maxArchiveFiles), nil)
		}
		name, why := cleanName(hdr.Name)
		if why != "" {
			return bad(invalid.ErrUnsafe, hdr.Name, why, nil)
		}
		if len(hdr.Linkname) > maxPath {
			return bad(invalid.ErrUnsafe, hdr.Name, "is a link with a target that is too long", nil)
		}
		switch hdr.Typeflag {
		case tar.TypeReg:
			start, err := a.f.Seek(0, io.SeekCurrent) // the tar reader reads no further than the header
			if err != nil {
				return fmt.Errorf("list %s: %w", given, err)
			}
			if sparse(hdr) {
				return bad(invalid.ErrImage, hdr.Name, "is stored as a sparse file", nil)
			}
			if hdr.Size > size-start {
				return bad(invalid.ErrImage, hdr.Name, "is cut off", nil)
			}
			a.at[name] = extent{start, hdr.Size}
		case tar.TypeSymlink: // a layer that docker save has written before
			a.same[name] = path.Join(path.Dir(name), hdr.Linkname)
		case tar.TypeLink:
			a.same[name] = path.Clean(hdr.Linkname)
		case tar.TypeDir, tar.TypeXGlobalHeader:
		default:
			return bad(invalid.ErrImage, hdr.Name, fmt.Sprintf("is of the type %q, which no image archive has", hdr.Typeflag), nil)
		}
	}
}

// sparse tells files whose bytes are not all there.
func sparse(hdr *tar.Header) bool {
	for key := range hdr.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func (a *archiveFiles) open(name string) (io.ReadCloser, int64, error) {
	for range maxHops {
		if e, ok := a.at[name]; ok {
			return io.NopCloser(io.NewSectionReader(a.f, e.start, e.size)), e.size, nil
		}
		to, ok := a.same[name]
		if !ok {
			break
		}
		name = to
	}
	return nil, 0, fs.ErrNotExist
}
