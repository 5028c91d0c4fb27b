package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

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
			Fix: "make it with docker save, or as a tar of an OCI layout, uncompressed"}
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
