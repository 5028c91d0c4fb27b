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
	"time"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// unpacker unpacks a layer to a folder that is private to it. It knows the names of the whole
// tree that lower layers make, and resolves the layer's names in it.
type unpacker struct {
	given     string   // the image, for messages
	layer     int      // for messages
	layerRoot *os.Root // the folder
	root      *os.Root // addFolder in it
	limits    Limits

	top       *node // the whole tree so far
	entries   int
	nameBytes int
	bytes     int64 // written
	hides     int   // paths in hideFolder
	links     int   // and in linkFolder
	buf       []byte
}

func newUnpacker(j UnpackJob, layerRoot *os.Root) (*unpacker, error) {
	for _, name := range []string{addFolder, hideFolder, linkFolder} {
		if err := layerRoot.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	root, err := layerRoot.OpenRoot(addFolder)
	if err != nil {
		return nil, err
	}
	return &unpacker{given: j.Image, layer: j.Layer, layerRoot: layerRoot, root: root, limits: j.Limits, bytes: j.Used,
		top: newDir(0o755), buf: make([]byte, 128<<10)}, nil
}

// readLower reads what lower layers have.
func (u *unpacker) readLower(r io.Reader) error {
	buf := make([]byte, maxData)
	for {
		kind, body, err := readMessage(r, buf)
		if err != nil || kind == msgLower {
			return err
		}
		n, name, err := decodeNode(body)
		if err != nil || kind != msgNode {
			return errors.Join(errProtocol, err)
		}
		parent := u.top
		for part := range strings.SplitSeq(path.Dir(name), "/") {
			if part == "." {
				break
			}
			if parent = parent.children[part]; parent == nil || !parent.isDir() {
				return errProtocol
			}
		}
		parent.children[path.Base(name)] = n
		u.entries++
		u.nameBytes += len(path.Base(name)) + len(n.target)
	}
}

// applyLayer unpacks the layer, whose tar stream is r, and reads r to its end.
func (u *unpacker) applyLayer(ctx context.Context, r io.Reader) error {
	entries := tar.NewReader(r)
	for {
		hdr, err := entries.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = u.apply(ctx, hdr, entries)
		}
		if err != nil {
			return u.explain(err)
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil { // what follows is part of the diffID
		return u.explain(err)
	}
	return nil
}

// explain tells errors of the host and of the layer apart.
func (u *unpacker) explain(err error) error {
	var bad *invalid.Error
	var host *hostError
	switch {
	case errors.As(err, &bad):
		return err
	case errors.As(err, &host):
		return fmt.Errorf("layer %d of %s: %w", u.layer, u.given, err)
	}
	return invalidLayer(u.given, u.layer, invalid.ErrImage, "is damaged", err)
}

// apply applies one entry, whose content is in r.
func (u *unpacker) apply(ctx context.Context, hdr *tar.Header, r io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if err := u.countEntry(); err != nil {
		return err
	}
	name, reason := cleanName(hdr.Name)
	if reason != "" {
		return u.unsafe(hdr.Name, reason)
	}
	dir, base := path.Split(name)
	dir = path.Clean(dir)
	hides, meta, err := parseWhiteout(dir, base)
	switch {
	case meta:
		return nil
	case err == nil:
		return u.applyWhiteout(dir, hides)
	case !errors.Is(err, errNoWhiteout):
		return u.unsafe(hdr.Name, err.Error())
	case name == "." && hdr.Typeflag == tar.TypeDir:
		return nil // the top: always there, always readable
	case name == ".":
		return u.unsafe(hdr.Name, "is the top of the image, but no directory")
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.applyDir(dir, base, hdr)
	case tar.TypeReg, tar.TypeGNUSparse:
		return u.applyFile(ctx, dir, base, hdr, r)
	case tar.TypeSymlink:
		return u.applyLink(dir, base, hdr)
	case tar.TypeLink:
		return u.applyHardLink(dir, base, hdr)
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return u.applyNothing(dir, base)
	}
	return u.unsafe(hdr.Name, fmt.Sprintf("is of the unknown type %q", hdr.Typeflag))
}

func (u *unpacker) applyWhiteout(dir, hides string) error {
	at, err := u.resolve(dir, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nothing to hide
	}
	if err != nil {
		return err
	}
	if hides == "" {
		return u.hideAll(at)
	}
	return u.hide(at, hides)
}

func (u *unpacker) applyDir(dir, base string, hdr *tar.Header) error {
	at, err := u.resolve(dir, true)
	if err != nil {
		return err
	}
	perm := fs.FileMode(hdr.Mode) & fs.ModePerm
	if n := at.dir().children[base]; n != nil && n.isDir() {
		n.perm = perm
		if err := u.put(at, base, n); err != nil {
			return err
		}
		return u.settle(&place{nodes: append(at.nodes, n), names: append(at.names, base)})
	}
	if err := u.remove(at, base); err != nil {
		return err
	}
	_, err = u.mkdir(at, base, perm)
	return err
}

// applyNothing makes way for a thing that sandboxes do not get.
func (u *unpacker) applyNothing(dir, base string) error {
	at, err := u.resolve(dir, true)
	if err != nil {
		return err
	}
	return u.remove(at, base)
}

// vacate makes room for something that is no directory, and gives its path.
func (u *unpacker) vacate(dir, base string) (at *place, full string, err error) {
	if at, err = u.resolve(dir, true); err != nil {
		return nil, "", err
	}
	if full = at.path(base); len(full) > maxPath {
		return nil, "", u.unsafe(full, fmt.Sprintf("has a path of more than %d bytes", maxPath))
	}
	return at, full, u.remove(at, base)
}

func (u *unpacker) applyFile(ctx context.Context, dir, base string, hdr *tar.Header, r io.Reader) error {
	if hdr.Size > u.limits.Bytes-u.bytes { // a sparse file too counts with what it seems to have
		return u.invalid(invalid.ErrTooLarge, hdr.Name, fmt.Sprintf("has %d bytes; all files of an image may have %d (ENV-36)",
			hdr.Size, u.limits.Bytes), nil)
	}
	at, full, err := u.vacate(dir, base)
	if err != nil {
		return err
	}
	if err := u.add(at, base, &node{here: true}); err != nil {
		return err
	}
	f, err := u.root.OpenFile(full, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return u.host(err)
	}
	err = u.copyContent(ctx, f, r)
	if err == nil { // not at creation: the umask would count
		err = u.host(f.Chmod(fs.FileMode(hdr.Mode) & fs.ModePerm))
	}
	if cerr := f.Close(); err == nil {
		err = u.host(cerr)
	}
	if err != nil {
		return err
	}
	return u.host(u.root.Chtimes(full, time.Time{}, extract.SaneTime(hdr.ModTime)))
}

// copyContent copies what the tar reader gives, which is exactly what the header
// says, or io.ErrUnexpectedEOF.
func (u *unpacker) copyContent(ctx context.Context, w io.Writer, r io.Reader) error {
	for {
		if err := ctx.Err(); err != nil {
			return u.host(err)
		}
		n, err := r.Read(u.buf)
		u.bytes += int64(n)
		if _, err := w.Write(u.buf[:n]); err != nil {
			return u.host(err)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// applyLink makes a symbolic link as it is: it is followed inside sandboxes only.
func (u *unpacker) applyLink(dir, base string, hdr *tar.Header) error {
	return u.makeLink(dir, base, hdr.Name, hdr.Linkname)
}

func (u *unpacker) makeLink(dir, base, name, target string) error {
	if target == "" || len(target) > maxPath || strings.IndexByte(target, 0) >= 0 {
		return u.unsafe(name, "is a link without a target, or with an impossible one")
	}
	at, full, err := u.vacate(dir, base)
	if err != nil {
		return err
	}
	if err := u.add(at, base, &node{target: strings.Clone(target), here: true}); err != nil {
		return err
	}
	return u.host(u.root.Symlink(target, full))
}

// applyHardLink gives a file of the image one more name.
func (u *unpacker) applyHardLink(dir, base string, hdr *tar.Header) error {
	old, reason := cleanName(hdr.Linkname)
	if reason != "" {
		return u.unsafe(hdr.Name, "is a hard link whose target "+reason)
	}
	from, err := u.resolve(path.Dir(old), false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var n *node
	if err == nil {
		n = from.dir().children[path.Base(old)]
	}
	switch {
	case n == nil:
		return u.unsafe(hdr.Name, fmt.Sprintf("is a hard link to %q, which the image does not have before it", hdr.Linkname))
	case n.isDir():
		return u.unsafe(hdr.Name, "is a hard link to a directory")
	case n.isLink():
		return u.makeLink(dir, base, hdr.Name, n.target)
	}
	at, err := u.resolve(dir, true)
	if err != nil {
		return err
	}
	oldPath, newPath := from.path(path.Base(old)), at.path(base)
	if oldPath == newPath {
		return nil
	}
	if strings.HasPrefix(oldPath, newPath+"/") {
		return u.unsafe(hdr.Name, "is a hard link in the place of a directory that holds its target")
	}
	if at, newPath, err = u.vacate(dir, base); err != nil {
		return err
	}
	if n.here {
		if err := u.add(at, base, &node{here: true}); err != nil {
			return err
		}
		return u.host(u.root.Link(oldPath, newPath))
	}
	if n.old != "" {
		oldPath = n.old
	}
	if err := u.put(at, base, &node{old: oldPath, number: u.links + 1}); err != nil {
		return err
	}
	if err := u.mark(linkFolder, &u.links, linkNew, newPath); err != nil {
		return err
	}
	return u.mark(linkFolder, &u.links, linkOld, oldPath)
}

// add records something that is about to be made in the folder of the layer.
func (u *unpacker) add(at *place, name string, n *node) error {
	if err := u.put(at, name, n); err != nil {
		return err
	}
	return u.settle(at)
}

func (u *unpacker) countEntry() error {
	if u.entries++; u.entries > u.limits.Entries {
		return u.invalid(invalid.ErrTooLarge, "", fmt.Sprintf("has more than %d files", u.limits.Entries), nil)
	}
	return nil
}

// host marks an error of the file system that is written to.
func (u *unpacker) host(err error) error {
	if err == nil {
		return nil
	}
	return &hostError{err}
}

func (u *unpacker) unsafe(name, reason string) error {
	return u.invalid(invalid.ErrUnsafe, name, reason, nil)
}

func (u *unpacker) invalid(kind error, entry, reason string, err error) error {
	return &invalid.Error{Kind: kind, File: u.given, Entry: entry, Reason: fmt.Sprintf("in layer %d: %s", u.layer, reason), Fix: fixBuild, Err: err}
}
