package statetest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/state"
)

func testUndone(t *testing.T, p Place) {
	s := opened(t, p)
	update(t, s, put("a", "1"))
	failure := errors.New("no")
	for _, inner := range []error{failure, fmt.Errorf("of one kind: %w", failure)} {
		err := s.Update(ctx, func(tx *state.Tx) error {
			tx.Append("l", nil)
			tx.Enqueue("q", nil, epoch)
			return errors.Join(put("a", "2", "b", "3")(tx), tx.Delete("a"), inner)
		})
		want(t, "the function's error", err, failure)
	}
	expect(t, "a", get(t, s, "a"), "1")
	expect(t, "b", get(t, s, "b"), "none")
	update(t, s, put("c", "4")) // what the store counts is right
	mustVerify(t, s)
}

func mustVerify(t testing.TB, s *state.Store) {
	t.Helper()
	damage, err := s.Verify(ctx, nil)
	if err != nil || len(damage) > 0 {
		t.Errorf("the store has damage: %v, %v", damage, err)
	}
}

// testPanic undoes what functions did that did not return. They panic in their own
// goroutines.
func testPanic(t *testing.T, p Place) {
	s := opened(t, p)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			key := strconv.Itoa(i)
			defer func() {
				if got := recover(); i%3 == 1 && got != "on purpose "+key {
					t.Errorf("recovered %v", got)
				}
			}()
			err := s.Update(ctx, func(tx *state.Tx) error {
				if err := tx.Put(key, nil); err != nil {
					t.Error(err)
				}
				switch i % 3 {
				case 1:
					panic("on purpose " + key)
				case 2:
					runtime.Goexit() // as t.FailNow does
				}
				return nil
			})
			if err != nil || i%3 != 0 {
				t.Errorf("update %d returned %v", i, err)
			}
		})
	}
	wg.Wait()
	view(t, s, func(r *state.Reader) error {
		pairs, err := r.List("", "", 100)
		for _, pair := range pairs {
			if n, _ := strconv.Atoi(pair.Key); n%3 != 0 {
				t.Errorf("%s is there, and its function did not return", pair.Key)
			}
		}
		expect(t, "keys of functions that returned", len(pairs), 20)
		return err
	})
	func() {
		defer func() { recover() }()
		s.View(ctx, func(*state.Reader) error { panic("in a view") })
	}()
	for range 8 { // no reader is lost
		expect(t, "a view after it", get(t, s, "0"), "")
	}
}

func testCancel(t *testing.T, p Place) {
	s := opened(t, p)
	over, cancel := context.WithCancel(ctx)
	cancel()
	ran := false
	want(t, "an update whose context has ended", s.Update(over, func(*state.Tx) error { ran = true; return nil }), context.Canceled)
	want(t, "a view whose context has ended", s.View(over, func(r *state.Reader) error {
		_, err := r.Get("a")
		return err
	}), context.Canceled)
	if ran {
		t.Error("the update ran")
	}
	// While one runs, another one waits and is given up.
	running, waiting := make(chan struct{}), make(chan error, 1)
	brief, cancel := context.WithCancel(ctx)
	go func() {
		<-running
		go func() { waiting <- s.Update(brief, func(tx *state.Tx) error { return tx.Put("late", nil) }) }()
		cancel()
	}()
	update(t, s, func(tx *state.Tx) error {
		close(running)
		<-brief.Done()
		return tx.Put("early", nil)
	})
	want(t, "the one that waited", <-waiting, context.Canceled)
	// Once it runs, what counts is what becomes of it.
	late, cancel := context.WithCancel(ctx)
	if err := s.Update(late, func(tx *state.Tx) error { cancel(); return tx.Put("ran", nil) }); err != nil {
		t.Errorf("an update that ran: %v", err)
	}
	expect(t, "its key", get(t, s, "ran"), "")
	expect(t, "early", get(t, s, "early"), "")
	expect(t, "late", get(t, s, "late"), "none")
}

func testAfterTheEnd(t *testing.T, p Place) {
	s := opened(t, p)
	var tx *state.Tx
	var r *state.Reader
	update(t, s, func(x *state.Tx) error { tx = x; return nil })
	view(t, s, func(x *state.Reader) error { r = x; return nil })
	want(t, "a transaction after its end", tx.Put("a", nil), state.ErrInvalid)
	_, err := r.Get("a")
	want(t, "a view after its end", err, state.ErrInvalid)
}

// testSnapshot reads the same in one view however often the store changes meanwhile, and
// what was stored before it began.
func testSnapshot(t *testing.T, p Place) {
	s := opened(t, p)
	for i := range 20 {
		n := strconv.Itoa(i)
		update(t, s, put("a", n, "b", n))
		view(t, s, func(r *state.Reader) error {
			a, err := r.Get("a")
			expect(t, "a in the view", string(a), n)
			update(t, s, put("a", "later", "b", "later"))
			b, err2 := r.Get("b")
			expect(t, "b in the view", string(b), n)
			expect(t, "b in another view", get(t, s, "b"), "later")
			return errors.Join(err, err2)
		})
	}
}

