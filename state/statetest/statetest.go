// Package statetest is the test of a store that every engine passes.
package statetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
)

// Place is where a store can be, closed and opened again.
type Place interface {
	// Open opens the store, and makes it the first time. The caller closes it.
	Open(t testing.TB) *state.Store
	// Exec runs a statement of SQL beside the store, which may be open.
	Exec(t testing.TB, statement string)
	// Bytes is a value of bytes in such a statement.
	Bytes(value string) string
	// Engine opens the database alone.
	Engine(t testing.TB) *state.Engine
	// Other returns another place of the same kind.
	Other(t testing.TB) Place
}

// Run runs the tests, each with a new place.
func Run(t *testing.T, place func(t testing.TB) Place) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, p Place)
	}{
		{"Keys", testKeys},
		{"KeyOrder", testKeyOrder},
		{"Arguments", testArguments},
		{"BigValues", testBigValues},
		{"Logs", testLogs},
		{"Queue", testQueue},
		{"QueueOrder", testQueueOrder},
		{"Timers", testTimers},
		{"OneTransaction", testOneTransaction},
		{"Undone", testUndone},
		{"Panic", testPanic},
		{"Cancel", testCancel},
		{"AfterTheEnd", testAfterTheEnd},
		{"Snapshot", testSnapshot},
		{"Writers", testWriters},
		{"GroupCommit", testGroupCommit},
		{"BatchBytes", testBatchBytes},
		{"Reopen", testReopen},
		{"Close", testClose},
		{"Model", testModel},
		{"DamagedRow", testDamagedRow},
		{"MissingRow", testMissingRow},
		{"ForeignRow", testForeignRow},
		{"OlderRow", testOlderRow},
		{"DamagedFacts", testDamagedFacts},
		{"DamageWhileOpen", testDamageWhileOpen},
		{"Verify", testVerify},
		{"Backup", testBackup},
		{"BackupLive", testBackupLive},
		{"BackupOfDamage", testBackupOfDamage},
		{"BackupNote", testBackupNote},
		{"RestoreRefuses", testRestoreRefuses},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, place(t)) })
	}
}

var ctx = context.Background()

// opened opens the store for the length of a test.
func opened(t testing.TB, p Place) *state.Store {
	t.Helper()
	s := p.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func update(t testing.TB, s *state.Store, f func(*state.Tx) error) {
	t.Helper()
	if err := s.Update(ctx, f); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s *state.Store, f func(*state.Reader) error) {
	t.Helper()
	if err := s.View(ctx, f); err != nil {
		t.Fatal(err)
	}
}

// want fails the test unless err is of a kind.
func want(t testing.TB, what string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: %v, want %v", what, err, kind)
	}
}

func put(pairs ...string) func(*state.Tx) error {
	return func(tx *state.Tx) error {
		for i := 0; i < len(pairs); i += 2 {
			if err := tx.Put(pairs[i], []byte(pairs[i+1])); err != nil {
				return err
			}
		}
		return nil
	}
}

// get returns the value of a key, or the kind of its error.
func get(t testing.TB, s *state.Store, key string) string {
	t.Helper()
	var value []byte
	err := s.View(ctx, func(r *state.Reader) (err error) {
		value, err = r.Get(key)
		return err
	})
	switch {
	case errors.Is(err, state.ErrNotFound):
		return "none"
	case errors.Is(err, state.ErrDamaged):
		return "damaged"
	case err != nil:
		t.Fatal(err)
	}
	return string(value)
}

func expect(t testing.TB, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}

