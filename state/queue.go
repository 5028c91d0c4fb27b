package state

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// Entry is an entry of a queue.
type Entry struct {
	ID     uint64 // of no other entry in the store
	Value  []byte
	At     time.Time // when it can be leased, again if it is leased
	Leases int       // how often it was leased
	Leased bool      // it was leased, and has been neither released nor finished
}

// Token is what one lease of an entry is known by. It is drawn at random.
type Token string

// Leased is an entry with the token of its lease.
type Leased struct {
	Entry
	Token Token
}

// entry is a row of the queues.
type entry struct {
	queue  string
	id     int64
	at     int64
	leases int64
	token  []byte
	value  []byte
	sum    []byte
}

const entryColumns = "SELECT id, at, leases, token, value, sum FROM sandboxd_queue "

func (e *entry) row() row { return row{[]byte(e.queue), e.id, e.at, e.leases, e.token, e.value} }

func (e *entry) entry() Entry {
	return Entry{ID: uint64(e.id), Value: e.value, At: unstamp(e.at), Leases: int(e.leases), Leased: len(e.token) > 0}
}

// entries reads those that the rest of a statement asks for.
func (r *Reader) entries(queueName, where string, args ...any) ([]entry, error) {
	var list []entry
	err := r.sess.each(entryColumns+where, args, func(scan func(...any) error) error {
		e := entry{queue: queueName}
		if err := scan(&e.id, &e.at, &e.leases, &e.token, &e.value, &e.sum); err != nil {
			return err
		}
		list = append(list, e)
		return checked(queue, fmt.Sprintf("%s %d", queueName, e.id), e.row(), e.sum)
	})
	if err != nil {
		return nil, r.failed(err, "read the queue %s", quote(queueName))
	}
	return list, nil
}

// ReadQueue returns the first limit entries of a queue with a number above after, in the
// order of their numbers, leased or not.
func (r *Reader) ReadQueue(name string, after uint64, limit int) ([]Entry, error) {
	if err := errors.Join(r.ready(), named("a queue's name", name), limited(limit)); err != nil {
		return nil, err
	}
	list, err := r.entries(name, "WHERE queue = $1 AND id > $2 ORDER BY id LIMIT $3", []byte(name), int64(min(after, math.MaxInt64)), int64(limit))
	if err == nil {
		err = r.store.doubt(queue)
	}
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, e := range list {
		entries = append(entries, e.entry())
	}
	return entries, nil
}

// NextEntry returns when the first entry of a queue can be leased. ok says that it has one.
func (r *Reader) NextEntry(name string) (at time.Time, ok bool, err error) {
	if err := errors.Join(r.ready(), named("a queue's name", name)); err != nil {
		return time.Time{}, false, err
	}
	list, err := r.entries(name, "WHERE queue = $1 ORDER BY at, id LIMIT 1", []byte(name))
	if err == nil {
		err = r.store.doubt(queue)
	}
	if err != nil || len(list) == 0 {
		return time.Time{}, false, err
	}
	return unstamp(list[0].at), true, nil
}

// Enqueue adds an entry to a queue, which need not have been, and returns its number.
// Nobody leases it before at.
func (tx *Tx) Enqueue(name string, value []byte, at time.Time) (id uint64, err error) {
	value, err = sized(value)
	if err := errors.Join(tx.ready(), named("a queue's name", name), err); err != nil {
		return 0, err
	}
	tx.tally.last++
	e := entry{queue: name, id: int64(tx.tally.last), at: stamp(at), token: []byte{}, value: value}
	sum := sumRow(queue, e.row())
	return tx.tally.last, tx.changed(queue, nil, &sum,
		"INSERT INTO sandboxd_queue (queue, id, at, leases, token, value, sum) VALUES ($1, $2, $3, $4, $5, $6, $7)",
		[]byte(name), e.id, e.at, e.leases, e.token, e.value, sum[:])
}

// Lease gives the caller up to limit entries of a queue whose time has come at now, in the
// order of their times, then of their numbers. Nobody else gets them before until, when
// they can be leased again unless they were finished. Until another has leased an entry,
// its lease still counts when its time is over.
func (tx *Tx) Lease(name string, now, until time.Time, limit int) ([]Leased, error) {
	if err := errors.Join(tx.ready(), named("a queue's name", name), limited(limit)); err != nil {
		return nil, err
	}
	list, err := tx.entries(name, "WHERE queue = $1 AND at <= $2 ORDER BY at, id LIMIT $3", []byte(name), stamp(now), int64(limit))
	if err == nil {
		err = tx.store.doubt(queue)
	}
	if err != nil {
		return nil, err
	}
	var leased []Leased
	for _, e := range list {
		before := checksum(e.sum)
		e.at, e.token = stamp(until), []byte(random())
		e.leases++
		if err := tx.putEntry(&e, before); err != nil {
			return nil, err
		}
		leased = append(leased, Leased{e.entry(), Token(e.token)})
	}
	return leased, nil
}

// putEntry stores a changed entry.
func (tx *Tx) putEntry(e *entry, before checksum) error {
	sum := sumRow(queue, e.row())
	return tx.changed(queue, &before, &sum, "UPDATE sandboxd_queue SET at = $1, leases = $2, token = $3, sum = $4 WHERE queue = $5 AND id = $6",
		e.at, e.leases, e.token, sum[:], []byte(e.queue), e.id)
}

// lease returns an entry that the token is of.
func (tx *Tx) lease(name string, id uint64, t Token) (*entry, error) {
	if err := errors.Join(tx.ready(), named("a queue's name", name)); err != nil {
		return nil, err
	}
	list, err := tx.entries(name, "WHERE queue = $1 AND id = $2", []byte(name), int64(min(id, math.MaxInt64)))
	if err == nil && len(list) == 0 {
		err = tx.store.doubt(queue)
	}
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || t == "" || string(list[0].token) != string(t) {
		return nil, fmt.Errorf("%w: entry %d of the queue %s is finished or leased by another", ErrLeaseLost, id, quote(name))
	}
	return &list[0], nil
}

// Renew moves the end of a lease to until. Like Release and Finish it returns ErrLeaseLost
// if another has leased the entry, or finished it.
func (tx *Tx) Renew(name string, id uint64, t Token, until time.Time) error {
	e, err := tx.lease(name, id, t)
	if err != nil {
		return err
	}
	e.at = stamp(until)
	return tx.putEntry(e, checksum(e.sum))
}

// Release ends a lease. The entry can be leased again from at on.
func (tx *Tx) Release(name string, id uint64, t Token, at time.Time) error {
	e, err := tx.lease(name, id, t)
	if err != nil {
		return err
	}
	e.at, e.token = stamp(at), []byte{}
	return tx.putEntry(e, checksum(e.sum))
}

// Finish removes an entry that is leased.
func (tx *Tx) Finish(name string, id uint64, t Token) error {
	e, err := tx.lease(name, id, t)
	if err != nil {
		return err
	}
	sum := checksum(e.sum)
	return tx.changed(queue, &sum, nil, "DELETE FROM sandboxd_queue WHERE queue = $1 AND id = $2", []byte(name), e.id)
}