// testWriters adds in many goroutines at once. Each sees what those before have done, and
// afterwards what it did itself.
func testWriters(t *testing.T, p Place) {
	s := opened(t, p)
	const writers, each = 64, 10
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			for j := range each {
				var n int
				err := s.Update(ctx, func(tx *state.Tx) error {
					b, err := tx.Get("sum")
					if err != nil && !errors.Is(err, state.ErrNotFound) {
						return err
					}
					n, _ = strconv.Atoi(string(b))
					n++
					if j%5 == 4 {
						tx.Put("sum", []byte("no"))
						return errFail
					}
					return errors.Join(put("sum", strconv.Itoa(n))(tx), put(fmt.Sprintf("w/%02d/%d", i, j), strconv.Itoa(n))(tx))
				})
				if j%5 == 4 {
					want(t, "a failing writer", err, errFail)
				} else if err != nil {
					t.Error(err)
				} else if got, _ := strconv.Atoi(get(t, s, "sum")); got < n {
					t.Errorf("read %d after %d was stored", got, n)
				}
			}
		})
	}
	wg.Wait()
	expect(t, "the sum", get(t, s, "sum"), writers*each*4/5)
	view(t, s, func(r *state.Reader) error {
		pairs, err := r.List("w/", "", 10000)
		seen := map[string]bool{}
		for _, pair := range pairs {
			if seen[string(pair.Value)] {
				t.Errorf("two updates had the sum %s", pair.Value)
			}
			seen[string(pair.Value)] = true
		}
		expect(t, "stored updates", len(pairs), writers*each*4/5)
		return err
	})
	mustVerify(t, s)
}

var errFail = errors.New("on purpose")

// testGroupCommit counts commits: while one runs, others wait, and the next one takes all
// of them. What arrives is arranged so that the count is known.
func testGroupCommit(t *testing.T, p Place) {
	s := opened(t, p)
	before := s.Stats()
	const waiting = 100
	var wg sync.WaitGroup
	started := make(chan struct{}, waiting)
	update(t, s, func(tx *state.Tx) error {
		for i := range waiting {
			wg.Go(func() {
				started <- struct{}{}
				if err := s.Update(ctx, put("k"+strconv.Itoa(i), "")); err != nil {
					t.Error(err)
				}
			})
		}
		for range waiting {
			<-started
		}
		for runtime.NumGoroutine() < waiting { // they are about to wait
			runtime.Gosched()
		}
		return tx.Put("first", nil)
	})
	wg.Wait()
	after := s.Stats()
	updates, commits := after.Updates-before.Updates, after.Commits-before.Commits
	expect(t, "updates", updates, waiting+1)
	if updates < 4*commits {
		t.Errorf("%d commits stored %d updates", commits, updates)
	}
	// What changes nothing is not committed.
	update(t, s, func(*state.Tx) error { return nil })
	update(t, s, put("first", ""))
	expect(t, "commits of nothing", s.Stats().Commits-after.Commits, 0)
}

// testBatchBytes waits with more in the queue than one commit takes.
func testBatchBytes(t *testing.T, p Place) {
	s := opened(t, p)
	value := make([]byte, 3<<20)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if err := s.Update(ctx, func(tx *state.Tx) error { return tx.Put(strconv.Itoa(i), value) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	expect(t, "updates", s.Stats().Updates, 8)
	if n := s.Stats().Commits; n < 4 {
		t.Errorf("24 MiB were stored by %d commits", n)
	}
}

func testReopen(t *testing.T, p Place) {
	s := p.Open(t)
	epochOfStore := s.Epoch()
	update(t, s, func(tx *state.Tx) error {
		_, err1 := tx.Append("l", []byte("r"))
		_, err2 := tx.Enqueue("q", []byte("e"), at(0))
		return errors.Join(err1, err2, tx.Put("k", []byte("v")), tx.SetTimer("t", at(1), []byte("x")))
	})
	l := lease(t, s, "q", at(0), at(10), 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = opened(t, p)
	if len(epochOfStore) < 16 || s.Epoch() != epochOfStore {
		t.Errorf("epoch %q after %q", s.Epoch(), epochOfStore)
	}
	expect(t, "damage", s.Damage(), "[]")
	expect(t, "k", get(t, s, "k"), "v")
	view(t, s, func(r *state.Reader) error {
		records, err1 := r.ReadLog("l", 1, 9)
		due, err2 := r.Due(at(1), 9)
		expect(t, "log and timers", fmt.Sprint(len(records), len(due)), "1 1")
		return errors.Join(err1, err2)
	})
	update(t, s, func(tx *state.Tx) error { return tx.Finish("q", l[0].ID, l[0].Token) })
}

func testClose(t *testing.T, p Place) {
	s := p.Open(t)
	var wg sync.WaitGroup
	acknowledged := make([]bool, 50)
	for i := range acknowledged {
		wg.Go(func() {
			err := s.Update(ctx, put(strconv.Itoa(i), ""))
			if acknowledged[i] = err == nil; err != nil && !errors.Is(err, state.ErrClosed) {
				t.Error(err)
			}
		})
	}
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	wg.Wait()
	want(t, "an update afterwards", s.Update(ctx, put("a", "")), state.ErrClosed)
	want(t, "a view afterwards", s.View(ctx, func(*state.Reader) error { return nil }), state.ErrClosed)
	s = opened(t, p)
	for i, yes := range acknowledged {
		if there := get(t, s, strconv.Itoa(i)) == ""; there != yes {
			t.Errorf("%d: acknowledged %v, stored %v", i, yes, there)
		}
	}
}
