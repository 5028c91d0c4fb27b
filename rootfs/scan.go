package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Bounds of what is said of one package, and looked at in it.
const (
	maxScanWarnings = 10
	maxScanEntries  = 200_000
)

var errScanEnd = errors.New("scanned enough")

// scanPackages warns of files that the sandbox user cannot read and of links that lead
// nowhere in the sandbox, which fail on Lambda too, and of code that would be too large for
// it. What zips hold is bounded already; directories of the operator are only warned about.
func (f *Function) scanPackages(ctx context.Context, packages []pkg, limits extract.Limits) error {
	v, err := newView(&f.Tree)
	if err != nil {
		return err
	}
	defer v.close()
	return f.scanAll(ctx, packages, v, limits.UnzippedBytes)
}

// scanAll scans packages that may have limit bytes. Links are looked up in the view, if there
// is one.
func (f *Function) scanAll(ctx context.Context, packages []pkg, v *view, limit int64) error {
	var total int64
	for _, p := range packages {
		s := scan{ctx: ctx, pkg: p, view: v}
		if err := s.run(); err != nil {
			return err
		}
		total += s.bytes
		f.Warnings = append(f.Warnings, s.warnings...)
		if more := s.unreadable - maxScanWarnings; more > 0 {
			f.Warnings = append(f.Warnings, fmt.Sprintf("%s: %d more cannot be read by the sandbox user", p.given, more))
		}
		if more := s.dead - maxScanWarnings; more > 0 {
			f.Warnings = append(f.Warnings, fmt.Sprintf("%s: %d more links lead to places that the sandbox does not have", p.given, more))
		}
	}
	if total > limit {
		f.Warnings = append(f.Warnings, fmt.Sprintf("code and layers have %s, Lambda takes %s unzipped (ENV-36)",
			invalid.Megabytes(total), invalid.Megabytes(limit)))
	}
	return nil
}

// scan walks the files of one package without leaving it.
type scan struct {
	ctx        context.Context
	pkg        pkg
	view       *view // in which links are looked up; nil: they are not
	root       *os.Root
	warnings   []string
	unreadable int
	dead       int // links
	entries    int
	bytes      int64
}

func (s *scan) run() error {
	root, err := os.OpenRoot(s.pkg.dir)
	if err != nil {
		return fmt.Errorf("scan %s: %w", s.pkg.given, err)
	}
	defer root.Close()
	s.root = root
	err = fs.WalkDir(root.FS(), ".", s.visit)
	if err != nil && !errors.Is(err, errScanEnd) {
		return fmt.Errorf("scan %s: %w", s.pkg.given, err)
	}
	return nil
}

// visit looks at one file. Files that vanish meanwhile are none of our business.
func (s *scan) visit(rel string, d fs.DirEntry, err error) error {
	if ctxErr := s.ctx.Err(); ctxErr != nil {
		return ctxErr
	}
	if s.entries++; s.entries > maxScanEntries {
		s.warnings = append(s.warnings, fmt.Sprintf("%s has more than %d files; only these were looked at", s.pkg.given, maxScanEntries))
		return errScanEnd
	}
	if errors.Is(err, fs.ErrPermission) {
		return fs.SkipDir // the daemon is not root; warned about already
	}
	if err != nil {
		return skipMissing(err)
	}
	info, err := d.Info()
	if err != nil {
		return skipMissing(err)
	}
	switch perm := info.Mode().Perm(); {
	case d.IsDir() && perm&0o005 != 0o005:
		s.warn(rel, "chmod o+rx", perm)
		return fs.SkipDir // what lies below is as unreadable
	case info.Mode().IsRegular():
		s.bytes += info.Size()
		if perm&0o004 == 0 {
			s.warn(rel, "chmod o+r", perm)
		}
	case info.Mode()&fs.ModeSymlink != 0 && s.view != nil:
		return s.visitLink(rel)
	}
	return nil
}

// visitLink warns of a link that leads out of the package to a place that the sandbox does not
// have. A link that is dead within the package is no news to its owner.
func (s *scan) visitLink(rel string) error {
	target, err := s.root.Readlink(rel)
	if err != nil {
		return skipMissing(err)
	}
	full := target
	if !path.IsAbs(target) {
		full = path.Join(s.pkg.inside, path.Dir(rel), target)
	}
	full = path.Clean(full)
	first, _, _ := strings.Cut(full[1:], "/")
	if below(full, s.pkg.inside) || slices.Contains(engineDirs, first) && !inHostTmp(full) {
		return nil
	}
	if _, err := s.view.resolve(path.Join(s.pkg.inside, rel)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if s.dead++; s.dead <= maxScanWarnings {
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %q is a link that leads out of its folder to %q, which the sandbox does not have; copy what it leads to into the package",
			s.pkg.given, invalid.Shorten(path.Join(s.pkg.inside, rel)), invalid.Shorten(target)))
	}
	return nil
}

// inHostTmp reports whether something is at a path in /tmp on the host: a link to it means that
// and not a file that the function will make in its own /tmp, which begins empty. It follows no
// link and leaves no file system.
func inHostTmp(name string) bool {
	rel, ok := strings.CutPrefix(name, "/tmp/")
	if !ok {
		return false
	}
	tmp, err := unix.Open("/tmp", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(tmp)
	fd, err := unix.Openat2(tmp, rel, &unix.OpenHow{Flags: unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// below reports whether a clean path is dir or lies below it.
func below(name, dir string) bool { return name == dir || strings.HasPrefix(name, dir+"/") }

func (s *scan) warn(rel, fix string, perm fs.FileMode) {
	if s.unreadable++; s.unreadable <= maxScanWarnings {
		s.warnings = append(s.warnings, unreadable(s.pkg.given, path.Join(s.pkg.inside, rel), fix, perm))
	}
}

// unreadable is the warning of a file that the sandbox user cannot read.
func unreadable(given, file, fix string, perm fs.FileMode) string {
	return fmt.Sprintf("%s: %q cannot be read by the sandbox user (mode %04o); %s it", given, invalid.Shorten(file), perm, fix)
}

func skipMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
