package rootfs

import (
	"context"
	"fmt"
	"os"
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

// bounds are those of the folder that the zip is extracted into.
func (j ZipJob) bounds() Bounds {
	return Bounds{File: j.File, Bytes: j.Limits.UnzippedBytes, Entries: j.Limits.Entries, Depth: j.Limits.Depth}
}
