package statetest

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/state"
)

// model is what a store should hold, kept in memory.
type model struct {
	keys   map[string]string
	logs   map[string]*modelLog
	queues map[string][]*modelEntry
	timers map[string]modelTimer
}

type modelLog struct {
	first uint64
	list  []string
}

type modelEntry struct {
	id     uint64
	value  string
	at     time.Time
	leases int
	token  state.Token
}

type modelTimer struct {
	at    time.Time
	value string
}

// clone is a copy, for what may be undone.
func (m *model) clone() *model {
	c := &model{maps.Clone(m.keys), map[string]*modelLog{}, map[string][]*modelEntry{}, maps.Clone(m.timers)}
	for k, l := range m.logs {
		c.logs[k] = &modelLog{l.first, slices.Clone(l.list)}
	}
	for k, q := range m.queues {
		for _, e := range q {
			e := *e
			c.queues[k] = append(c.queues[k], &e)
		}
	}
	return c
}

// testModel does the same to a store and to a model, draws what by a seed, opens the store
// anew now and then, and compares.
func testModel(t *testing.T, p Place) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 13))
	m := &model{map[string]string{}, map[string]*modelLog{}, map[string][]*modelEntry{}, map[string]modelTimer{}}
	s := p.Open(t)
	defer func() { s.Close() }()
	for range 150 {
		next := m.clone()
		undo := r.IntN(5) == 0
		err := s.Update(ctx, func(tx *state.Tx) error {
			next = m.clone() // the function may run again
			for range 1 + r.IntN(4) {
				if err := step(r, next, tx); err != nil {
					return err
				}
			}
			if undo {
				return errFail
			}
			return nil
		})
		if undo {
			want(t, "an update that fails", err, errFail)
		} else if err != nil {
			t.Fatalf("%v (seed %d)", err, seed)
		} else {
			m = next
		}
		if r.IntN(40) == 0 {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = p.Open(t)
		}
		view(t, s, func(v *state.Reader) error { return m.compare(v) })
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	mustVerify(t, s)
}

// step makes one change to both.
func step(r *rand.Rand, m *model, tx *state.Tx) error {
	name := string([]byte{byte(r.IntN(3) * 127), byte(r.IntN(2)), byte('a' + r.IntN(4))})
	value := strings.Repeat(name, r.IntN(5))
	if r.IntN(30) == 0 {
		value = strings.Repeat(value+"x", 3000) // more than a page
	}
	now := at(r.IntN(100))
	switch r.IntN(9) {
	case 0, 1:
		m.keys[name] = value
		return tx.Put(name, []byte(value))
	case 2:
		_, there := m.keys[name]
		delete(m.keys, name)
		return expected(tx.Delete(name), !there, state.ErrNotFound)
	case 3:
		l := m.logs[name]
		if l == nil {
			l = &modelLog{first: 1}
			m.logs[name] = l
		}
		l.list = append(l.list, value)
		seq, err := tx.Append(name, []byte(value))
		if err == nil && seq != l.first+uint64(len(l.list))-1 {
			err = fmt.Errorf("record %d of %q", seq, name)
		}
		return err
	case 4:
		return m.cut(r, tx, name)
	case 5:
		id, err := tx.Enqueue(name, []byte(value), now)
		m.queues[name] = append(m.queues[name], &modelEntry{id: id, value: value, at: now})
		return err
	case 6:
		return m.lease(r, tx, name, now)
	case 7:
		return m.settle(r, tx, name, now)
	default:
		if _, there := m.timers[name]; r.IntN(3) == 0 {
			delete(m.timers, name)
			return expected(tx.StopTimer(name), !there, state.ErrNotFound)
		}
		m.timers[name] = modelTimer{now, value}
		return tx.SetTimer(name, now, []byte(value))
	}
}

// expected turns an error that should be into none, and none into one.
func expected(err error, should bool, kind error) error {
	if should != errors.Is(err, kind) {
		return fmt.Errorf("got %w, expected %v: %v", err, kind, should)
	}
	if should {
		return nil
	}
	return err
}

func (m *model) cut(r *rand.Rand, tx *state.Tx, name string) error {
	l := m.logs[name]
	if r.IntN(4) == 0 {
		delete(m.logs, name)
		return expected(tx.RemoveLog(name), l == nil, state.ErrNotFound)
	}
	before := uint64(r.IntN(6))
	if l != nil && before > l.first {
		n := min(int(before-l.first), len(l.list))
		l.list = l.list[n:]
		l.first += uint64(n)
	}
	return tx.Cut(name, before)
}

