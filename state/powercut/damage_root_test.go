//go:build integration

package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/blob"
)

// damagesVariable is how many bytes are flipped in each file, and as many times it is cut.
const damagesVariable = "POWER_DAMAGES"

// made makes a store in which each worker has made some changes, and returns it with its log
// not yet moved into the database, and as it is after it was closed.
func made(t *testing.T, changes uint64) (unclean, closed string) {
	t.Helper()
	closed, unclean = t.TempDir(), t.TempDir()
	s, err := open(t.Context(), closed, "")
	if err != nil {
		t.Fatal(err)
	}
	for n := range changes {
		for worker := range workers {
			if err := s.change(t.Context(), worker, n+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	copyStore(t, closed, unclean)
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	return unclean, closed
}

// examine asks for everything that a store has, and returns what it says of damage. A wrong
// answer fails the test.
func examine(t *testing.T, what, dir string, changes uint64) (named error) {
	t.Helper()
	s, err := open(t.Context(), dir, "")
	if err != nil {
		if _, key := errors.AsType[keyError](err); !key && !errors.Is(err, state.ErrDamaged) {
			t.Errorf("%s: %v, which is not an error of damage", what, err)
		}
		return err
	}
	defer func() {
		if err := s.close(); err != nil && named == nil {
			t.Errorf("%s: close: %v", what, err)
		}
	}()
	for _, damage := range s.store.Damage() {
		named = errors.Join(named, errors.New(damage.String()))
	}
	for worker := range workers {
		var errs []error
		err := s.store.View(t.Context(), func(r *state.Reader) error {
			errs = s.probe(t.Context(), r, newPart(worker, changes))
			return nil
		})
		for _, err := range append(errs, err) {
			switch {
			case err == nil:
			case errors.Is(err, state.ErrDamaged), errors.Is(err, blob.ErrDamaged), errors.Is(err, blob.ErrNotFound),
				errors.Is(err, seal.ErrDamaged), errors.Is(err, seal.ErrNoKey):
				named = errors.Join(named, err)
			default:
				t.Errorf("%s: worker %d: %v", what, worker, err)
			}
		}
	}
	if len(s.store.Damage()) > 0 {
		if err := s.change(t.Context(), 0, changes+1); !errors.Is(err, state.ErrReadOnly) {
			t.Errorf("%s: a change after damage: %v", what, err)
		}
	}
	return named
}

// Whatever file of a store is damaged, by a flipped byte or by an end too early, the damage is
// named or changes no answer. No wrong answer is given.
func TestDamage(t *testing.T) {
	const changes = 14
	unclean, clean := made(t, changes)
	for name, dir := range map[string]string{"with log": unclean, "closed": clean} {
		t.Run(name, func(t *testing.T) {
			r := seeded(t)
			if err := examineCopy(t, "undamaged", dir, changes, nil); err != nil {
				t.Fatal(err)
			}
			for _, file := range filesOf(t, dir) {
				damageFile(t, r, dir, file, changes)
			}
		})
	}
}

// filesOf lists the files below dir.
func filesOf(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			list = append(list, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// damageFile damages one file in many ways, each on a copy, and says what came of it.
func damageFile(t *testing.T, r *rand.Rand, dir, file string, changes uint64) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	rounds := number(t, damagesVariable, 12)
	if strings.HasPrefix(file, "blobs/") {
		rounds = max(rounds/6, 2)
	}
	var flipped, cut, flips, cuts int
	try := func(what string, damaged []byte) bool {
		return examineCopy(t, file+": "+what, dir, changes, func(dir string) error {
			if damaged == nil {
				return os.Remove(filepath.Join(dir, file))
			}
			return os.WriteFile(filepath.Join(dir, file), damaged, 0o600)
		}) != nil
	}
	count := func(named bool, n *int) {
		if named {
			*n++
		}
	}
	for i := 0; len(content) > 0 && i < rounds; i++ {
		at := r.IntN(len(content))
		if i%3 == 0 { // the beginnings of files hold what describes the rest
			at = r.IntN(min(len(content), 200))
		}
		damaged := append([]byte{}, content...)
		damaged[at] ^= 1 << r.IntN(8)
		count(try(fmt.Sprintf("flip at %d", at), damaged), &flipped)
		flips++
	}
	for i := 0; len(content) > 0 && i < rounds; i++ {
		at := r.IntN(len(content))
		if i < 3 {
			at = []int{0, len(content) - 1, len(content) / 2}[i]
		}
		count(try(fmt.Sprintf("cut at %d", at), content[:at:at]), &cut)
		cuts++
	}
	removed := try("removed", nil)
	t.Logf("%s, %d bytes: named %d of %d flips, %d of %d cuts, removal %v", file, len(content), flipped, flips, cut, cuts, removed)
	if blob := strings.HasPrefix(file, "blobs/"); blob && (flipped < flips || cut < cuts || !removed) {
		t.Errorf("%s: damage is not named", file)
	}
}

// examineCopy damages a copy of a store and examines it.
func examineCopy(t *testing.T, what, dir string, changes uint64, damage func(dir string) error) error {
	t.Helper()
	at, err := os.MkdirTemp("", "damaged")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(at)
	copyStore(t, dir, at)
	if damage != nil {
		if err := damage(at); err != nil {
			t.Fatal(err)
		}
	}
	return examine(t, what, at, changes)
}

// copyStore copies what is in a folder into another one.
func copyStore(t *testing.T, from, to string) {
	t.Helper()
	err := errors.Join(os.CopyFS(to, os.DirFS(from)), os.Chmod(filepath.Join(to, hostKey), 0o600))
	if err != nil {
		t.Fatal(err)
	}
}
