package state

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
)

// shape is what a table consists of, for what goes through all of it.
type shape struct {
	name    string
	columns []string // in the order of checksums, the primary key first
	numbers uint     // bit i: column i is a number and not bytes
	key     int      // how many columns are the primary key
}

var shapes = [tables]shape{
	keys:    {"sandboxd_keys", []string{"key", "value"}, 0, 1},
	heads:   {"sandboxd_heads", []string{"log", "first", "next"}, 0b110, 1},
	records: {"sandboxd_records", []string{"log", "seq", "value"}, 0b010, 2},
	queue:   {"sandboxd_queue", []string{"queue", "id", "at", "leases", "token", "value"}, 0b001110, 2},
	timers:  {"sandboxd_timers", []string{"name", "at", "value"}, 0b010, 1},
}

func (s *shape) isNumber(column int) bool { return s.numbers>>column&1 != 0 }

// label says which row of a table it is.
func (s *shape) label(r row) string {
	name := string(r[0].([]byte))
	if s.key == 2 {
		name += fmt.Sprintf(" %d", r[1])
	}
	return name
}

// page is how many rows one statement reads.
const page = 500

// rows calls f for each row of a table in the order of its primary key, with the checksum
// that is stored with it.
func (s *session) rows(ctx context.Context, t table, f func(r row, sum []byte) error) error {
	sh := &shapes[t]
	list := strings.Join(sh.columns, ", ")
	key := strings.Join(sh.columns[:sh.key], ", ")
	places := "$1"
	last := []any{[]byte{}}
	if sh.key == 2 {
		places = "$1, $2"
		last = append(last, int64(math.MinInt64))
	}
	q := fmt.Sprintf("SELECT %s, sum FROM %s WHERE (%s) > (%s) ORDER BY %s LIMIT %d", list, sh.name, key, places, key, page)
	for n := page; n == page; {
		n = 0
		if err := ctx.Err(); err != nil {
			return err
		}
		err := s.each(q, last, func(scan func(...any) error) error {
			n++
			r, sum, err := sh.scan(scan)
			if err != nil {
				return err
			}
			last = r[:sh.key]
			return f(r, sum)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// scan reads a row and its checksum.
func (s *shape) scan(scan func(...any) error) (row, []byte, error) {
	numbers := make([]int64, len(s.columns))
	bytes := make([][]byte, len(s.columns)+1)
	into := make([]any, len(s.columns)+1)
	for i := range into {
		if into[i] = &bytes[i]; s.isNumber(i) {
			into[i] = &numbers[i]
		}
	}
	if err := scan(into...); err != nil {
		return nil, nil, err
	}
	r := make(row, len(s.columns))
	for i := range r {
		if r[i] = any(bytes[i]); s.isNumber(i) {
			r[i] = numbers[i]
		}
	}
	return r, bytes[len(s.columns)], nil
}

// Progress is how far a verification or a backup has come.
type Progress struct {
	Table string // in work
	Rows  uint64 // done in all tables
	Of    uint64 // as far as the store knows
}

// Verify reads all of the store and returns the damage that is known then.
func (s *Store) Verify(ctx context.Context, progress func(Progress)) ([]Damage, error) {
	sess, err := s.engine.session(ctx)
	if err != nil {
		return nil, s.engine.errorf(err, "verify the store")
	}
	defer sess.close()
	return s.verify(ctx, sess, progress)
}

func (s *Store) verify(ctx context.Context, sess *session, progress func(Progress)) ([]Damage, error) {
	if err := sess.run(s.engine.BeginRead); err != nil {
		return nil, s.engine.errorf(err, "verify the store")
	}
	defer sess.run("ROLLBACK")
	t, err := sess.tally("")
	if err != nil && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	s.noted(err)
	if err := s.verifyEngine(ctx, sess); err != nil {
		return nil, err
	}
	v := verification{store: s, progress: progress, tally: t}
	for table := range table(tables) {
		if err := v.table(ctx, sess, table); err != nil {
			return nil, err
		}
	}
	return s.Damage(), nil
}

// verifyEngine has the database look for what only it can see.
func (s *Store) verifyEngine(ctx context.Context, sess *session) error {
	if s.engine.Check == nil {
		return nil
	}
	found, err := s.engine.Check(ctx, func(q string) (list []string, err error) {
		err = sess.each(q, nil, func(scan func(...any) error) error {
			list = append(list, "")
			return scan(&list[len(list)-1])
		})
		return list, err
	})
	if err != nil && s.engine.Classify(err) == FaultDamage {
		found, err = append(found, err.Error()), nil
	}
	if err != nil {
		return s.engine.errorf(err, "check the database")
	}
	for _, what := range found {
		s.note(facts, Damage{What: s.engine.Name + ": " + what})
	}
	return nil
}

// verification goes through the tables.
type verification struct {
	store    *Store
	progress func(Progress)
	tally    *tally // nil if it is damaged
	done     uint64
}

func (v *verification) table(ctx context.Context, sess *session, t table) error {
	var found count
	damaged := 0
	err := sess.rows(ctx, t, func(r row, sum []byte) error {
		if want := sumRow(t, r); string(want[:]) == string(sum) {
			found.add(want)
		} else {
			damaged++
			v.store.note(t, Damage{t.String(), shapes[t].label(r), "it is not what was written"})
		}
		if v.done++; v.done%page == 0 {
			v.report(t)
		}
		return nil
	})
	switch {
	case err != nil && v.store.engine.Classify(err) == FaultDamage:
		v.store.note(t, Damage{Table: t.String(), What: err.Error()})
	case err != nil:
		return v.store.engine.errorf(err, "verify %s", t)
	case v.tally == nil || found == v.tally.counts[t]:
	default:
		if want := v.tally.counts[t].rows; found.rows+uint64(damaged) != want {
			v.store.note(t, Damage{Table: t.String(), What: fmt.Sprintf("%d rows of %d are there", found.rows+uint64(damaged), want)})
		} else if damaged == 0 {
			v.store.note(t, Damage{Table: t.String(), What: "older rows have come in place of newer ones"})
		}
	}
	v.report(t)
	return nil
}

func (v *verification) report(t table) {
	if v.progress == nil {
		return
	}
	p := Progress{Table: t.String(), Rows: v.done}
	if v.tally != nil {
		for _, c := range v.tally.counts {
			p.Of += c.rows
		}
	}
	v.progress(p)
}