func testKeys(t *testing.T, p Place) {
	s := opened(t, p)
	expect(t, "a key that was not put", get(t, s, "a"), "none")
	update(t, s, put("a", "1", "b", "2", "c", ""))
	expect(t, "a", get(t, s, "a"), "1")
	expect(t, "an empty value", get(t, s, "c"), "")
	update(t, s, func(tx *state.Tx) error {
		if err := put("a", "3")(tx); err != nil {
			return err
		}
		got, err := tx.Get("a")
		expect(t, "what the transaction itself changed", string(got), "3")
		return errors.Join(err, tx.Delete("b"))
	})
	expect(t, "a after it changed", get(t, s, "a"), "3")
	expect(t, "b after it was deleted", get(t, s, "b"), "none")
	want(t, "delete what is not there", s.Update(ctx, func(tx *state.Tx) error { return tx.Delete("b") }), state.ErrNotFound)
	update(t, s, func(tx *state.Tx) error { return tx.Put("nil", nil) })
	expect(t, "a nil value", get(t, s, "nil"), "")
}

func testKeyOrder(t *testing.T, p Place) {
	s := opened(t, p)
	keys := []string{"fn/a", "fn/a\x00", "fn/a/b", "fn/b", "fn/\xff", "fn/\xff\xff", "fn0", "\x00", "\xff", "\xff\xff", "\xff\xffz", "fn/B", "fn/ä", "f"}
	update(t, s, func(tx *state.Tx) error {
		for _, k := range keys {
			if err := tx.Put(k, []byte("of "+k)); err != nil {
				return err
			}
		}
		return nil
	})
	slices.Sort(keys)
	for _, c := range []struct {
		prefix, after string
		limit         int
	}{
		{"", "", 100}, {"fn/", "", 100}, {"fn/", "fn/a", 2}, {"fn/", "fn/a\x00", 100}, {"fn/", "a", 100}, {"fn/", "z", 100},
		{"\xff", "", 100}, {"\xff\xff", "", 100}, {"\xff", "\xff", 1}, {"none", "", 100}, {"", "fn/b", 3}, {"fn/\xff", "", 100},
	} {
		var should []string
		for _, k := range keys {
			if strings.HasPrefix(k, c.prefix) && (c.after == "" || k > c.after) && len(should) < c.limit {
				should = append(should, k)
			}
		}
		view(t, s, func(r *state.Reader) error {
			pairs, err := r.List(c.prefix, c.after, c.limit)
			var got []string
			for _, pair := range pairs {
				got = append(got, pair.Key)
				expect(t, "value", string(pair.Value), "of "+pair.Key)
			}
			if !slices.Equal(got, should) {
				t.Errorf("List(%q, %q, %d): %q, want %q", c.prefix, c.after, c.limit, got, should)
			}
			if c.after == "" && c.limit == 100 {
				n, err := r.Count(c.prefix)
				expect(t, "count", n, len(should))
				return err
			}
			return err
		})
	}
}

func testArguments(t *testing.T, p Place) {
	s := opened(t, p)
	long, big := strings.Repeat("k", state.MaxKey+1), make([]byte, state.MaxValue+1)
	now := time.Now()
	for name, f := range map[string]func(*state.Tx) error{
		"no key":            func(tx *state.Tx) error { return tx.Put("", nil) },
		"long key":          func(tx *state.Tx) error { return tx.Put(long, nil) },
		"big value":         func(tx *state.Tx) error { return tx.Put("k", big) },
		"get of no key":     func(tx *state.Tx) error { _, err := tx.Get(""); return err },
		"list of nothing":   func(tx *state.Tx) error { _, err := tx.List("", "", 0); return err },
		"log without name":  func(tx *state.Tx) error { _, err := tx.Append("", nil); return err },
		"big record":        func(tx *state.Tx) error { _, err := tx.Append("l", big); return err },
		"big entry":         func(tx *state.Tx) error { _, err := tx.Enqueue("q", big, now); return err },
		"queue without one": func(tx *state.Tx) error { _, err := tx.Lease("", now, now, 1); return err },
		"lease of none":     func(tx *state.Tx) error { _, err := tx.Lease("q", now, now, -1); return err },
		"timer with long":   func(tx *state.Tx) error { return tx.SetTimer(long, now, nil) },
		"big timer":         func(tx *state.Tx) error { return tx.SetTimer("t", now, big) },
	} {
		want(t, name, s.Update(ctx, f), state.ErrInvalid)
	}
	// The largest ones.
	key := strings.Repeat("\xff", state.MaxKey)
	update(t, s, func(tx *state.Tx) error { return tx.Put(key, nil) })
	expect(t, "the longest key", get(t, s, key), "")
}

