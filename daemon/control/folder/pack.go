package folder

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// Limits of a directory that is packed. They are those of zips, so that nothing is packed that
// cannot be extracted. The reader limits the bytes.
const (
	maxEntries = 100_000 // files, directories and links
	maxDepth   = 100     // names of a path
	maxTarget  = 4096    // bytes of a link's target, as of any path
)

// packed is a directory as a zip, which is made while it is read.
type packed struct {
	*io.PipeReader
	over chan struct{} // closed when nothing reads the directory any more
}

// Close ends the packing.
func (p *packed) Close() error {
	p.PipeReader.Close()
	<-p.over
	return nil
}

// pack returns the directory, which lies below a folder, as a zip. It closes dir when it has read
// it. The zip is the same as long as the directory is: entries are in the order of their names,
// with the modes and times that they have, and are not compressed.
func pack(ctx context.Context, in *Folder, dir *os.File, below string) io.ReadCloser {
	r, w := io.Pipe()
	p := &packed{r, make(chan struct{})}
	go func() {
		defer close(p.over)
		k := &packer{ctx: ctx, in: in, zip: zip.NewWriter(w)}
		err := k.directory(dir, below, "", 0)
		if err == nil && k.entries == 0 {
			err = refuse("The directory %.1024q in the folder %s is empty", below, in.Name)
		}
		if err == nil {
			err = k.zip.Close()
		}
		w.CloseWithError(err)
	}()
	return p
}

type packer struct {
	ctx     context.Context
	in      *Folder
	zip     *zip.Writer
	entries int
}

// directory packs what is in a directory, and closes it. at is its path below the folder, and
// prefix that of its entries in the zip.
func (k *packer) directory(dir *os.File, at, prefix string, depth int) error {
	defer dir.Close()
	if depth >= maxDepth {
		return refuse("%.1024q in the folder %s: more than %d directories in one another", at, k.in.Name, maxDepth)
	}
	names, err := dir.Readdirnames(maxEntries - k.entries + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return k.in.explain(at, err)
	}
	if k.entries += len(names); k.entries > maxEntries {
		return refuse("The directory in the folder %s has more than %d files: name one that has only the code", k.in.Name, maxEntries)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := k.ctx.Err(); err != nil {
			return err
		}
		if err := k.entry(dir, name, path.Join(at, name), prefix+name, depth); err != nil {
			return err
		}
	}
	return nil
}

// entry packs what has a name in a directory.
func (k *packer) entry(dir *os.File, name, at, to string, depth int) error {
	file, st, err := open(dir, name, unix.O_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		err = errChanging // it was there, and no link, a moment ago
	}
	if err != nil {
		return k.in.explain(at, err)
	}
	header := &zip.FileHeader{Name: to, Method: zip.Store}
	if t := time.Unix(st.Mtim.Sec, 0).UTC(); t.Year() >= 1980 && t.Year() < 2108 { // what a zip can say
		header.Modified = t
	}
	mode := fs.FileMode(st.Mode & 0o777)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		header.Name += "/"
		header.SetMode(mode | fs.ModeDir)
		if _, err := k.zip.CreateHeader(header); err != nil {
			file.Close()
			return err
		}
		return k.directory(file, at, header.Name, depth+1)
	case unix.S_IFLNK:
		defer file.Close()
		header.SetMode(0o777 | fs.ModeSymlink)
		target := make([]byte, maxTarget)
		n := 0
		if err := descriptor.Use(file, func(fd int) (err error) { n, err = unix.Readlinkat(fd, "", target); return err }); err != nil {
			return k.in.explain(at, err)
		}
		w, err := k.zip.CreateHeader(header)
		if err == nil {
			_, err = w.Write(target[:n])
		}
		return err
	case unix.S_IFREG:
		defer file.Close()
		header.SetMode(mode)
		w, err := k.zip.CreateHeader(header)
		if err != nil {
			return err
		}
		return k.content(w, file, at)
	}
	file.Close()
	return refuse("%.1024q in the folder %s is %s, which cannot be code: remove it", at, k.in.Name, kindOf(st.Mode))
}

// content copies a file, up to where it ends now.
func (k *packer) content(w io.Writer, file *os.File, at string) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := file.Read(buffer)
		if n > 0 {
			if _, err := w.Write(buffer[:n]); err != nil {
				return fmt.Errorf("pack %s: %w", at, err)
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return k.in.explain(at, err)
		case k.ctx.Err() != nil:
			return k.ctx.Err()
		}
	}
}
