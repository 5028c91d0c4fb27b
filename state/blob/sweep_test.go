package blob

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// age has a blob be written some time ago.
func age(t *testing.T, dir string, d Digest, ago time.Duration) {
	t.Helper()
	at := time.Now().Add(-ago)
	if err := os.Chtimes(filepath.Join(dir, file(d)), at, at); err != nil {
		t.Fatal(err)
	}
}

// A sweep removes what is old, not referred to and not pinned, and nothing else.
func TestSweep(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	unused, used, young, pinned := put(t, s, "unused"), put(t, s, "used"), put(t, s, "young"), put(t, s, "pinned")
	future := put(t, s, "future")
	for _, d := range []Digest{unused, used, pinned} {
		age(t, dir, d, 2*time.Hour)
	}
	age(t, dir, future, -10*365*24*time.Hour)
	pin, err := s.Pin(pinned)
	if err != nil {
		t.Fatal(err)
	}
	keep := func(d Digest) (bool, error) { return d == used, nil }
	sweep := func(want Swept) {
		t.Helper()
		if got, err := s.Sweep(t.Context(), time.Hour, keep); err != nil || got != want {
			t.Errorf("%+v, %v; want %+v", got, err, want)
		}
	}
	release := s.Hold()
	sweep(Swept{Kept: 5})
	if err := s.Remove(unused); !errors.Is(err, ErrInUse) {
		t.Errorf("removed while all are held: %v", err)
	}
	release()
	release() // does nothing
	sweep(Swept{Removed: 1, Bytes: 6, Kept: 4})
	if _, err := s.Size(unused); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if err := s.Remove(pinned); !errors.Is(err, ErrInUse) {
		t.Errorf("removed while it is pinned: %v", err)
	}
	pin.Release()
	pin.Release() // does nothing
	sweep(Swept{Removed: 1, Bytes: 6, Kept: 3})
	age(t, dir, young, 2*time.Hour)
	age(t, dir, future, 2*time.Hour)
	failure := errors.New("the store is closed")
	if _, err := s.Sweep(t.Context(), time.Hour, func(Digest) (bool, error) { return false, failure }); !errors.Is(err, failure) {
		t.Error(err)
	}
	sweep(Swept{Removed: 2, Bytes: 11, Kept: 1})
	if err := s.Remove(used); err != nil {
		t.Error(err)
	}
	if err := s.Remove(used); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	wantFiles(t, dir)
}

// The clock was wrong when a blob was written: it is kept for the grace from now on, not
// until that time.
func TestSweepFuture(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	d := put(t, s, "x")
	age(t, dir, d, -10*365*24*time.Hour)
	never := func(Digest) (bool, error) { return false, nil }
	if got, err := s.Sweep(t.Context(), time.Hour, never); err != nil || got.Removed != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if info, err := os.Stat(filepath.Join(dir, file(d))); err != nil || info.ModTime().After(time.Now()) {
		t.Errorf("%v, %v", info.ModTime(), err)
	}
}

// Sweeps beside uploads of the same contents, whose references come and go: whatever is
// referred to is there.
func TestSweepBesideUploads(t *testing.T) {
	s := open(t, t.TempDir(), Options{Uploads: 4})
	var mu sync.Mutex
	references := map[Digest]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var uploads, sweeps sync.WaitGroup
	for worker := range 4 {
		uploads.Go(func() {
			for round := range 60 {
				content := "content " + strconv.Itoa((worker*round)%5)
				pin, err := s.Put(t.Context(), strings.NewReader(content), 100)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				references[pin.Digest]++
				mu.Unlock()
				pin.Release()
				if err := s.Verify(t.Context(), pin.Digest); err != nil {
					t.Errorf("a blob that is referred to: %v", err)
				}
				mu.Lock()
				references[pin.Digest]--
				mu.Unlock()
			}
		})
	}
	removed := 0
	sweeps.Go(func() {
		for ctx.Err() == nil {
			got, err := s.Sweep(t.Context(), -time.Second, func(d Digest) (bool, error) {
				mu.Lock()
				defer mu.Unlock()
				return references[d] > 0, nil
			})
			if err != nil {
				t.Error(err)
			}
			removed += got.Removed
		}
	})
	uploads.Wait()
	cancel()
	sweeps.Wait()
	if removed == 0 {
		t.Error("nothing was swept beside the uploads")
	}
}
