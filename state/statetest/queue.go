package statetest

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
)

// clock is a time that tests move.
var epoch = time.Date(2026, 12, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return epoch.Add(time.Duration(seconds) * time.Second) }

func enqueue(t testing.TB, s *state.Store, queue, value string, when time.Time) (id uint64) {
	t.Helper()
	update(t, s, func(tx *state.Tx) (err error) {
		id, err = tx.Enqueue(queue, []byte(value), when)
		return err
	})
	return id
}

func lease(t testing.TB, s *state.Store, queue string, now, until time.Time, limit int) (leased []state.Leased) {
	t.Helper()
	update(t, s, func(tx *state.Tx) (err error) {
		leased, err = tx.Lease(queue, now, until, limit)
		return err
	})
	return leased
}

func values(leased []state.Leased) (list []string) {
	for _, l := range leased {
		list = append(list, fmt.Sprintf("%s/%d", l.Value, l.Leases))
	}
	return list
}

func testQueue(t *testing.T, p Place) {
	s := opened(t, p)
	id := enqueue(t, s, "q", "a", at(10))
	expect(t, "before its time", values(lease(t, s, "q", at(9), at(60), 5)), "[]")
	expect(t, "of another queue", values(lease(t, s, "p", at(10), at(60), 5)), "[]")
	next := func() string {
		var when time.Time
		var ok bool
		view(t, s, func(r *state.Reader) (err error) {
			when, ok, err = r.NextEntry("q")
			return err
		})
		if !ok {
			return "none"
		}
		return fmt.Sprint(when.Sub(epoch).Seconds())
	}
	expect(t, "the next one", next(), "10")
	first := lease(t, s, "q", at(10), at(20), 5)
	expect(t, "the first lease", values(first), "[a/1]")
	expect(t, "its number", first[0].ID, id)
	expect(t, "while it is leased", values(lease(t, s, "q", at(19), at(60), 5)), "[]")
	expect(t, "the end of the lease", next(), "20")
	token := first[0].Token
	update(t, s, func(tx *state.Tx) error { return tx.Renew("q", id, token, at(30)) })
	expect(t, "the renewed lease", values(lease(t, s, "q", at(29), at(60), 5)), "[]")
	// Its time is over, and nobody else has it: it still counts.
	update(t, s, func(tx *state.Tx) error { return tx.Renew("q", id, token, at(40)) })
	second := lease(t, s, "q", at(40), at(50), 5)
	expect(t, "the second lease", values(second), "[a/2]")
	for name, f := range map[string]func(*state.Tx) error{
		"renew":         func(tx *state.Tx) error { return tx.Renew("q", id, token, at(99)) },
		"release":       func(tx *state.Tx) error { return tx.Release("q", id, token, at(99)) },
		"finish":        func(tx *state.Tx) error { return tx.Finish("q", id, token) },
		"no token":      func(tx *state.Tx) error { return tx.Finish("q", id, "") },
		"another queue": func(tx *state.Tx) error { return tx.Finish("p", id, second[0].Token) },
		"another entry": func(tx *state.Tx) error { return tx.Finish("q", id+1, second[0].Token) },
	} {
		want(t, name+" by a lease that is lost", s.Update(ctx, f), state.ErrLeaseLost)
	}
	update(t, s, func(tx *state.Tx) error { return tx.Release("q", id, second[0].Token, at(70)) })
	want(t, "finish after release", s.Update(ctx, func(tx *state.Tx) error { return tx.Finish("q", id, second[0].Token) }), state.ErrLeaseLost)
	want(t, "finish without a token", s.Update(ctx, func(tx *state.Tx) error { return tx.Finish("q", id, "") }), state.ErrLeaseLost)
	expect(t, "before the delay is over", values(lease(t, s, "q", at(69), at(99), 5)), "[]")
	third := lease(t, s, "q", at(70), at(99), 5)
	expect(t, "the third lease", values(third), "[a/3]")
	view(t, s, func(r *state.Reader) error {
		list, err := r.ReadQueue("q", 0, 9)
		expect(t, "the queue", fmt.Sprint(len(list), list[0].Leased, list[0].Leases, string(list[0].Value)), "1 true 3a")
		return err
	})
	update(t, s, func(tx *state.Tx) error { return tx.Finish("q", id, third[0].Token) })
	expect(t, "after it is finished", fmt.Sprint(next(), values(lease(t, s, "q", at(999), at(9999), 5))), "none[]")
	if again := enqueue(t, s, "q", "b", at(0)); again <= id {
		t.Errorf("number %d comes after %d", again, id)
	}
}

