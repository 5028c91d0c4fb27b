// Package extract extracts zips below a folder and nowhere else, and bounds what a process
// that extracts may make there: the process reads a stranger's bytes and may have been
// taken over by them.
//
// A zip's names are all checked before the first file is made.
package extract

import (
	"context"
	"fmt"
	"os"

	"github.com/sandboxd/sandboxd/internal/descriptor"
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
		return fmt.Errorf("extract %s: %w", j.File, err)
	}
	plan, err := planZip(j.File, zip, info.Size(), j.Limits)
	if err != nil {
		return err
	}
	var root *os.Root
	err = descriptor.Use(tree, func(fd int) (err error) {
		root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
		return err
	})
	if err != nil {
		return fmt.Errorf("extract %s: %w", j.File, err)
	}
	defer root.Close()
	return plan.extract(ctx, root, progress)
}

// Bounds are those of the folder that the zip is extracted into.
func (j ZipJob) Bounds() Bounds {
	return Bounds{File: j.File, Bytes: j.Limits.UnzippedBytes, Entries: j.Limits.Entries, Depth: j.Limits.Depth}
}
