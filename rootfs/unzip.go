package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
)

// ZipJob is the extraction of one zip, as it can be given to another process.
type ZipJob struct {
	File   string // for messages
	Limits Limits
}

// Run extracts zip below tree, an empty folder. It touches nothing else, so it can run
// as a user that may write the folder and nothing else of the host.
func (j ZipJob) Run(ctx context.Context, zip, tree *os.File, progress func(done, total int64)) error {
	info, err := zip.Stat()
	if err != nil {
		return fmt.Errorf("rootfs: extract %s: %w", j.File, err)
	}
	plan, err := planZip(j.File, zip, info.Size(), j.Limits)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", tree.Fd()))
	if err != nil {
		return fmt.Errorf("rootfs: extract %s: %w", j.File, err)
	}
	defer root.Close()
	return plan.extract(ctx, root, progress)
}

// adopt makes what another process has left below root ours, and says how many bytes
// its files have. That process has ended, and may have done anything: what Run cannot
// have made is an error.
func (j ZipJob) adopt(root *os.Root) (bytes int64, err error) {
	entries := -1 // root itself
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch kind := info.Mode() & (fs.ModeType | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky); {
		case kind == 0 && info.Sys().(*syscall.Stat_t).Nlink == 1:
			if info.Size() > j.Limits.UnzippedBytes-bytes {
				return errors.New("there is more than the limits allow")
			}
			bytes += info.Size()
		case kind == fs.ModeDir, kind == fs.ModeSymlink:
		default:
			return fmt.Errorf("%s is a %v, which no zip holds", name, info.Mode())
		}
		if entries++; entries > j.Limits.Entries || strings.Count(name, "/") >= j.Limits.Depth {
			return errors.New("there is more than the limits allow")
		}
		return root.Lchown(name, os.Geteuid(), os.Getegid())
	})
	if err != nil {
		return 0, fmt.Errorf("rootfs: take over the files of %s: %w", j.File, err)
	}
	return bytes, nil
}
