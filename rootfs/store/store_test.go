package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
)

func TestAddZipTwice(t *testing.T) {
	dir := t.TempDir()
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: "#!/bin/sh\n"}))
	store := openTestStore(t, filepath.Join(dir, "store"))
	var done, total int64
	first, err := store.AddZip(t.Context(), zipPath, extract.Limits{}, func(d, n int64) { done, total = d, n })
	if err != nil {
		t.Fatal(err)
	}
	if first.Size != 10 || done != 10 || total != 10 {
		t.Errorf("size %d, progress %d of %d, want 10", first.Size, done, total)
	}
	if err := os.Rename(zipPath, zipPath+"2"); err != nil {
		t.Fatal(err)
	}
	again, err := store.AddZip(t.Context(), zipPath+"2", extract.Limits{}, func(int64, int64) { t.Error("extracted again") })
	if err != nil || again.Entry != first.Entry {
		t.Errorf("second time %+v, %v; first %+v", again, err, first)
	}
	if _, err := store.AddZip(t.Context(), zipPath+"2", extract.Limits{UnzippedBytes: 9}, nil); !errors.Is(err, invalid.ErrTooLarge) {
		t.Errorf("an entry of 10 bytes passes a limit of 9: %v", err)
	}
	ziptest.WantTree(t, filepath.Join(dir, "store"), "sha256", "sha256/"+first.Digest, "sha256/"+first.Digest+"/entry.json",
		"sha256/"+first.Digest+"/tree", "sha256/"+first.Digest+"/tree/bootstrap", "staging")
	closeRef(t, first)
	closeRef(t, again)
	if r := collect(t, store, Retention{}); len(r.Removed) != 1 { // the one that was refused holds nothing
		t.Errorf("%+v", r)
	}
}

// TestDamagedEntry (S-11): an entry whose description is lost or garbled is made
// anew.
func TestDamagedEntry(t *testing.T) {
	dir := t.TempDir()
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "a", Body: "a"}))
	store := openTestStore(t, filepath.Join(dir, "store"))
	first, err := store.AddZip(t.Context(), zipPath, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeRef(t, first)
	meta := filepath.Join(filepath.Dir(first.Dir), "entry.json")
	for name, damage := range map[string]func() error{
		"lost":    func() error { return os.Remove(meta) },
		"garbled": func() error { return os.WriteFile(meta, []byte("{"), 0o600) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		again, err := store.AddZip(t.Context(), zipPath, extract.Limits{}, nil)
		if err != nil || again.Entry != first.Entry {
			t.Fatalf("%s: %+v, %v, want %+v", name, again, err, first)
		}
		closeRef(t, again)
		ziptest.WantTree(t, first.Dir, "a")
		ziptest.WantTree(t, filepath.Join(dir, "store", "staging"))
	}
}

func TestAddZipConcurrently(t *testing.T) {
	dir := t.TempDir()
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "a", Body: strings.Repeat("a", 1<<20)}, ziptest.File{Name: "b/c", Body: "c"}))
	var wg sync.WaitGroup
	entries := make([]*Ref, 8)
	for i := range entries {
		store := openTestStore(t, filepath.Join(dir, "store")) // each opening sweeps, too
		wg.Go(func() {
			var err error
			if entries[i], err = store.AddZip(t.Context(), zipPath, extract.Limits{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, e := range entries {
		if e.Entry != entries[0].Entry {
			t.Errorf("%+v differs from %+v", e.Entry, entries[0].Entry)
		}
		ziptest.WantTree(t, e.Dir, "a", "b", "b/c")
	}
	ziptest.WantTree(t, filepath.Join(dir, "store", "staging"))
}

// TestOpenSweeps (S-01): what a dead daemon left is removed, what a live one
// works on is not.
func TestOpenSweeps(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	alive, err := store.staging.begin()
	if err != nil {
		t.Fatal(err)
	}
	dead, err := store.staging.begin()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dead.dir, "entry", "tree", "half"), 0o755); err != nil {
		t.Fatal(err)
	}
	dead.lock.Close() // as the kernel does for a process that dies
	openTestStore(t, dir)
	ziptest.WantTree(t, filepath.Join(dir, "staging"), filepath.Base(alive.dir))
	if err := alive.close(); err != nil {
		t.Fatal(err)
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
}

// A tree deeper than descriptors go, which an extractor that was taken over can make by
// renaming, is removed like any other; what cannot be removed stops no daemon (S-01).
func TestStageDeep(t *testing.T) {
	withFewFiles(t)
	dir := t.TempDir()
	store := openTestStore(t, dir)
	deep := func() *stage {
		st, err := store.staging.begin()
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"1", "2/x", "3/4/5", "entry/tree" + strings.Repeat("/d", 1500)} {
			err = errors.Join(err, os.MkdirAll(filepath.Join(st.dir, name), 0o755))
		}
		err = errors.Join(err, os.WriteFile(filepath.Join(st.dir, "entry/tree/d/d/file"), nil, 0o644), os.WriteFile(filepath.Join(st.dir, "4"), nil, 0o644),
			os.Symlink("/", filepath.Join(st.dir, "entry/tree/d/link")))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	control := deep()
	if err := os.RemoveAll(control.dir); !errors.Is(err, unix.EMFILE) {
		t.Errorf("control: %v", err)
	}
	if err := control.close(); err != nil {
		t.Error(err)
	}
	deep().lock.Close()
	if err := os.WriteFile(filepath.Join(dir, "staging", "no-stage"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if store = openTestStore(t, dir); store.Leftover() == nil || !strings.Contains(store.Leftover().Error(), "no-stage") {
		t.Errorf("%v", store.Leftover())
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"), "no-stage")
}

func TestAddZipCancelled(t *testing.T) {
	dir := t.TempDir()
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "a", Body: strings.Repeat("a", 1<<20)}))
	ctx, cancel := context.WithCancel(t.Context())
	_, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(ctx, zipPath, extract.Limits{}, func(int64, int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	ziptest.WantTree(t, filepath.Join(dir, "store"), "sha256", "staging")
}

func TestAddZipOpening(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	big := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "a", Body: "a"}))
	tests := []struct {
		name, path string
		limits     extract.Limits
		kind       error
	}{
		{"missing", filepath.Join(dir, "none.zip"), extract.Limits{}, invalid.ErrNotFound},
		{"pipe", pipe, extract.Limits{}, invalid.ErrPackage},
		{"directory", dir, extract.Limits{}, invalid.ErrPackage},
		{"over the limit of the zip", big, extract.Limits{ZipBytes: 20}, invalid.ErrTooLarge},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := openTestStore(t, t.TempDir()).AddZip(t.Context(), tt.path, tt.limits, nil)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.path) {
				t.Errorf("error %v, want %q that names %s", err, tt.kind, tt.path)
			}
		})
	}
}

