//go:build integration

package main

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// A backup that is made while the store and its blobs change, and blobs are swept, has both
// as they were at one moment. Restored elsewhere it passes the check of a start.
func TestBackupOfStoreAndBlobs(t *testing.T) {
	dir := t.TempDir()
	s, err := open(t.Context(), dir, "")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	var begun, done [workers]atomic.Uint64
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	some := make(chan struct{}, workers) // each worker has made some changes
	for worker := range workers {
		running.Go(func() {
			for n := uint64(1); ctx.Err() == nil; n++ {
				begun[worker].Store(n)
				if err := s.change(t.Context(), worker, n); err != nil {
					t.Error(err)
					return
				}
				done[worker].Store(n)
				if n == 20 {
					some <- struct{}{}
				}
			}
		})
	}
	running.Go(func() {
		for ctx.Err() == nil {
			if _, err := s.sweep(t.Context()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range workers {
		<-some
	}
	for round := range 5 {
		var l ledger
		for worker := range workers {
			l.done[worker] = done[worker].Load()
		}
		file, err := os.Create(filepath.Join(t.TempDir(), "backup"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		summary, err := s.store.Backup(t.Context(), file, s.blobs)
		if err != nil {
			t.Fatal(err)
		}
		for worker := range workers {
			l.begun[worker] = begun[worker].Load()
		}
		counts, err := check(t.Context(), restored(t, dir, file))
		if err != nil {
			t.Fatalf("backup %d, %+v: %v", round, summary, err)
		}
		if err := l.compare([workers]uint64{}, counts); err != nil {
			t.Errorf("backup %d: %v", round, err)
		}
	}
}

// restored restores a backup into a new folder, with the host keys of the old one, which are
// not in it.
func restored(t *testing.T, from string, backup *os.File) (dir string) {
	t.Helper()
	dir = t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	keys, err := os.ReadFile(filepath.Join(from, hostKey))
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"keys", "store"} {
		if err := os.Mkdir(filepath.Join(dir, folder), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, hostKey), keys, 0o600); err != nil {
		t.Fatal(err)
	}
	blobs, err := blob.Open(root, blob.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer blobs.Close()
	engine, err := sqlite.Engine(t.Context(), sqlite.Options{Folder: filepath.Join(dir, "store")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Seek(0, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := state.Restore(t.Context(), engine, backup, blobs); err != nil {
		t.Fatal(err)
	}
	return dir
}
