package state_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/state"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// The test binary migrates the store in a folder, and is killed at the point that this
// variable names.
const helper = "STATE_MIGRATE"

func TestMain(m *testing.M) {
	if point := os.Getenv(helper); point != "" {
		migrate(point, os.Args[len(os.Args)-1])
	}
	os.Exit(m.Run())
}

func kill() { _ = syscall.Kill(os.Getpid(), syscall.SIGKILL) }

// migrate opens a store whose format is not the newest, with two steps to it.
func migrate(point, dir string) {
	state.AddFormat(func(s *state.Session) error {
		if point == "before" {
			kill()
		}
		return s.Define("ALTER TABLE sandboxd_keys ADD COLUMN extra BYTES")
	})
	state.AddFormat(func(s *state.Session) error {
		err := s.Define("CREATE TABLE sandboxd_new (name BYTES NOT NULL PRIMARY KEY)")
		if point == "within" {
			kill()
		}
		if point == "fails" {
			err = errors.New("on purpose")
		}
		return err
	})
	s, err := sqlite.Open(context.Background(), sqlite.Options{Folder: dir, Progress: func(state.Progress) {
		// The backup before it is verified too.
		if _, err := os.Stat(filepath.Join(dir, "migrated")); point == "after" && err == nil {
			kill()
		}
	}})
	if err == nil {
		err = s.Close()
	}
	fmt.Print(err)
	os.Exit(0)
}