// TestAddTree: a tree is made once, whole or not at all, and anew if it is damaged.
func TestAddTree(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	calls := 0
	fill := func(root *os.Root) (int64, error) {
		calls++
		return 3, root.WriteFile("x", []byte("abc"), 0o600)
	}
	broken := errors.New("broken")
	add := func(name string) (*Ref, error) {
		return store.AddTree(t.Context(), name, Origin{KindImage, name}, fill)
	}
	if _, err := store.AddTree(t.Context(), "a", Origin{}, func(root *os.Root) (int64, error) { _, _ = fill(root); return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
	ziptest.WantTree(t, filepath.Join(dir, "sha256"))

	calls = 0
	first, err := add("a")
	if err != nil {
		t.Fatal(err)
	}
	again, err := add("a")
	if err != nil || again.Entry != first.Entry || calls != 1 || first.Size != 3 {
		t.Errorf("got %+v then %+v after %d calls: %v", first, again, calls, err)
	}
	closeRef(t, first)
	closeRef(t, again)
	if other, err := add("b"); err != nil || other.Dir == first.Dir {
		t.Errorf("two names have the folder %s: %v", other.Dir, err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(first.Dir), entryFile), []byte("{"), 0o600); err != nil { // S-11
		t.Fatal(err)
	}
	healed, err := add("a")
	if err != nil || healed.Entry != first.Entry || calls != 3 {
		t.Fatalf("got %+v after %d calls: %v", healed, calls, err)
	}
	closeRef(t, healed)
	for _, damage := range []func(string) error{os.Remove, func(x string) error { return os.Truncate(x, 1) }} { // S-11
		calls = 0
		if err := damage(filepath.Join(first.Dir, "x")); err != nil {
			t.Fatal(err)
		}
		if healed, err = add("a"); err != nil || healed.Entry != first.Entry || calls != 1 {
			t.Fatalf("got %+v after %d calls: %v", healed, calls, err)
		}
		closeRef(t, healed)
		if text, err := os.ReadFile(filepath.Join(first.Dir, "x")); err != nil || string(text) != "abc" {
			t.Errorf("healed file: %q, %v", text, err)
		}
	}
}

// What is published is on the disk, and what others have written to the same file system is not
// waited for.
func TestPublishWritesOwnFiles(t *testing.T) {
	dir := t.TempDir()
	dirty := func(f *os.File) uint64 {
		var stat unix.Cachestat_t
		if err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{}, &stat, 0); err != nil && !errors.Is(err, unix.ENOSYS) { // new in Linux 6.5
			t.Fatal(err)
		}
		return stat.Dirty + stat.Writeback
	}
	other, err := os.Create(filepath.Join(dir, "other"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := other.Write(make([]byte, 4<<20)); err != nil {
		t.Fatal(err)
	}
	if dirty(other) == 0 {
		t.Log("the kernel does not say which pages are on the disk, or this file system has none")
		return
	}
	zipPath := ziptest.Write(t, dir, ziptest.Make(t, ziptest.File{Name: "file", Body: strings.Repeat("x", 1<<20)}))
	ref, err := openTestStore(t, filepath.Join(dir, "store")).AddZip(t.Context(), zipPath, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer closeRef(t, ref)
	own, err := os.Open(filepath.Join(ref.Dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if n := dirty(own); n != 0 {
		t.Errorf("%d pages of the entry are not on the disk", n)
	}
	if dirty(other) == 0 {
		t.Error("another program's file was written first")
	}
}
