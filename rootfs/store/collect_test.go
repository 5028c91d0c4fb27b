package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// What goes is what was unused for long, and then, longest unused first, as much as makes
// the rest fit.
func TestRetention(t *testing.T) {
	now := time.Now()
	item := func(hours int, bytes int64) Item {
		return Item{Digest: fmt.Sprintf("%dh", hours), Bytes: bytes, LastUsed: now.Add(-time.Duration(hours) * time.Hour)}
	}
	unused := []Item{item(30, 5), item(20, 1), item(10, 3), item(1, 2)}
	for _, tt := range []struct {
		keep  Retention
		goes  int
		which string
	}{
		{Retention{}, 4, "nothing is kept"},
		{Retention{NoAge, NoBytes}, 0, "all is kept"},
		{Retention{20 * time.Hour, NoBytes}, 2, "by age, the bound included"},
		{Retention{20*time.Hour + 1, NoBytes}, 1, "by age"},
		{Retention{NoAge, 11}, 0, "all fits"},
		{Retention{NoAge, 10}, 1, "by size"},
		{Retention{NoAge, 5}, 2, "by size, just fits"},
		{Retention{NoAge, 4}, 3, "by size, longest unused first though a smaller one would do"},
		{Retention{25 * time.Hour, 5}, 2, "by both"},
		{Retention{time.Hour, NoBytes}, 4, "all are old"},
		{Retention{NoAge, 0}, 4, "no room"},
	} {
		victims, stay := tt.keep.choose(slices.Clone(unused), now)
		if len(victims) != tt.goes || len(victims)+len(stay) != len(unused) || !slices.Equal(slices.Concat(victims, stay), unused) {
			t.Errorf("%s: %v go, %v stay; want the first %d to go", tt.which, victims, stay, tt.goes)
		}
	}
}

// unusedFor adds a zip that counts as last used that long ago, of that many bytes.
func unusedFor(t testing.TB, s *Store, name string, age time.Duration, bytes int) *Ref {
	t.Helper()
	ref := addFile(t, s, name+strings.Repeat("x", bytes-len(name)))
	closeRef(t, ref)
	used := time.Now().Add(-age)
	if err := os.Chtimes(s.path(ref.Digest), used, used); err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	a, b, c, d := unusedFor(t, store, "a", 30*time.Hour, 10), unusedFor(t, store, "b", 20*time.Hour, 10), unusedFor(t, store, "c", 10*time.Hour, 10), unusedFor(t, store, "d", time.Hour, 10)
	used := addFile(t, openTestStore(t, dir), "used")
	long := time.Now().Add(-1000 * time.Hour)
	if err := os.Chtimes(store.path(used.Digest), long, long); err != nil {
		t.Fatal(err)
	}

	each := collect(t, store, Retention{NoAge, NoBytes})
	if digests(each.Unused) != refs(a, b, c, d) || digests(each.InUse) != refs(used) || len(each.Removed) > 0 {
		t.Fatalf("%+v", each)
	}
	if it := each.Unused[0]; it.Origin != (Origin{KindZip, "code-axxxxxxxxx.zip"}) || it.Bytes < 4096 || time.Since(it.LastUsed).Round(time.Minute) != 30*time.Hour {
		t.Errorf("%+v", it)
	}
	if r := collect(t, store, Retention{25 * time.Hour, NoBytes}); digests(r.Removed) != refs(a) || digests(r.Unused) != refs(b, c, d) {
		t.Errorf("by age: %+v", r)
	}
	if r := collect(t, store, Retention{NoAge, Bytes(each.Unused[2:])}); digests(r.Removed) != refs(b) || digests(r.Unused) != refs(c, d) {
		t.Errorf("by size: %+v", r)
	}
	if r := collect(t, store, Retention{}); digests(r.Removed) != refs(c, d) || digests(r.InUse) != refs(used) {
		t.Errorf("all: %+v", r)
	}
	wantFile(t, used, "used")
	closeRef(t, used)
	collect(t, store, Retention{})
	ziptest.WantTree(t, dir, "sha256", "staging")
}