func (m *model) lease(r *rand.Rand, tx *state.Tx, name string, now time.Time) error {
	var due []*modelEntry
	for _, e := range m.queues[name] {
		if !e.at.After(now) {
			due = append(due, e)
		}
	}
	slices.SortStableFunc(due, func(a, b *modelEntry) int { return a.at.Compare(b.at) })
	limit := 1 + r.IntN(3)
	due = due[:min(limit, len(due))]
	until := now.Add(time.Duration(r.IntN(50)) * time.Second)
	leased, err := tx.Lease(name, now, until, limit)
	if err != nil {
		return err
	}
	if len(leased) != len(due) {
		return fmt.Errorf("%d entries of %q leased, not %d", len(leased), name, len(due))
	}
	for i, e := range due {
		e.at, e.token = until, leased[i].Token
		e.leases++
		if leased[i].ID != e.id || string(leased[i].Value) != e.value || leased[i].Leases != e.leases {
			return fmt.Errorf("entry %d of %q leased, not %d", leased[i].ID, name, e.id)
		}
	}
	return nil
}

// settle renews, releases or finishes one entry, by a token that may be lost.
func (m *model) settle(r *rand.Rand, tx *state.Tx, name string, now time.Time) error {
	q := m.queues[name]
	if len(q) == 0 {
		return nil
	}
	i := r.IntN(len(q))
	e, token := q[i], q[i].token
	if r.IntN(4) == 0 {
		token = "lost"
	}
	good := token != "" && token == e.token
	switch r.IntN(3) {
	case 0:
		if good {
			e.at = now
		}
		return expected(tx.Renew(name, e.id, token, now), !good, state.ErrLeaseLost)
	case 1:
		if good {
			e.at, e.token = now, ""
		}
		return expected(tx.Release(name, e.id, token, now), !good, state.ErrLeaseLost)
	default:
		if good {
			m.queues[name] = slices.Delete(q, i, i+1)
		}
		return expected(tx.Finish(name, e.id, token), !good, state.ErrLeaseLost)
	}
}

// compare finds the first difference between the model and the store.
func (m *model) compare(r *state.Reader) error {
	pairs, err := r.List("", "", 1000)
	if err != nil || len(pairs) != len(m.keys) {
		return errors.Join(fmt.Errorf("%d keys, not %d", len(pairs), len(m.keys)), err)
	}
	for _, p := range pairs {
		if v, ok := m.keys[p.Key]; !ok || v != string(p.Value) {
			return fmt.Errorf("key %q has %q, not %q", p.Key, p.Value, v)
		}
	}
	for name, l := range m.logs {
		records, err := r.ReadLog(name, 0, 1000)
		if err != nil || len(records) != len(l.list) {
			return errors.Join(fmt.Errorf("%d records in %q, not %d", len(records), name, len(l.list)), err)
		}
		for i, rec := range records {
			if rec.Seq != l.first+uint64(i) || string(rec.Value) != l.list[i] {
				return fmt.Errorf("record %d in %q is %q, not %q", rec.Seq, name, rec.Value, l.list[i])
			}
		}
	}
	for name, q := range m.queues {
		entries, err := r.ReadQueue(name, 0, 1000)
		if err != nil || len(entries) != len(q) {
			return errors.Join(fmt.Errorf("%d entries in %q, not %d", len(entries), name, len(q)), err)
		}
		for i, e := range entries {
			if w := q[i]; e.ID != w.id || !e.At.Equal(w.at) || e.Leases != w.leases || e.Leased != (w.token != "") || !bytes.Equal(e.Value, []byte(w.value)) {
				return fmt.Errorf("entry %+v in %q, not %+v", e, name, w)
			}
		}
	}
	timers, err := r.Due(state.Forever, 1000)
	if err != nil || len(timers) != len(m.timers) {
		return errors.Join(fmt.Errorf("%d timers, not %d", len(timers), len(m.timers)), err)
	}
	for _, x := range timers {
		if w := m.timers[x.Name]; !x.At.Equal(w.at) || string(x.Value) != w.value {
			return fmt.Errorf("timer %+v, not %+v", x, w)
		}
	}
	return nil
}
