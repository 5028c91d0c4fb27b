package extract

import (
	"archive/zip"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

const (
	// maxDirectoryBytes bounds what is read of a zip to list its entries, and with
	// it the memory that listing costs (entries cannot be counted before).
	maxDirectoryBytes = 32 << 20
	// maxNameBytes is the longest path of an entry: PATH_MAX less the place it is
	// mounted at. A single component has NAME_MAX bytes at most.
	maxNameBytes      = 4000
	maxComponentBytes = 255
	maxTargetBytes    = 4000 // of a symbolic link
)

// zipPlan is a zip that has passed every check that needs no extraction. Entries
// are in the order of the archive.
type zipPlan struct {
	file    string // for messages
	entries []zipEntry
	dirs    map[string]dirMeta // every directory, listed or only implied
	bytes   int64              // declared, uncompressed
}

// dirMeta is what a directory gets once its files are made.
type dirMeta struct {
	perm     fs.FileMode
	modified time.Time // zero for a directory that is only implied
}

// zipEntry is one thing to make.
type zipEntry struct {
	zf   *zip.File
	name string      // clean, relative, no link above it
	typ  fs.FileMode // 0, fs.ModeDir or fs.ModeSymlink
	perm fs.FileMode // set-id and sticky bits are gone
}

// planZip reads the list of entries and refuses a zip that is not safe or over the
// limits. Names are compared byte by byte: names that differ in case only are
// different files, as they are on Lambda. Of several entries with the same name the last
// one is extracted, as unzip does it; the others count only towards the limit of entries.
func planZip(file string, r io.ReaderAt, size int64, limits Limits) (*zipPlan, error) {
	bounded := &boundedReaderAt{r: r, left: maxDirectoryBytes}
	zr, err := zip.NewReader(bounded, size)
	if bounded.left < 0 {
		return nil, &invalid.Error{Kind: invalid.ErrTooLarge, File: file,
			Reason: fmt.Sprintf("its list of entries is longer than %d MiB", maxDirectoryBytes>>20), Fix: invalid.FixLeaveOut}
	}
	if err != nil {
		return nil, &invalid.Error{Kind: invalid.ErrPackage, File: file, Reason: "cannot be read as a zip", Err: err,
			Fix: "give a directory or a zip file made with zip -r"}
	}
	bounded.left = math.MaxInt64 // from here on the reading is bounded by the entries
	if len(zr.File) > limits.Entries {
		return nil, &invalid.Error{Kind: invalid.ErrTooLarge, File: file,
			Reason: fmt.Sprintf("has %d entries, %d are allowed", len(zr.File), limits.Entries), Fix: invalid.FixLeaveOut}
	}
	p := &zipPlan{file: file, dirs: map[string]dirMeta{}}
	kinds := map[string]fs.FileMode{".": fs.ModeDir}
	at := map[string]int{} // of files and links, in p.entries
	for _, zf := range zr.File {
		if err := p.add(zf, kinds, at, limits); err != nil {
			return nil, err
		}
		if len(kinds)-1 > limits.Entries { // directories that are only implied count too
			return nil, &invalid.Error{Kind: invalid.ErrTooLarge, File: file,
				Reason: fmt.Sprintf("makes more than %d files and directories", limits.Entries), Fix: invalid.FixLeaveOut}
		}
	}
	return p, p.checkOverlap()
}

// add checks one entry and appends it, or puts it in the place of an earlier one of the
// same name.
func (p *zipPlan) add(zf *zip.File, kinds map[string]fs.FileMode, at map[string]int, limits Limits) error {
	unsafe := func(reason, fix string) error {
		return &invalid.Error{Kind: invalid.ErrUnsafe, File: p.file, Entry: zf.Name, Reason: reason, Fix: fix}
	}
	name, reason := cleanEntryName(zf.Name, limits.Depth)
	if reason != "" {
		return unsafe(reason, "make the zip anew with zip -r, from inside the folder")
	}
	if err := p.checkReadable(zf); err != nil {
		return err
	}
	typ, perm := entryMode(zf)
	switch {
	case typ != 0 && typ != fs.ModeDir && typ != fs.ModeSymlink:
		return unsafe("is a device, pipe or socket ("+typ.String()+")", "only files, directories and links can be deployed")
	case typ == fs.ModeDir && zf.UncompressedSize64 != 0:
		return unsafe("is a directory with content", "make the zip anew with zip -r")
	case typ == fs.ModeSymlink && zf.UncompressedSize64 > maxTargetBytes:
		return unsafe("is a link with a target that is too long", "")
	}
	earlier, twice := at[name]
	if twice {
		p.bytes -= int64(p.entries[earlier].zf.UncompressedSize64)
	}
	if zf.UncompressedSize64 > uint64(limits.UnzippedBytes-p.bytes) {
		return TooLarge(p.file, limits.UnzippedBytes)
	}
	p.bytes += int64(zf.UncompressedSize64)
	if name == "." {
		return nil // the folder itself
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if kind, seen := kinds[dir]; !seen {
			kinds[dir] = fs.ModeDir
			p.dirs[dir] = dirMeta{perm: 0o755}
		} else if kind != fs.ModeDir {
			return unsafe(fmt.Sprintf("lies below %q, which is no directory", invalid.Shorten(dir)), "remove one of the two")
		} else {
			break // and so its parents have been checked
		}
	}
	if kind, seen := kinds[name]; seen && (kind == fs.ModeDir) != (typ == fs.ModeDir) {
		return unsafe("is there twice, as a directory and as something else", "remove one of the two")
	}
	kinds[name] = typ
	e := zipEntry{zf: zf, name: name, typ: typ, perm: perm}
	switch {
	case typ == fs.ModeDir:
		p.dirs[name] = dirMeta{perm, zf.Modified}
	case twice:
		p.entries[earlier] = e
		return nil
	default:
		at[name] = len(p.entries)
	}
	p.entries = append(p.entries, e)
	return nil
}

// checkReadable refuses what could be listed but never extracted.
func (p *zipPlan) checkReadable(zf *zip.File) error {
	const encrypted = 1<<0 | 1<<6 | 1<<13 // APPNOTE 4.4.4: traditional, strong, masked headers
	refuse := func(reason, fix string) error {
		return &invalid.Error{Kind: invalid.ErrPackage, File: p.file, Entry: zf.Name, Reason: reason, Fix: fix}
	}
	if zf.Flags&encrypted != 0 {
		return refuse("is encrypted", "make the zip without a password")
	}
	if zf.Method != zip.Store && zf.Method != zip.Deflate {
		return refuse(fmt.Sprintf("is compressed by method %d", zf.Method), "use deflate, zip's default")
	}
	return nil
}

// checkOverlap refuses entries that share bytes of the archive: that is how a few
// kilobytes become terabytes. Only lower bounds of the headers' sizes are used, so
// no honest archive is refused.
func (p *zipPlan) checkOverlap() error {
	const localHeader = 30
	type span struct {
		start, end int64
		name       string
	}
	spans := make([]span, 0, len(p.entries))
	for _, e := range p.entries {
		start, err := e.zf.DataOffset()
		if err == nil && e.zf.CompressedSize64 > uint64(math.MaxInt64-start) {
			err = zip.ErrFormat
		}
		if err != nil {
			return p.damaged(e, err)
		}
		spans = append(spans, span{start, start + int64(e.zf.CompressedSize64), e.name})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.end, b.end)) })
	for i := 1; i < len(spans); i++ {
		if spans[i-1].end > spans[i].start-localHeader {
			return &invalid.Error{Kind: invalid.ErrUnsafe, File: p.file, Entry: spans[i].name,
				Reason: fmt.Sprintf("shares its bytes in the archive with %q", invalid.Shorten(spans[i-1].name)), Fix: "make the zip anew with zip -r"}
		}
	}
	return nil
}