// What is counted is what the disk gives: blocks, and those of a file with two names once.
func TestDiskBytes(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	const mebi = 1 << 20
	ref, err := store.AddTree(t.Context(), "x", Origin{KindImage, "x"}, func(root *os.Root) (int64, error) {
		err := errors.Join(root.WriteFile("one", make([]byte, mebi), 0o644), root.Link("one", "two"), root.WriteFile("sparse", nil, 0o644))
		f, openErr := root.OpenFile("sparse", os.O_WRONLY, 0)
		if err = errors.Join(err, openErr); err == nil {
			err = errors.Join(f.Truncate(100*mebi), f.Close())
		}
		return 102 * mebi, err
	})
	if err != nil {
		t.Fatal(err)
	}
	closeRef(t, ref)
	check := func(what string, keep Retention) {
		t.Helper()
		r := collect(t, store, keep)
		if got := Bytes(r.Unused) + Bytes(r.Removed); got < mebi || got > mebi+64<<10 {
			t.Errorf("%s: %d bytes, want about %d", what, got, mebi)
		}
	}
	check("as recorded", Retention{NoAge, NoBytes})
	// An older version has recorded no bytes.
	if err := os.WriteFile(filepath.Join(store.path(ref.Digest), entryFile), []byte(`{"size":1,"stored":1}`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("as measured", Retention{NoAge, NoBytes})
	if err := os.WriteFile(filepath.Join(store.path(ref.Digest), entryFile), []byte(`{"disk":9223372036854775807}`), 0o600); err != nil {
		t.Fatal(err)
	}
	check("as garbled", Retention{})
}

// A collector removes entries and nothing else, follows no link, and removes what is not
// whole like the rest.
func TestCollectOnlyEntries(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	outside := filepath.Join(dir, "outside")
	digest := func(c string) string { return strings.Repeat(c, 64) }
	tree := filepath.Join(dir, "sha256", digest("a"), "tree")
	err := errors.Join(
		os.MkdirAll(filepath.Join(outside, "kept"), 0o755),
		os.Symlink(outside, filepath.Join(dir, "sha256", digest("e"))), // a link with an entry's name
		os.WriteFile(filepath.Join(dir, "sha256", digest("f")), nil, 0o600),
		os.MkdirAll(filepath.Join(dir, "sha256", "notes"), 0o755),
		os.MkdirAll(tree, 0o755), os.Symlink(outside, filepath.Join(tree, "link")), // an entry without description
		os.MkdirAll(filepath.Join(dir, "sha256", digest("b")), 0o755), os.Symlink(outside, filepath.Join(dir, "sha256", digest("b"), "tree")),
		os.MkdirAll(filepath.Join(dir, "sha256", digest("c")), 0o755), os.Symlink(filepath.Join(outside, "kept"), filepath.Join(dir, "sha256", digest("c"), entryFile)),
		os.MkdirAll(filepath.Join(dir, "sha256", digest("d")), 0o755), unix.Mkfifo(filepath.Join(dir, "sha256", digest("d"), entryFile), 0o600),
		os.Symlink(outside, filepath.Join(dir, "staging", setAside+"link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.Collect(t.Context(), Retention{})
	if err == nil || !strings.Contains(err.Error(), setAside+"link") {
		t.Errorf("a link in staging: %v", err)
	}
	if len(r.Removed) != 4 || r.Removed[0].Kind != "" || r.Removed[0].Bytes < 4096 {
		t.Errorf("%+v", r)
	}
	ziptest.WantTree(t, dir, "outside", "outside/kept", "sha256", "sha256/"+digest("e"), "sha256/"+digest("f"), "sha256/notes", "staging", "staging/"+setAside+"link")
}

// A collection that is ended leaves no half entry in the store. What it leaves in staging
// keeps no start waiting, and is removed by the next collection.
func TestCollectionEnded(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	a, b := unusedFor(t, store, "a", 2*time.Hour, 10), unusedFor(t, store, "b", time.Hour, 10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	it := collect(t, store, Retention{NoAge, NoBytes}).Unused[0]
	if gone, err := store.remove(ctx, it); !gone || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", gone, err)
	}
	if r, err := store.Collect(ctx, Retention{}); !errors.Is(err, context.Canceled) || len(r.Removed) > 0 {
		t.Errorf("%+v, %v", r, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "staging", setAside+"*", "tree", "file"))
	if err != nil || len(left) != 1 {
		t.Errorf("left in staging: %q, %v", left, err)
	}
	store = openTestStore(t, dir)
	if again, _ := filepath.Glob(left[0]); len(again) != 1 {
		t.Error("opening the store has removed what a collector was at")
	}
	if _, err := os.Stat(a.Dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the entry that was taken out: %v", err)
	}
	wantFile(t, b, "b"+strings.Repeat("x", 9))
	if r := collect(t, store, Retention{NoAge, NoBytes}); r.Leftovers != 1 || digests(r.Unused) != refs(b) {
		t.Errorf("%+v", r)
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"))
}

// What dead processes have left half made is removed by opening and by collecting, what
// live ones work on by neither.
func TestCollectSweeps(t *testing.T) {
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
	dead.lock.Close()
	if r := collect(t, store, Retention{}); r.Leftovers != 1 {
		t.Errorf("%+v", r)
	}
	ziptest.WantTree(t, filepath.Join(dir, "staging"), filepath.Base(alive.dir))
	if err := alive.close(); err != nil {
		t.Error(err)
	}
}

// An entry that somebody uses, or has used, or another has removed, since it was looked at
// is not removed.
func TestCollectorComesLate(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	ref := unusedFor(t, store, "a", time.Hour, 10)
	seen := collect(t, store, Retention{NoAge, NoBytes}).Unused[0]
	user := openTestStore(t, filepath.Dir(store.entries))
	used, err := user.find(t.Context(), ref.Digest, nil)
	if err != nil {
		t.Fatal(err)
	}
	if gone, err := store.remove(t.Context(), seen); gone || !errors.Is(err, errBusy) {
		t.Errorf("in use: %v, %v", gone, err)
	}
	closeRef(t, used)
	if gone, err := store.remove(t.Context(), seen); gone || !errors.Is(err, errUsed) {
		t.Errorf("used: %v, %v", gone, err)
	}
	wantFile(t, ref, "a"+strings.Repeat("x", 9))
	collect(t, store, Retention{})
	if gone, err := store.remove(t.Context(), seen); gone || !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed: %v, %v", gone, err)
	}
}

// A clock that was wrong keeps nothing for years: a last use in the future is one now.
func TestUsedInTheFuture(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	ref := unusedFor(t, store, "a", -10*365*24*time.Hour, 10)
	before := time.Now()
	r := collect(t, store, Retention{time.Hour, NoBytes})
	if len(r.Unused) != 1 || r.Unused[0].LastUsed.After(time.Now()) {
		t.Errorf("%+v", r)
	}
	if info, err := os.Stat(store.path(ref.Digest)); err != nil || info.ModTime().After(time.Now()) || info.ModTime().Before(before.Add(-time.Second)) {
		t.Errorf("%v, %v", info.ModTime(), err)
	}
	unusedFor(t, store, "a", -time.Hour, 10)
	if r := collect(t, store, Retention{}); len(r.Removed) != 1 {
		t.Errorf("%+v", r)
	}
}

// An entry may hold a tree deeper than descriptors go: an image's, or a hostile one.
func TestCollectDeep(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, dir)
	ref, err := store.AddTree(t.Context(), "deep", Origin{KindImage, "deep"}, func(root *os.Root) (int64, error) {
		return 0, os.MkdirAll(filepath.Join(root.Name(), strings.Repeat("d/", 1500)), 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	closeRef(t, ref)
	withFewFiles(t)
	collect(t, store, Retention{})
	ziptest.WantTree(t, dir, "sha256", "staging")
}

// withFewFiles lets this process have 256 open files until the test ends.
func withFewFiles(t *testing.T) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := limit
	few.Cur = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	})
}

// A plan says what a collection does, and changes nothing.
func TestPlan(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	if r, err := Plan(t.Context(), dir, Retention{}); err != nil || len(r.Removed)+len(r.Unused)+len(r.InUse) > 0 {
		t.Errorf("of no store: %+v, %v", r, err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it has made the store: %v", err)
	}
	store := openTestStore(t, dir)
	a, b := unusedFor(t, store, "a", 2*time.Hour, 10), unusedFor(t, store, "b", time.Hour, 10)
	future := unusedFor(t, store, "f", -time.Hour, 10)
	used := addFile(t, store, "used")
	dead, err := store.staging.begin()
	if err != nil {
		t.Fatal(err)
	}
	dead.lock.Close()
	before := listTimes(t, dir)
	plan, err := Plan(t.Context(), dir, Retention{90 * time.Minute, NoBytes})
	if err != nil || digests(plan.Removed) != refs(a) || digests(plan.Unused) != refs(b, future) || digests(plan.InUse) != refs(used) {
		t.Errorf("%+v, %v", plan, err)
	}
	if after := listTimes(t, dir); !slices.Equal(after, before) {
		t.Errorf("the plan has changed\n%s to\n%s", before, after)
	}
	if r := collect(t, store, Retention{90 * time.Minute, NoBytes}); digests(r.Removed) != digests(plan.Removed) {
		t.Errorf("planned %+v, done %+v", plan, r)
	}
}

// listTimes lists all that is in dir, with the times of its last change.
func listTimes(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			list = append(list, fmt.Sprint(path, info.ModTime()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// What an entry was made of can be printed, whatever its maker was called.
func TestOrigin(t *testing.T) {
	dir := t.TempDir()
	store := openTestStore(t, filepath.Join(dir, "store"))
	zip := filepath.Join(dir, "a\x1b[31m\u202egnp.zip"+strings.Repeat("ü", 100)[:199]) // cut inside a character
	if err := os.WriteFile(zip, ziptest.Make(t, ziptest.File{Name: "file"}), 0o600); err != nil {
		t.Fatal(err)
	}
	ref, err := store.AddZip(t.Context(), zip, extract.Limits{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := Origin{KindZip, "a?[31m?gnp.zip" + strings.Repeat("ü", 99)}
	if r := collect(t, store, Retention{}); r.InUse[0].Origin != want {
		t.Errorf("%q, want %q", r.InUse[0].Origin, want)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(ref.Dir), entryFile), []byte(`{"kind":"\u001b","from":"\u001b`+strings.Repeat("x", 1000)+`"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := collect(t, store, Retention{}); r.InUse[0].Origin != (Origin{"", "?" + strings.Repeat("x", maxFrom-1)}) {
		t.Errorf("garbled: %q", r.InUse[0].Origin)
	}
}

// A collector collects when it starts, every hour, and when it is closed.
func TestCollector(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	first := unusedFor(t, store, "first", time.Hour, 10)
	hourly, last := addFile(t, store, "hourly"), addFile(t, store, "last")
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var reports []string
		c := store.StartCollector(Retention{}, func(r Result, err error) {
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Error(err)
			}
			reports = append(reports, digests(r.Removed))
		})
		reported := func() []string {
			mu.Lock()
			defer mu.Unlock()
			return reports
		}
		synctest.Wait()
		closeRef(t, hourly)
		time.Sleep(collectEvery - time.Second)
		synctest.Wait()
		if want := []string{refs(first)}; !slices.Equal(reported(), want) {
			t.Errorf("before the hour: %q, want %q", reported(), want)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		closeRef(t, last)
		c.Close(context.Background())
		if want := []string{refs(first), refs(hourly), refs(last)}; !slices.Equal(reported(), want) {
			t.Errorf("%q, want %q", reported(), want)
		}
	})
	(*Collector)(nil).Close(t.Context())
}

// Whoever closes a collector does not wait beyond its context.
func TestCollectorCloseWithoutTime(t *testing.T) {
	store := openTestStore(t, t.TempDir())
	told, goOn := make(chan bool, 2), make(chan bool)
	c := store.StartCollector(Retention{}, func(Result, error) {
		told <- true
		<-goOn // as a disk that does not answer
	})
	<-told
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c.Close(ctx)
	close(goOn)
	<-told // the last collection, which came too late
}

// The thread of a collection has its priority for the disk back when it is over.
func TestAtLowPriority(t *testing.T) {
	var before, during, after uintptr
	priority := func() uintptr {
		p, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		return p
	}
	done := make(chan bool)
	go func() {
		defer close(done)
		// Never unlocked, so that the thread is the same all the time. It has no children.
		runtime.LockOSThread()
		before = priority()
		atLowPriority(func() { during = priority() })
		after = priority()
	}()
	<-done
	if during != ioprioLowest || after != before || before == ioprioLowest {
		t.Errorf("priority %#x, then %#x, then %#x", before, during, after)
	}
}
