package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
)

// image is what the files of a store are when its process is killed.
type image map[string][]byte

// keysOfImage is how many keys newImage stores.
const keysOfImage = 120

func valueOf(i int) string { return strings.Repeat(fmt.Sprintf("value %d,", i), 1+i*i%400) }

// newImage makes a store of which a part is in the database and another part in the log.
func newImage(t *testing.T) image {
	t.Helper()
	dir := t.TempDir()
	s := folder(dir).Open(t)
	store := func(from, to int) {
		for i := from; i < to; i++ {
			err := s.Update(t.Context(), func(tx *state.Tx) error {
				_, err1 := tx.Append("log", []byte(valueOf(i)))
				_, err2 := tx.Enqueue("queue", []byte(valueOf(i)), time.Unix(int64(i), 0))
				err3 := tx.SetTimer(fmt.Sprintf("timer %03d", i), time.Unix(int64(i), 0), []byte(valueOf(i)))
				return errors.Join(err1, err2, err3, put(fmt.Sprintf("key %03d", i), valueOf(i))(tx))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	store(0, keysOfImage-10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = folder(dir).Open(t)
	defer s.Close()
	store(keysOfImage-10, keysOfImage)
	files := image{}
	for _, name := range []string{Database, Log, Mark, Lock} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	if len(files[Log]) < 20000 {
		t.Fatalf("the log has %d bytes", len(files[Log]))
	}
	return files
}

// look opens a store of these files and reads all of it. It fails the test if an answer is
// wrong, and returns what is known to be damaged.
func (f image) look(t *testing.T, what string) (damage string) {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	for name, b := range f {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), Options{Folder: dir})
	if err != nil {
		if !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: opened with %v", what, err)
		}
		return err.Error()
	}
	defer s.Close()
	wrong := 0
	check := func(what string, err error, right bool) {
		switch {
		case err != nil && errors.Is(err, state.ErrDamaged):
			wrong++
		case err != nil || !right:
			t.Errorf("%s: %v, right %v", what, err, right)
		}
	}
	for i := range keysOfImage {
		err := s.View(t.Context(), func(r *state.Reader) error {
			v, err := r.Get(fmt.Sprintf("key %03d", i))
			check(fmt.Sprintf("%s: key %d", what, i), err, string(v) == valueOf(i))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	lists := []func(r *state.Reader) (int, error){
		func(r *state.Reader) (int, error) { l, err := r.List("", "", 1000); return len(l), err },
		func(r *state.Reader) (int, error) { return r.Count("") },
		func(r *state.Reader) (int, error) { l, err := r.ReadLog("log", 0, 1000); return len(l), err },
		func(r *state.Reader) (int, error) { l, err := r.ReadQueue("queue", 0, 1000); return len(l), err },
		func(r *state.Reader) (int, error) { l, err := r.Due(state.Forever, 1000); return len(l), err },
	}
	for i, list := range lists {
		if err := s.View(t.Context(), func(r *state.Reader) error {
			n, err := list(r)
			check(fmt.Sprintf("%s: list %d", what, i), err, n == keysOfImage)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if found := s.Damage(); len(found) > 0 {
		damage = found[0].String()
	} else if wrong > 0 {
		t.Errorf("%s: %d answers are damaged, and nobody knows", what, wrong)
	}
	if err := s.Update(t.Context(), put("new", "")); (damage == "") != (err == nil) {
		t.Errorf("%s: with the damage %q an update ends with %v", what, damage, err)
	}
	return damage
}

// TestKilled opens what a killed process has left.
func TestKilled(t *testing.T) {
	if damage := newImage(t).look(t, "as it was"); damage != "" {
		t.Errorf("damage: %s", damage)
	}
}

// TestDamagedFiles flips a bit and cuts off an end in each file, at places drawn at random.
// Damage that changes an answer is named, and no wrong answer is given.
func TestDamagedFiles(t *testing.T) {
	tries := 60
	if n, err := strconv.Atoi(os.Getenv("STATE_DAMAGES")); err == nil {
		tries = n
	}
	whole := newImage(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, name := range []string{Database, Log, Mark} {
		named := 0
		for i := range tries {
			damaged := image{}
			for n, b := range whole {
				damaged[n] = b
			}
			b := bytes.Clone(whole[name])
			at := r.IntN(len(b))
			if name == Database && i%3 == 0 {
				at = r.IntN(100) // its header
			}
			what := fmt.Sprintf("%s with byte %d of %d flipped", name, at, len(b))
			if i%4 == 3 {
				what = fmt.Sprintf("%s cut from %d to %d bytes", name, len(b), at)
				b = b[:at]
			} else {
				b[at] ^= 1 << r.IntN(8)
			}
			damaged[name] = b
			if damaged.look(t, what) != "" {
				named++
			}
		}
		t.Logf("%s: %d of %d damages are named", name, named, tries)
		if name == Log && named == 0 {
			t.Error("no damage of the log was found")
		}
	}
}

// TestLostFiles removes and empties files whole.
func TestLostFiles(t *testing.T) {
	whole := newImage(t)
	for _, c := range []struct {
		name  string
		empty bool
		named bool
	}{
		{Database, true, true}, {Database, false, true}, {Log, true, true}, {Log, false, true},
		{Mark, true, false}, {Mark, false, false}, // nothing that anybody asks for
	} {
		files := image{}
		for n, b := range whole {
			files[n] = b
		}
		if files[c.name] = nil; !c.empty {
			delete(files, c.name)
		}
		what := fmt.Sprintf("%s emptied %v", c.name, c.empty)
		if damage := files.look(t, what); (damage != "") != c.named {
			t.Errorf("%s: damage %q", what, damage)
		}
	}
}