func (p *zipPlan) damaged(e zipEntry, err error) error {
	return &invalid.Error{Kind: invalid.ErrPackage, File: p.file, Entry: e.name, Reason: "is damaged", Err: err,
		Fix: "copy or make the zip anew"}
}

// cleanEntryName gives the entry's path below the folder, or says why it has none.
func cleanEntryName(name string, depth int) (clean, reason string) {
	switch {
	case name == "":
		return "", "has no name"
	case len(name) > maxNameBytes:
		return "", fmt.Sprintf("has a name of more than %d bytes", maxNameBytes)
	case strings.IndexByte(name, 0) >= 0:
		return "", "has a NUL byte in its name"
	case strings.IndexByte(name, '\\') >= 0:
		return "", "has a backslash in its name"
	case name[0] == '/':
		return "", "has an absolute path"
	}
	clean = path.Clean(name)
	parts := strings.Split(name, "/")
	for _, part := range parts {
		if part == ".." {
			return "", "would leave the folder"
		}
		if len(part) > maxComponentBytes {
			return "", fmt.Sprintf("has a path component of more than %d bytes", maxComponentBytes)
		}
	}
	if strings.Count(clean, "/") >= depth {
		return "", fmt.Sprintf("is more than %d directories deep", depth)
	}
	return clean, ""
}

// entryMode gives type and permissions. An archive without Unix modes (made on
// Windows, or by a library that leaves them out) gets 0755 for everything, so that
// a bootstrap in it can run.
func entryMode(zf *zip.File) (typ, perm fs.FileMode) {
	const creatorUnix, creatorMacOS = 3, 19
	mode := zf.Mode()
	unix := zf.CreatorVersion>>8 == creatorUnix || zf.CreatorVersion>>8 == creatorMacOS
	if !unix || zf.ExternalAttrs>>16&0o7777 == 0 {
		return mode.Type(), 0o755
	}
	return mode.Type(), mode.Perm()
}

// checkLinkTarget says why a link cannot be made, "" if it can. Its target may be anywhere:
// links are followed inside the sandbox only, where /var/task/../../opt is /opt, and never by
// this package on the host. What leads nowhere there is warned of when the function is
// prepared.
func checkLinkTarget(target string) (reason string) {
	switch {
	case target == "":
		return "is a link without a target"
	case strings.IndexByte(target, 0) >= 0:
		return "is a link with a NUL byte in its target"
	}
	return ""
}

// TooLarge is the error of a zip whose files are too large. It speaks of what is left of the limit for this zip.
func TooLarge(file string, left int64) error {
	return &invalid.Error{Kind: invalid.ErrTooLarge, File: file,
		Reason: fmt.Sprintf("has more than the %s unzipped that are left for it; the limit holds for code and layers together (ENV-36)", invalid.Megabytes(left)),
		Fix:    "leave out what the function does not need"}
}

// boundedReaderAt fails once more than left bytes have been asked for.
type boundedReaderAt struct {
	r    io.ReaderAt
	left int64
}

var errBound = errors.New("read bound exceeded")

func (b *boundedReaderAt) ReadAt(p []byte, off int64) (int, error) {
	b.left -= int64(len(p))
	if b.left < 0 {
		return 0, errBound
	}
	return b.r.ReadAt(p, off)
}