func testQueueOrder(t *testing.T, p Place) {
	s := opened(t, p)
	for i, seconds := range []int{5, 3, 9, 3, 1} {
		enqueue(t, s, "q", fmt.Sprint(i), at(seconds))
	}
	expect(t, "the first two", values(lease(t, s, "q", at(5), at(100), 2)), "[4/1 1/1]")
	expect(t, "the rest of those due", values(lease(t, s, "q", at(5), at(100), 9)), "[3/1 0/1]")
	view(t, s, func(r *state.Reader) error {
		list, err := r.ReadQueue("q", 0, 3)
		var got []string
		for _, e := range list {
			got = append(got, fmt.Sprintf("%s/%v", e.Value, e.Leased))
		}
		expect(t, "by number", got, "[0/true 1/true 2/false]")
		rest, err2 := r.ReadQueue("q", list[2].ID, 9)
		expect(t, "behind them", len(rest), 2)
		return errors.Join(err, err2)
	})
	// Times that the store cannot keep exactly become the first and the last one.
	enqueue(t, s, "ages", "never", time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC))
	enqueue(t, s, "ages", "always", time.Time{})
	expect(t, "a time long ago", values(lease(t, s, "ages", at(0), at(1), 9)), "[always/1]")
}

func testTimers(t *testing.T, p Place) {
	s := opened(t, p)
	set := func(name string, seconds int, value string) {
		update(t, s, func(tx *state.Tx) error { return tx.SetTimer(name, at(seconds), []byte(value)) })
	}
	due := func(until time.Time, limit int) (got []string) {
		view(t, s, func(r *state.Reader) error {
			list, err := r.Due(until, limit)
			for _, x := range list {
				got = append(got, fmt.Sprintf("%s=%s@%v", x.Name, x.Value, x.At.Sub(epoch).Seconds()))
			}
			return err
		})
		return got
	}
	set("b", 10, "x")
	set("a", 10, "y")
	set("c", 5, "z")
	set("d", 99, "")
	expect(t, "none due", due(at(4), 9), "[]")
	expect(t, "those due", due(at(10), 9), "[c=z@5 a=y@10 b=x@10]")
	expect(t, "the next one", due(state.Forever, 1), "[c=z@5]")
	set("c", 50, "w")
	expect(t, "after one moved", due(state.Forever, 9), "[a=y@10 b=x@10 c=w@50 d=@99]")
	update(t, s, func(tx *state.Tx) error { return tx.StopTimer("a") })
	want(t, "stop it again", s.Update(ctx, func(tx *state.Tx) error { return tx.StopTimer("a") }), state.ErrNotFound)
	view(t, s, func(r *state.Reader) error {
		_, err := r.Timer("a")
		want(t, "a stopped timer", err, state.ErrNotFound)
		c, err := r.Timer("c")
		expect(t, "a timer", fmt.Sprint(string(c.Value), c.At.Equal(at(50))), "wtrue")
		return err
	})
	set("exact", 0, "")
	update(t, s, func(tx *state.Tx) error { return tx.SetTimer("exact", at(1).Add(1), nil) })
	view(t, s, func(r *state.Reader) error {
		x, err := r.Timer("exact")
		expect(t, "nanoseconds", x.At.Sub(at(1)), time.Nanosecond)
		return err
	})
}

// testOneTransaction changes an event, its timer and its outcome together.
func testOneTransaction(t *testing.T, p Place) {
	s := opened(t, p)
	id := enqueue(t, s, "events", "e", at(0))
	update(t, s, func(tx *state.Tx) error { return tx.SetTimer("timeout/e", at(60), nil) })
	l := lease(t, s, "events", at(0), at(10), 1)
	outcome := func(tx *state.Tx) error {
		_, err := tx.Append("history", []byte("succeeded"))
		return errors.Join(err, tx.Finish("events", id, l[0].Token), tx.StopTimer("timeout/e"), tx.Put("outcome/e", []byte("ok")))
	}
	failure := errors.New("second thoughts")
	want(t, "undone", s.Update(ctx, func(tx *state.Tx) error { return errors.Join(outcome(tx), failure) }), failure)
	check := func(what, should string) {
		view(t, s, func(r *state.Reader) error {
			entries, err1 := r.ReadQueue("events", 0, 9)
			timers, err2 := r.Due(state.Forever, 9)
			history, err3 := r.ReadLog("history", 1, 9)
			n, err4 := r.Count("outcome/")
			expect(t, what, fmt.Sprint(len(entries), len(timers), len(history), n), should)
			return errors.Join(err1, err2, err3, err4)
		})
	}
	check("before", "1 1 0 0")
	update(t, s, outcome)
	check("after", "0 0 1 1")
}
