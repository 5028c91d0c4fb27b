package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// removeTree removes the cgroup path, and all cgroups below it, from every tree. EBUSY means
// that a process has not left yet; removeTree tries again until ctx ends.
func removeTree(ctx context.Context, p *placement, path string) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		var err error
		for _, root := range p.roots {
			err = errors.Join(err, removeDirs(filepath.Join(root, path)))
		}
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", path, errors.Join(err, ctx.Err()))
		}
	}
}

// removeDirs removes dir, after the directories below it.
func removeDirs(dir string) error {
	rmdir := func() error {
		err := failpoint.Do(failpoint.RemoveCgroup, func() error { return unix.Rmdir(dir) })
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return &os.PathError{Op: "rmdir", Path: dir, Err: err}
		}
		return nil
	}
	err := rmdir()
	if err == nil {
		return nil
	}
	entries, listErr := os.ReadDir(dir)
	if errors.Is(listErr, fs.ErrNotExist) {
		return nil // removed meanwhile
	}
	below := false
	for _, e := range entries {
		if e.IsDir() {
			below = true
			listErr = errors.Join(listErr, removeDirs(filepath.Join(dir, e.Name())))
		}
	}
	if listErr != nil || !below {
		return errors.Join(err, listErr)
	}
	return rmdir()
}
