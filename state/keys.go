package state

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Reader reads the store as it was when the view began. A [Tx] also sees what it changed.
// Answers belong to the caller. Of everything that has an order, it is the order of bytes.
type Reader struct {
	store  *Store
	sess   *session
	ctx    context.Context
	ended  bool
	lost   bool  // the session is of no further use
	broken error // the first failure of the database
}

func (r *Reader) end() { r.ended = true }

// ready says whether the reader may ask the database.
func (r *Reader) ready() error {
	switch {
	case r.ended:
		return fmt.Errorf("%w: a transaction was used after its end", ErrInvalid)
	case r.broken != nil:
		return r.broken
	}
	return r.ctx.Err()
}

// failed gives an error of the database its kind. After one that the database has made,
// the transaction is of no use.
func (r *Reader) failed(err error, format string, args ...any) error {
	var damage *DamageError
	if errors.As(err, &damage) {
		return r.store.noted(err)
	}
	err = r.store.engine.errorf(err, format, args...)
	r.broken = err
	r.lost = true
	return r.store.noted(err)
}

// named checks a key or a name.
func named(what, name string) error {
	if len(name) == 0 || len(name) > MaxKey {
		return fmt.Errorf("%w: %s has %d bytes; it may have 1 to %d", ErrInvalid, what, len(name), MaxKey)
	}
	return nil
}

// sized checks a value, and makes it one that the database does not take for none.
func sized(value []byte) ([]byte, error) {
	if len(value) > MaxValue {
		return nil, fmt.Errorf("%w: a value has %d bytes; it may have up to %d", ErrInvalid, len(value), MaxValue)
	}
	if value == nil {
		value = []byte{}
	}
	return value, nil
}

func limited(limit int) error {
	if limit < 1 {
		return fmt.Errorf("%w: the limit %d is below 1", ErrInvalid, limit)
	}
	return nil
}

// stamp is a time as the store keeps it. Times beyond what that can say become the first
// or the last one.
func stamp(t time.Time) int64 {
	if t.Before(time.Unix(0, math.MinInt64)) {
		return math.MinInt64
	}
	if t.After(Forever) {
		return math.MaxInt64
	}
	return t.UnixNano()
}

func unstamp(n int64) time.Time { return time.Unix(0, n).UTC() }

// checked compares a row of t with its checksum.
func checked(t table, key string, r row, sum []byte) error {
	if want := sumRow(t, r); string(want[:]) != string(sum) {
		return &DamageError{t.String(), key}
	}
	return nil
}

// Get returns the value of a key; ErrNotFound if there is none.
func (r *Reader) Get(key string) ([]byte, error) {
	if err := errors.Join(r.ready(), named("a key", key)); err != nil {
		return nil, err
	}
	value, _, err := r.get(key)
	return value, err
}

func (r *Reader) get(key string) (value []byte, sum checksum, err error) {
	var b []byte
	found, err := r.sess.one("SELECT value, sum FROM sandboxd_keys WHERE key = $1", []any{[]byte(key)}, &value, &b)
	if err == nil && found {
		err = checked(keys, key, row{[]byte(key), value}, b)
	}
	switch {
	case err != nil:
		return nil, sum, r.failed(err, "read the key %s", quote(key))
	case !found:
		return nil, sum, r.missing(keys, "the key %s", key)
	}
	return value, checksum(b), nil
}

// missing is the error of what is not there; another one if it might be there but for damage.
func (r *Reader) missing(t table, format, name string) error {
	if err := r.store.doubt(t); err != nil {
		return err
	}
	return fmt.Errorf("%w: "+format, ErrNotFound, quote(name))
}

// Pair is a key with its value.
type Pair struct {
	Key   string
	Value []byte
}

// bounds are the first key of a list and the first one behind it.
func bounds(prefix, after string) (from, to []byte) {
	from = []byte(prefix)
	if after >= prefix && after != "" {
		from = append([]byte(after), 0)
	}
	for i := len(prefix) - 1; i >= 0; i-- {
		if prefix[i] != 0xff {
			to = []byte(prefix[:i+1])
			to[i]++
			return from, to
		}
	}
	to = make([]byte, MaxKey+1) // behind every key
	for i := range to {
		to[i] = 0xff
	}
	return from, to
}

// List returns the first limit keys that begin with prefix and come behind after, in their
// order. "" stands for all keys, and for the beginning.
func (r *Reader) List(prefix, after string, limit int) ([]Pair, error) {
	if err := errors.Join(r.ready(), limited(limit)); err != nil {
		return nil, err
	}
	var pairs []Pair
	from, to := bounds(prefix, after)
	err := r.sess.each("SELECT key, value, sum FROM sandboxd_keys WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3", []any{from, to, int64(limit)},
		func(scan func(...any) error) error {
			var key, value, sum []byte
			if err := scan(&key, &value, &sum); err != nil {
				return err
			}
			pairs = append(pairs, Pair{string(key), value})
			return checked(keys, string(key), row{key, value}, sum)
		})
	if err != nil {
		return nil, r.failed(err, "list the keys that begin with %s", quote(prefix))
	}
	if err := r.store.doubt(keys); err != nil {
		return nil, err
	}
	return pairs, nil
}

// Count returns how many keys begin with prefix.
func (r *Reader) Count(prefix string) (int, error) {
	if err := r.ready(); err != nil {
		return 0, err
	}
	var n int64
	from, to := bounds(prefix, "")
	if _, err := r.sess.one("SELECT count(*) FROM sandboxd_keys WHERE key >= $1 AND key < $2", []any{from, to}, &n); err != nil {
		return 0, r.failed(err, "count the keys that begin with %s", quote(prefix))
	}
	return int(n), r.store.doubt(keys)
}

// Tx changes the store. What it does comes true when [Store.Update] returns nil.
type Tx struct {
	Reader
	tally *tally
	wrote int
}

// changed runs a statement that changes a row of t: before is the checksum that it had, nil
// if it is new, and after the one that it has then, nil if it goes.
func (tx *Tx) changed(t table, before, after *checksum, q string, args ...any) error {
	if err := tx.sess.run(q, args...); err != nil {
		return tx.failed(err, "change the store's %s", t)
	}
	if before != nil {
		tx.tally.counts[t].remove(*before)
	}
	if after != nil {
		tx.tally.counts[t].add(*after)
	}
	for _, a := range args {
		if b, ok := a.([]byte); ok {
			tx.wrote += len(b)
		}
	}
	return nil
}

// Put gives a key a value, in place of the one that it had.
func (tx *Tx) Put(key string, value []byte) error {
	value, err := sized(value)
	if err := errors.Join(tx.ready(), named("a key", key), err); err != nil {
		return err
	}
	var before *checksum
	if _, sum, err := tx.get(key); err == nil {
		before = &sum
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	after := sumRow(keys, row{[]byte(key), value})
	return tx.changed(keys, before, &after, "INSERT INTO sandboxd_keys (key, value, sum) VALUES ($1, $2, $3) "+
		"ON CONFLICT (key) DO UPDATE SET value = excluded.value, sum = excluded.sum", []byte(key), value, after[:])
}

// Delete removes a key; ErrNotFound if there is none.
func (tx *Tx) Delete(key string) error {
	if err := errors.Join(tx.ready(), named("a key", key)); err != nil {
		return err
	}
	_, sum, err := tx.get(key)
	if err != nil {
		return err
	}
	return tx.changed(keys, &sum, nil, "DELETE FROM sandboxd_keys WHERE key = $1", []byte(key))
}
