package state

import (
	"errors"
	"time"
)

// Timer is a time with a name, at which something is to be done. The store only keeps it.
type Timer struct {
	Name  string
	At    time.Time
	Value []byte
}

func timerRow(name []byte, at int64, value []byte) row { return row{name, at, value} }

// Timer returns the timer of a name; ErrNotFound if there is none.
func (r *Reader) Timer(name string) (Timer, error) {
	if err := errors.Join(r.ready(), named("a timer's name", name)); err != nil {
		return Timer{}, err
	}
	t, _, err := r.timer(name)
	return t, err
}

func (r *Reader) timer(name string) (Timer, checksum, error) {
	var at int64
	var value, b []byte
	found, err := r.sess.one("SELECT at, value, sum FROM sandboxd_timers WHERE name = $1", []any{[]byte(name)}, &at, &value, &b)
	if err == nil && found {
		err = checked(timers, name, timerRow([]byte(name), at, value), b)
	}
	switch {
	case err != nil:
		return Timer{}, checksum{}, r.failed(err, "read the timer %s", quote(name))
	case !found:
		return Timer{}, checksum{}, r.missing(timers, "the timer %s", name)
	}
	return Timer{name, unstamp(at), value}, checksum(b), nil
}

// Due returns the first limit timers whose time is until or earlier, in the order of their
// times, then of their names. [Forever] gives those that come next.
func (r *Reader) Due(until time.Time, limit int) ([]Timer, error) {
	if err := errors.Join(r.ready(), limited(limit)); err != nil {
		return nil, err
	}
	var list []Timer
	err := r.sess.each("SELECT name, at, value, sum FROM sandboxd_timers WHERE at <= $1 ORDER BY at, name LIMIT $2", []any{stamp(until), int64(limit)},
		func(scan func(...any) error) error {
			var name, value, sum []byte
			var at int64
			if err := scan(&name, &at, &value, &sum); err != nil {
				return err
			}
			list = append(list, Timer{string(name), unstamp(at), value})
			return checked(timers, string(name), timerRow(name, at, value), sum)
		})
	if err != nil {
		return nil, r.failed(err, "read the timers")
	}
	if err := r.store.doubt(timers); err != nil {
		return nil, err
	}
	return list, nil
}

// SetTimer sets the timer of a name, in place of the one that it had.
func (tx *Tx) SetTimer(name string, at time.Time, value []byte) error {
	value, err := sized(value)
	if err := errors.Join(tx.ready(), named("a timer's name", name), err); err != nil {
		return err
	}
	var before *checksum
	if _, sum, err := tx.timer(name); err == nil {
		before = &sum
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	after := sumRow(timers, timerRow([]byte(name), stamp(at), value))
	return tx.changed(timers, before, &after, "INSERT INTO sandboxd_timers (name, at, value, sum) VALUES ($1, $2, $3, $4) "+
		"ON CONFLICT (name) DO UPDATE SET at = excluded.at, value = excluded.value, sum = excluded.sum", []byte(name), stamp(at), value, after[:])
}

// StopTimer removes the timer of a name; ErrNotFound if there is none.
func (tx *Tx) StopTimer(name string) error {
	if err := errors.Join(tx.ready(), named("a timer's name", name)); err != nil {
		return err
	}
	_, sum, err := tx.timer(name)
	if err != nil {
		return err
	}
	return tx.changed(timers, &sum, nil, "DELETE FROM sandboxd_timers WHERE name = $1", []byte(name))
}