func testStore(t *testing.T, dir string) *state.Store {
	t.Helper()
	s, err := sqlite.Open(t.Context(), sqlite.Options{Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func value(t *testing.T, s *state.Store, key string) (value string) {
	t.Helper()
	if err := s.View(t.Context(), func(r *state.Reader) error {
		b, err := r.Get(key)
		value = string(b)
		return err
	}); err != nil {
		t.Error(err)
	}
	return value
}

// TestMigration brings a store of an older format to a newer one, is killed on the way or
// fails, and does it again. A store that was not migrated whole is as it was, and the
// backup that was made before has all of it.
func TestMigration(t *testing.T) {
	for _, point := range []string{"before", "within", "fails", "none"} {
		t.Run(point, func(t *testing.T) {
			dir := t.TempDir()
			s := testStore(t, dir)
			if err := s.Update(t.Context(), func(tx *state.Tx) error { return tx.Put("key", []byte("value")) }); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe", dir)
			cmd.Env = append(os.Environ(), helper+"="+point)
			out, err := cmd.CombinedOutput()
			killed := point == "before" || point == "within"
			if (err != nil) != killed {
				t.Fatalf("%v\n%s", err, out)
			}
			if point == "fails" && (!strings.Contains(string(out), "on purpose") || !strings.Contains(string(out), "format 1 to 3")) {
				t.Errorf("a step that fails: %s", out)
			}
			if point == "none" && string(out) != "<nil>" {
				t.Errorf("migration: %s", out)
			}
			// The backup opens in the old format.
			backups, _ := filepath.Glob(filepath.Join(dir, "before-format-3.backup*"))
			if len(backups) != 1 {
				t.Fatalf("backups %q", backups)
			}
			if point != "none" {
				s := testStore(t, dir) // by who knows the old format only
				if got := value(t, s, "key"); got != "value" {
					t.Errorf("key is %q", got)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				cmd := exec.Command("/proc/self/exe", dir)
				cmd.Env = append(os.Environ(), helper+"=none")
				if out, err := cmd.CombinedOutput(); err != nil || string(out) != "<nil>" {
					t.Fatalf("migration after it: %v, %s", err, out)
				}
			}
			if _, err := sqlite.Open(t.Context(), sqlite.Options{Folder: dir}); !errors.Is(err, state.ErrNewer) || !strings.Contains(err.Error(), "3") {
				t.Errorf("opened by who knows the old format: %v", err)
			}
			restoreOld(t, backups[0])
		})
	}
}

// restoreOld restores a backup of the old format, as it is and to the new format.
func restoreOld(t *testing.T, backup string) {
	t.Helper()
	for _, newer := range []bool{false, true} {
		if newer {
			defer state.AddFormat(func(s *state.Session) error {
				return s.Define("CREATE TABLE sandboxd_new (name BYTES NOT NULL PRIMARY KEY)")
			})()
		}
		dir := t.TempDir()
		f, err := os.Open(backup)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		e, err := sqlite.Engine(t.Context(), sqlite.Options{Folder: dir})
		if err != nil {
			t.Fatal(err)
		}
		if sum, err := state.Restore(t.Context(), e, f, nil); err != nil || sum.Format != 1 {
			t.Fatalf("restore: %+v, %v", sum, err)
		}
		s := testStore(t, dir)
		if got := value(t, s, "key"); got != "value" || len(s.Damage()) > 0 {
			t.Errorf("restored key is %q, damage %v", got, s.Damage())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNewer(t *testing.T) {
	dir := t.TempDir()
	if err := testStore(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	e, err := sqlite.Engine(t.Context(), sqlite.Options{Folder: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(state.SetFormat(e, 99), e.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := sqlite.Open(t.Context(), sqlite.Options{Folder: dir}); !errors.Is(err, state.ErrNewer) || !strings.Contains(err.Error(), "99") {
		t.Errorf("a store of a newer format: %v", err)
	}
}

// fixture is a store that a release has made, and what is in it. TestMakeFixture makes one.
const fixtures = "testdata"

// fillFixture stores what is in a fixture. What a release has made stays as it is: a new
// format gets a new fixture.
func fillFixture(tx *state.Tx) error {
	at := state.Forever
	for i := range 3 {
		if err := tx.Put(fmt.Sprintf("key/%d\x00\xff", i), bytes.Repeat([]byte{byte(i), 0xff}, i*1500)); err != nil {
			return err
		}
		_, err1 := tx.Append("log", fmt.Append(nil, "record ", i))
		_, err2 := tx.Enqueue("queue", fmt.Append(nil, "entry ", i), at)
		if err := errors.Join(err1, err2, tx.SetTimer(fmt.Sprint("timer ", i), at, []byte("due"))); err != nil {
			return err
		}
	}
	return tx.Cut("log", 2)
}

// TestMakeFixture writes the fixture of the newest format if it is asked to:
// STATE_FIXTURE=new go test ./state -run TestMakeFixture
func TestMakeFixture(t *testing.T) {
	dir := t.TempDir()
	if os.Getenv("STATE_FIXTURE") != "" {
		dir = filepath.Join(fixtures, fmt.Sprintf("format-%d", state.Formats()))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s := testStore(t, dir)
	if err := s.Update(t.Context(), fillFixture); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(filepath.Join(dir, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Backup(t.Context(), f, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Close(), s.Close(), os.Remove(filepath.Join(dir, sqlite.Lock))); err != nil {
		t.Fatal(err)
	}
	checkFixture(t, dir)
}

// TestFixtures opens the stores and the backups of all formats that were released.
func TestFixtures(t *testing.T) {
	for format := 1; format <= state.Formats(); format++ {
		t.Run(fmt.Sprint(format), func(t *testing.T) { checkFixture(t, filepath.Join(fixtures, fmt.Sprintf("format-%d", format))) })
	}
}

func checkFixture(t *testing.T, from string) {
	t.Helper()
	dir, restored := t.TempDir(), t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	checkContent(t, dir)
	f, err := os.Open(filepath.Join(from, "backup"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	e, err := sqlite.Engine(t.Context(), sqlite.Options{Folder: restored})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := state.Restore(t.Context(), e, f, nil); err != nil {
		t.Fatal(err)
	}
	checkContent(t, restored)
}

func checkContent(t *testing.T, dir string) {
	t.Helper()
	s := testStore(t, dir)
	defer s.Close()
	if len(s.Damage()) > 0 {
		t.Fatalf("damage %v", s.Damage())
	}
	err := s.View(t.Context(), func(r *state.Reader) error {
		pairs, err1 := r.List("key/", "", 9)
		records, err2 := r.ReadLog("log", 0, 9)
		entries, err3 := r.ReadQueue("queue", 0, 9)
		timers, err4 := r.Due(state.Forever, 9)
		if err := errors.Join(err1, err2, err3, err4); err != nil {
			return err
		}
		if len(pairs) != 3 || len(records) != 2 || len(entries) != 3 || len(timers) != 3 {
			return fmt.Errorf("%d keys, %d records, %d entries, %d timers", len(pairs), len(records), len(entries), len(timers))
		}
		if p := pairs[2]; p.Key != "key/2\x00\xff" || !bytes.Equal(p.Value, bytes.Repeat([]byte{2, 0xff}, 3000)) {
			return fmt.Errorf("%q is %x", p.Key, p.Value)
		}
		if r, e, x := records[0], entries[0], timers[0]; r.Seq != 2 || string(r.Value) != "record 1" || string(e.Value) != "entry 0" || x.Name != "timer 0" || !x.At.Equal(state.Forever) {
			return fmt.Errorf("%+v, %+v, %+v", r, e, x)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