func testBigValues(t *testing.T, p Place) {
	s := opened(t, p)
	value := bytes.Repeat([]byte("0123456789abcdef"), state.MaxValue/16)
	update(t, s, func(tx *state.Tx) error { return tx.Put("big", value) })
	view(t, s, func(r *state.Reader) error {
		got, err := r.Get("big")
		if !bytes.Equal(got, value) {
			t.Errorf("got %d other bytes", len(got))
		}
		return err
	})
	update(t, s, put("big", "small"))
	expect(t, "the value in its place", get(t, s, "big"), "small")
}

func testLogs(t *testing.T, p Place) {
	s := opened(t, p)
	read := func(from uint64, limit int) (got []string) {
		view(t, s, func(r *state.Reader) error {
			records, err := r.ReadLog("l", from, limit)
			for _, rec := range records {
				got = append(got, fmt.Sprintf("%d:%s", rec.Seq, rec.Value))
			}
			return err
		})
		return got
	}
	bounds := func() (b [2]uint64) {
		view(t, s, func(r *state.Reader) (err error) {
			b[0], b[1], err = r.LogBounds("l")
			return err
		})
		return b
	}
	add := func(values ...string) {
		update(t, s, func(tx *state.Tx) error {
			for _, v := range values {
				if _, err := tx.Append("l", []byte(v)); err != nil {
					return err
				}
			}
			_, err := tx.Append("l2", []byte("other"))
			return err
		})
	}
	expect(t, "a log that is not there", fmt.Sprint(read(1, 9), bounds()), "[] [1 1]")
	add("a", "b", "c")
	add("d")
	expect(t, "all", fmt.Sprint(read(0, 9), bounds()), "[1:a 2:b 3:c 4:d] [1 5]")
	expect(t, "some", read(2, 2), "[2:b 3:c]")
	expect(t, "behind the end", read(5, 9), "[]")
	update(t, s, func(tx *state.Tx) error { return tx.Cut("l", 3) })
	expect(t, "after it was cut", fmt.Sprint(read(1, 9), bounds()), "[3:c 4:d] [3 5]")
	update(t, s, func(tx *state.Tx) error { return errors.Join(tx.Cut("l", 2), tx.Cut("l", 99)) })
	expect(t, "after all was cut", fmt.Sprint(read(1, 9), bounds()), "[] [5 5]")
	add("e")
	expect(t, "the numbers go on", read(1, 9), "[5:e]")
	update(t, s, func(tx *state.Tx) error { return tx.RemoveLog("l") })
	want(t, "remove it again", s.Update(ctx, func(tx *state.Tx) error { return tx.RemoveLog("l") }), state.ErrNotFound)
	add("f")
	expect(t, "the numbers begin anew", fmt.Sprint(read(1, 9), bounds()), "[1:f] [1 2]")
	view(t, s, func(r *state.Reader) error {
		first, next, err := r.LogBounds("l2")
		expect(t, "the other log", fmt.Sprint(first, next), "1 5")
		return err
	})
	update(t, s, func(tx *state.Tx) error {
		for i := range 200 {
			if _, err := tx.Append("long", fmt.Append(nil, i)); err != nil {
				return err
			}
		}
		return tx.Cut("long", 151)
	})
	view(t, s, func(r *state.Reader) error {
		records, err := r.ReadLog("long", 0, 1000)
		expect(t, "records of a log that was cut", len(records), 50)
		return err
	})
}
