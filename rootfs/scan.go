package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// Bounds of what is said of one package, and looked at in it.
const (
	maxScanWarnings = 10
	maxScanEntries  = 200_000
)

var errScanEnd = errors.New("scanned enough")

// scanPackages warns of files that the sandbox user cannot read, which fail on
// Lambda too, and of code that would be too large for it. What zips hold is bounded
// already; directories of the operator are only warned about.
func (f *Function) scanPackages(ctx context.Context, packages []pkg, limits extract.Limits) error {
	var total int64
	for _, p := range packages {
		s := scan{ctx: ctx, pkg: p}
		if err := s.run(); err != nil {
			return err
		}
		total += s.bytes
		f.Warnings = append(f.Warnings, s.warnings...)
		if more := s.unreadable - maxScanWarnings; more > 0 {
			f.Warnings = append(f.Warnings, fmt.Sprintf("%s: %d more cannot be read by the sandbox user", p.given, more))
		}
	}
	if total > limits.UnzippedBytes {
		f.Warnings = append(f.Warnings, fmt.Sprintf("code and layers have %s, Lambda takes %s unzipped (ENV-36)",
			invalid.Megabytes(total), invalid.Megabytes(limits.UnzippedBytes)))
	}
	return nil
}

// scan walks the files of one package without leaving it.
type scan struct {
	ctx        context.Context
	pkg        pkg
	warnings   []string
	unreadable int
	entries    int
	bytes      int64
}

func (s *scan) run() error {
	root, err := os.OpenRoot(s.pkg.dir)
	if err != nil {
		return fmt.Errorf("scan %s: %w", s.pkg.given, err)
	}
	defer root.Close()
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
	}
	return nil
}

func (s *scan) warn(rel, fix string, perm fs.FileMode) {
	if s.unreadable++; s.unreadable <= maxScanWarnings {
		s.warnings = append(s.warnings, fmt.Sprintf("%s: %q cannot be read by the sandbox user (mode %04o); %s it",
			s.pkg.given, invalid.Shorten(path.Join(s.pkg.inside, rel)), perm, fix))
	}
}

func skipMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
