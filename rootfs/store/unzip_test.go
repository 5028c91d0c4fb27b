package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

// A zip that another process extracts gives what this one would have made of it.
func TestUnzipElsewhere(t *testing.T) {
	dir := t.TempDir()
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: "#!/bin/sh\n"}, ziptest.File{Name: "a/b", Body: "12345"}))
	store := openTestStore(t, filepath.Join(dir, "store"))
	store.Unzip = func(ctx context.Context, job extract.ZipJob, zip, tree *os.File) error {
		if _, err := zip.Write([]byte("x")); err == nil {
			t.Error("the zip can be written")
		}
		return job.Run(ctx, zip, tree, nil)
	}
	entry, err := store.AddZip(t.Context(), zipPath, extract.Limits{}, nil)
	if err != nil || entry.Size != 15 {
		t.Fatalf("%+v, %v", entry, err)
	}
	if b, err := os.ReadFile(filepath.Join(entry.Dir, "a/b")); err != nil || string(b) != "12345" {
		t.Errorf("%s, %v", b, err)
	}
	if info, err := os.Stat(filepath.Join(entry.Dir, "bootstrap")); err != nil || info.Mode() != 0o755 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// A process that was taken over by the zip that it read may leave anything: it is
// refused, and nothing of it stays.
func TestUnzipHostile(t *testing.T) {
	for name, make := range map[string]func(tree string) error{
		"fifo":         func(tree string) error { return unix.Mkfifo(filepath.Join(tree, "x"), 0o600) },
		"socket":       func(tree string) error { return unix.Mknod(filepath.Join(tree, "x"), unix.S_IFSOCK|0o600, 0) },
		"set-user-id":  func(tree string) error { return writeMode(filepath.Join(tree, "x"), 0o755|os.ModeSetuid) },
		"set-group-id": func(tree string) error { return writeMode(filepath.Join(tree, "x"), 0o755|os.ModeSetgid) },
		"sticky folder": func(tree string) error {
			return errors.Join(os.Mkdir(filepath.Join(tree, "x"), 0o755), os.Chmod(filepath.Join(tree, "x"), 0o777|os.ModeSticky))
		},
		"hard links": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Link(filepath.Join(tree, "x"), filepath.Join(tree, "y")))
		},
		"too many bytes": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Truncate(filepath.Join(tree, "x"), 1<<20))
		},
		"too deep": func(tree string) error { return os.MkdirAll(filepath.Join(tree, "a/b/c/d"), 0o755) },
		"too many files": func(tree string) error {
			var err error
			for i := range 6 {
				err = errors.Join(err, os.Mkdir(filepath.Join(tree, strings.Repeat("x", i+1)), 0o755))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openTestStore(t, filepath.Join(dir, "store"))
			store.Unzip = func(_ context.Context, _ extract.ZipJob, _, tree *os.File) error {
				path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
				return errors.Join(err, make(path))
			}
			_, err := store.AddZip(t.Context(), ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "bootstrap"})), extract.Limits{Entries: 5, UnzippedBytes: 1000, Depth: 3}, nil)
			if err == nil || !strings.Contains(err.Error(), "take over") {
				t.Errorf("%v", err)
			}
			for _, folder := range []string{"sha256", "staging"} {
				if left, err := os.ReadDir(filepath.Join(dir, "store", folder)); err != nil || len(left) > 0 {
					t.Errorf("left in %s: %v, %v", folder, left, err)
				}
			}
		})
	}
}

func writeMode(name string, mode os.FileMode) error {
	return errors.Join(os.WriteFile(name, nil, 0o600), os.Chmod(name, mode))
}

// An extraction that fills the disk is stopped while it runs, and leaves nothing.
func TestUnzipWithoutEnd(t *testing.T) {
	for name, make := range map[string]func(tree string) error{
		"bytes": func(tree string) error {
			return errors.Join(writeMode(filepath.Join(tree, "x"), 0o644), os.Truncate(filepath.Join(tree, "x"), 1<<20))
		},
		"files": func(tree string) error {
			var err error
			for i := range 6 {
				err = errors.Join(err, os.Mkdir(filepath.Join(tree, strconv.Itoa(i)), 0o755))
			}
			return err
		},
		"depth": func(tree string) error { return os.MkdirAll(filepath.Join(tree, "a/b/c/d"), 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			store := openTestStore(t, filepath.Join(dir, "store"))
			store.Unzip = func(ctx context.Context, _ extract.ZipJob, _, tree *os.File) error {
				path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(tree.Fd())))
				if err := errors.Join(err, make(path)); err != nil {
					return err
				}
				<-ctx.Done() // a process would be killed now
				return ctx.Err()
			}
			_, err := store.AddZip(t.Context(), ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "bootstrap"})), extract.Limits{Entries: 5, UnzippedBytes: 1000, Depth: 3}, nil)
			if !errors.Is(err, invalid.ErrTooLarge) || !strings.Contains(err.Error(), "more than 1000 bytes or 5 files") {
				t.Errorf("%v", err)
			}
			if left, err := os.ReadDir(filepath.Join(dir, "store", "staging")); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}
