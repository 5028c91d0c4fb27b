package state

import (
	"errors"
)

// Record is what was appended to a log.
type Record struct {
	Seq   uint64 // 1, 2, 3, …
	Value []byte
}

// head is a row of the logs' heads.
type head struct {
	first, next uint64
	sum         *checksum // nil: there is no row
}

func (h head) row(log string) row { return row{[]byte(log), int64(h.first), int64(h.next)} }

func (r *Reader) head(log string) (head, error) {
	var first, next int64
	var b []byte
	found, err := r.sess.one("SELECT first, next, sum FROM sandboxd_heads WHERE log = $1", []any{[]byte(log)}, &first, &next, &b)
	h := head{first: uint64(first), next: uint64(next)}
	if err == nil && found {
		err = checked(heads, log, h.row(log), b)
	}
	switch {
	case err != nil:
		return head{}, r.failed(err, "read the log %s", quote(log))
	case !found:
		return head{first: 1, next: 1}, r.store.doubt(heads)
	}
	h.sum = (*checksum)(b)
	return h, nil
}

// LogBounds returns the number of the first record that a log has, and that of the next
// one to be appended. They are the same if it has none.
func (r *Reader) LogBounds(log string) (first, next uint64, err error) {
	if err := errors.Join(r.ready(), named("a log's name", log)); err != nil {
		return 0, 0, err
	}
	h, err := r.head(log)
	return h.first, h.next, err
}

// ReadLog returns the first limit records of a log with number from or a later one.
func (r *Reader) ReadLog(log string, from uint64, limit int) ([]Record, error) {
	if err := errors.Join(r.ready(), named("a log's name", log), limited(limit)); err != nil {
		return nil, err
	}
	h, err := r.head(log)
	if err != nil {
		return nil, err
	}
	from = max(from, h.first)
	if from >= h.next {
		return nil, nil
	}
	return r.records(log, h, from, h.next, limit)
}

// records returns the records of a log from one number to before another one. None of them
// can be missing.
func (r *Reader) records(log string, h head, from, to uint64, limit int) ([]Record, error) {
	var list []Record
	err := r.sess.each("SELECT seq, value, sum FROM sandboxd_records WHERE log = $1 AND seq >= $2 AND seq < $3 ORDER BY seq LIMIT $4",
		[]any{[]byte(log), int64(from), int64(to), int64(limit)},
		func(scan func(...any) error) error {
			var seq int64
			var value, sum []byte
			if err := scan(&seq, &value, &sum); err != nil {
				return err
			}
			if uint64(seq) != from+uint64(len(list)) {
				return &DamageError{records.String(), log}
			}
			list = append(list, Record{uint64(seq), value})
			return checked(records, log, row{[]byte(log), seq, value}, sum)
		})
	if err == nil && uint64(len(list)) != min(to-from, uint64(limit)) {
		err = &DamageError{records.String(), log}
	}
	if err != nil {
		return nil, r.failed(err, "read the log %s", quote(log))
	}
	return list, nil
}

// Append adds a record to a log, which need not have been, and returns its number.
func (tx *Tx) Append(log string, value []byte) (seq uint64, err error) {
	value, err = sized(value)
	if err := errors.Join(tx.ready(), named("a log's name", log), err); err != nil {
		return 0, err
	}
	h, err := tx.head(log)
	if err != nil {
		return 0, err
	}
	seq = h.next
	sum := sumRow(records, row{[]byte(log), int64(seq), value})
	if err := tx.changed(records, nil, &sum, "INSERT INTO sandboxd_records (log, seq, value, sum) VALUES ($1, $2, $3, $4)",
		[]byte(log), int64(seq), value, sum[:]); err != nil {
		return 0, err
	}
	return seq, tx.putHead(log, h, h.first, h.next+1)
}

func (tx *Tx) putHead(log string, h head, first, next uint64) error {
	sum := sumRow(heads, head{first: first, next: next}.row(log))
	return tx.changed(heads, h.sum, &sum, "INSERT INTO sandboxd_heads (log, first, next, sum) VALUES ($1, $2, $3, $4) "+
		"ON CONFLICT (log) DO UPDATE SET first = excluded.first, next = excluded.next, sum = excluded.sum",
		[]byte(log), int64(first), int64(next), sum[:])
}

// Cut removes the records of a log with numbers before the given one. The numbers of
// further records go on.
func (tx *Tx) Cut(log string, before uint64) error {
	if err := errors.Join(tx.ready(), named("a log's name", log)); err != nil {
		return err
	}
	h, err := tx.head(log)
	if err != nil {
		return err
	}
	if before = min(before, h.next); before <= h.first {
		return nil
	}
	if err := tx.removeRecords(log, h, before); err != nil {
		return err
	}
	return tx.putHead(log, h, before, h.next)
}

// RemoveLog removes a log whole. Appended to again, it begins with number 1.
func (tx *Tx) RemoveLog(log string) error {
	if err := errors.Join(tx.ready(), named("a log's name", log)); err != nil {
		return err
	}
	h, err := tx.head(log)
	if err != nil {
		return err
	}
	if h.sum == nil {
		return tx.missing(heads, "the log %s", log)
	}
	if err := tx.removeRecords(log, h, h.next); err != nil {
		return err
	}
	return tx.changed(heads, h.sum, nil, "DELETE FROM sandboxd_heads WHERE log = $1", []byte(log))
}

// removeRecords removes those from the log's first to before another one, some at a time.
func (tx *Tx) removeRecords(log string, h head, before uint64) error {
	const some = 64
	for from := h.first; from < before; {
		list, err := tx.records(log, h, from, before, some)
		if err != nil {
			return err
		}
		for _, r := range list {
			sum := sumRow(records, row{[]byte(log), int64(r.Seq), r.Value})
			tx.tally.counts[records].remove(sum)
		}
		from += uint64(len(list))
	}
	return tx.changed(records, nil, nil, "DELETE FROM sandboxd_records WHERE log = $1 AND seq < $2", []byte(log), int64(before))
}
