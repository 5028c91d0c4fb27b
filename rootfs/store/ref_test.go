package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// addFile adds a zip of one file that holds body.
func addFile(t testing.TB, s *Store, body string) *Ref {
	t.Helper()
	zip := filepath.Join(t.TempDir(), "code-"+body+".zip")
	if err := os.WriteFile(zip, ziptest.Make(t, ziptest.File{Name: "file", Body: body}), 0o600); err != nil {
		t.Fatal(err)
	}
	ref, err := s.AddZip(t.Context(), zip, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

// collect collects, and wants no error.
func collect(t testing.TB, s *Store, keep Retention) Result {
	t.Helper()
	r, err := s.Collect(t.Context(), keep)
	if err != nil {
		t.Error(err)
	}
	return r
}

// digests names items by the beginning of their digests, as refs names references.
func digests(items []Item) string {
	var list []string
	for _, it := range items {
		list = append(list, it.Digest[:8])
	}
	return strings.Join(list, " ")
}

func refs(list ...*Ref) string {
	var names []string
	for _, r := range list {
		names = append(names, r.Digest[:8])
	}
	return strings.Join(names, " ")
}

// wantFile wants that the files of an entry are there.
func wantFile(t testing.TB, r *Ref, body string) {
	t.Helper()
	if text, err := os.ReadFile(filepath.Join(r.Dir, "file")); err != nil || string(text) != body {
		t.Errorf("%q, %v; want %q", text, err, body)
	}
}

// An entry stays until the last reference to it is closed, whoever holds it: the same
// Store, or another one, which is as another process to it.
func TestReferencesKeepEntries(t *testing.T) {
	dir := t.TempDir()
	store, other := openTestStore(t, dir), openTestStore(t, dir)
	first := addFile(t, store, "a")
	held := Refs{first, addFile(t, store, "a"), addFile(t, other, "a")}
	for i, ref := range held {
		for _, s := range []*Store{store, other} {
			if r := collect(t, s, Retention{}); len(r.Removed) > 0 || digests(r.InUse) != refs(first) {
				t.Fatalf("with %d references: %+v", len(held)-i, r)
			}
		}
		wantFile(t, ref, "a")
		closeRef(t, ref)
		closeRef(t, ref) // a second time, which counts for nothing
	}
	if r := collect(t, other, Retention{}); digests(r.Removed) != refs(first) {
		t.Errorf("with no reference: %+v", r)
	}
	ziptest.WantTree(t, dir, "sha256", "staging")
	if err := (*Ref)(nil).Close(); err != nil {
		t.Error(err)
	}
}

// A child that is just being forked has the descriptors of locks for a moment, too. That
// keeps nothing in use.
func TestReleaseWhileForking(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	ref := addFile(t, store, "a")
	theirs, err := unix.Dup(int(store.holds[ref.Digest].dir.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(theirs)
	closeRef(t, ref)
	if r := collect(t, store, Retention{}); len(r.Removed) != 1 {
		t.Errorf("%+v", r)
	}
}

// The last use of an entry is recorded when a reference is taken, when it is given up, and
// meanwhile whenever its process collects.
func TestLastUse(t *testing.T) {
	dir := t.TempDir()
	ref := addFile(t, openTestStore(t, dir), "a")
	closeRef(t, ref)
	path := filepath.Dir(ref.Dir)
	wantUsed := func(what string, use func()) {
		t.Helper()
		long := time.Now().Add(-100 * time.Hour)
		if err := os.Chtimes(path, long, long); err != nil {
			t.Fatal(err)
		}
		before := time.Now().Add(-time.Second)
		use()
		if info, err := os.Stat(path); err != nil || info.ModTime().Before(before) {
			t.Errorf("%s: last used %v, %v", what, info.ModTime(), err)
		}
	}
	store := openTestStore(t, dir)
	wantUsed("taken", func() { ref = addFile(t, store, "a") })
	wantUsed("collected", func() { collect(t, store, Retention{}) })
	wantUsed("given up", func() { closeRef(t, ref) })
}

// S-11: an entry that is damaged and in use is not pulled away under the sandboxes that show
// it: who wants it is told so. It is made anew once nobody uses it.
func TestDamagedInUse(t *testing.T) {
	dir := t.TempDir()
	user, store := openTestStore(t, dir), openTestStore(t, dir)
	store.patience = 50 * time.Millisecond
	zip := ziptest.Write(t, t.TempDir(), ziptest.Make(t, ziptest.File{Name: "file", Body: "whole"}, ziptest.File{Name: "other", Body: "o"}))
	ref, err := user.AddZip(t.Context(), zip, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(ref.Dir, "file")); err != nil {
		t.Fatal(err)
	}
	_, err = store.AddZip(t.Context(), zip, extract.Limits{}, nil)
	if err == nil || !strings.Contains(err.Error(), "is damaged, and cannot be made anew while running daemons use it") || !strings.Contains(err.Error(), ref.Digest) {
		t.Errorf("%v", err)
	}
	ziptest.WantTree(t, ref.Dir, "other")
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.AddZip(ctx, zip, extract.Limits{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}

	store.patience = lockPatience
	healed := make(chan *Ref)
	go func() { // finds it in use, and waits
		ref, err := store.AddZip(t.Context(), zip, extract.Limits{}, nil)
		if err != nil {
			t.Error(err)
		}
		healed <- ref
	}()
	closeRef(t, ref)
	again := <-healed
	if again == nil {
		t.FailNow()
	}
	ziptest.WantTree(t, again.Dir, "file", "other")
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
}

// Several processes that find an entry damaged at once make it anew, and all get it.
func TestDamagedForSeveral(t *testing.T) {
	dir := t.TempDir()
	zip := ziptest.Write(t, t.TempDir(), ziptest.Make(t, ziptest.File{Name: "file", Body: "whole"}))
	ref, err := openTestStore(t, dir).AddZip(t.Context(), zip, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	closeRef(t, ref)
	if err := os.Truncate(filepath.Join(ref.Dir, "file"), 1); err != nil {
		t.Fatal(err)
	}
	const processes = 6
	results := make(chan error)
	for range processes {
		store := openTestStore(t, dir)
		go func() {
			ref, err := store.AddZip(t.Context(), zip, extract.Limits{}, nil)
			if err == nil {
				var text []byte
				if text, err = os.ReadFile(filepath.Join(ref.Dir, "file")); err == nil && string(text) != "whole" {
					err = fmt.Errorf("the file holds %q", text)
				}
			}
			results <- err
		}()
	}
	for range processes {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
}

// An entry that another process has locked for itself, as a collector does for a moment,
// is waited for, but not for ever.
func TestLockedEntry(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	ref := addFile(t, store, "a")
	closeRef(t, ref)
	lock, err := lockDir(store.path(ref.Digest))
	if err != nil {
		t.Fatal(err)
	}
	store.patience = 20 * time.Millisecond
	if _, err := store.find(t.Context(), ref.Digest, nil); err == nil || !strings.Contains(err.Error(), "has kept "+store.path(ref.Digest)+" locked for 20ms") {
		t.Errorf("%v", err)
	}
	store.patience = lockPatience
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.find(ctx, ref.Digest, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	found := make(chan error)
	go func() {
		ref, err := store.find(t.Context(), ref.Digest, nil)
		found <- errors.Join(err, ref.Close())
	}()
	if err := unlock(lock); err != nil {
		t.Fatal(err)
	}
	if err := <-found; err != nil {
		t.Error(err)
	}
}

// between has f run once, when a directory whose path has that part is open and not yet
// locked.
func between(t *testing.T, part string, f func()) {
	t.Helper()
	before := testHookOpened
	t.Cleanup(func() { testHookOpened = before })
	testHookOpened = func(path string) {
		if strings.Contains(path, part) {
			testHookOpened = before
			f()
		}
	}
}

// Another process may come between any two steps of who takes a reference, and of a
// collector.
func TestRaces(t *testing.T) {
	dir := t.TempDir()
	store, other := openTestStore(t, dir), openTestStore(t, dir)
	// takeOut takes the only entry out of the store. In staging it stays whole for a while.
	takeOut := func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		only := collect(t, other, Retention{NoAge, NoBytes}).Unused[0]
		if gone, err := other.remove(ctx, only); !gone || !errors.Is(err, context.Canceled) {
			t.Errorf("%v, %v", gone, err)
		}
	}
	t.Run("made anew before it is locked", func(t *testing.T) {
		ref := addFile(t, store, "a")
		closeRef(t, ref)
		between(t, ref.Digest, func() {
			takeOut(t)
			closeRef(t, addFile(t, other, "a"))
		})
		again := addFile(t, store, "a")
		if r := collect(t, other, Retention{}); digests(r.InUse) != refs(ref) {
			t.Errorf("%+v", r)
		}
		wantFile(t, again, "a")
		closeRef(t, again)
	})
	t.Run("collected as soon as it is there", func(t *testing.T) {
		between(t, "entry", func() { collect(t, other, Retention{}) })
		ref := addFile(t, store, "b")
		if r := collect(t, other, Retention{}); digests(r.InUse) != refs(ref) {
			t.Errorf("%+v", r)
		}
		wantFile(t, ref, "b")
		closeRef(t, ref)
	})
	t.Run("made anew before it is collected", func(t *testing.T) {
		collect(t, store, Retention{})
		ref := addFile(t, store, "c")
		closeRef(t, ref)
		seen := collect(t, store, Retention{NoAge, NoBytes}).Unused[0]
		var again *Ref
		between(t, ref.Digest, func() {
			takeOut(t)
			again = addFile(t, other, "c")
			closeRef(t, again)
		})
		if gone, err := store.remove(t.Context(), seen); gone || !errors.Is(err, errUsed) {
			t.Errorf("%v, %v", gone, err)
		}
		wantFile(t, again, "c")
	})
	t.Run("made anew before it is set aside", func(t *testing.T) {
		ref := addFile(t, store, "d")
		closeRef(t, ref)
		damage := func() {
			if err := os.Remove(filepath.Join(ref.Dir, "file")); err != nil {
				t.Error(err)
			}
		}
		damage()
		var again *Ref
		st, err := store.staging.begin()
		if err != nil {
			t.Fatal(err)
		}
		defer st.close()
		between(t, ref.Digest, func() { again = addFile(t, other, "d") })
		if err := store.setAside(ref.Digest, st, nil); err != nil {
			t.Error(err)
		}
		wantFile(t, again, "d")
		closeRef(t, again)
	})
	t.Run("swept by another", func(t *testing.T) {
		st, err := store.staging.begin()
		if err != nil {
			t.Fatal(err)
		}
		st.lock.Close()
		between(t, st.dir, func() { collect(t, other, Retention{}) })
		if removed, err := store.staging.sweep(t.Context(), filepath.Base(st.dir)); removed || err != nil {
			t.Errorf("%v, %v", removed, err)
		}
	})
}
