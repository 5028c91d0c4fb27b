package state

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// table is one that the store counts.
type table int

// The tables. Their numbers are part of checksums, so they stay.
const (
	keys table = iota
	heads
	records
	queue
	timers
	tables = 5
)

// String is the name by which errors and backups call the table.
func (t table) String() string {
	return [...]string{"keys", "heads of logs", "logs", "queues", "timers"}[t]
}

// row is what a checksum covers: the columns of a row in their order, each an int64 or
// bytes. The first ones are the primary key.
type row []any

// checksum is that of a row.
type checksum [16]byte

// sumRow computes the checksum of a row of table t; -1 is the table of the store's own facts.
func sumRow(t table, r row) checksum {
	h := sha256.New()
	var b [9]byte
	b[0] = byte(t)
	h.Write(b[:1])
	for _, column := range r {
		switch v := column.(type) {
		case int64:
			b[0] = 'i'
			binary.LittleEndian.PutUint64(b[1:], uint64(v))
			h.Write(b[:])
		case []byte:
			b[0] = 'b'
			binary.LittleEndian.PutUint64(b[1:], uint64(len(v)))
			h.Write(b[:])
			h.Write(v)
		}
	}
	var sum [sha256.Size]byte
	return checksum(h.Sum(sum[:0])[:16])
}

// count says how many rows a table has, and the sum of their checksums: neither depends on
// the order of rows, and both change with each row that comes, goes or changes.
type count struct {
	rows   uint64
	lo, hi uint64
}

func (c *count) add(s checksum) {
	c.rows++
	c.lo += binary.LittleEndian.Uint64(s[:8])
	c.hi += binary.LittleEndian.Uint64(s[8:])
}

func (c *count) remove(s checksum) {
	c.rows--
	c.lo -= binary.LittleEndian.Uint64(s[:8])
	c.hi -= binary.LittleEndian.Uint64(s[8:])
}

// tally is the row of the store's own facts that each commit changes. Who has locked it
// may write.
type tally struct {
	commits uint64
	last    uint64 // the last number that an entry of a queue got
	counts  [tables]count
}

const (
	tallyName = "tally"
	tallySize = 8 * (2 + 3*tables)
)

func (t *tally) bytes() []byte {
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, tallySize), t.commits)
	b = binary.LittleEndian.AppendUint64(b, t.last)
	for _, c := range t.counts {
		b = binary.LittleEndian.AppendUint64(b, c.rows)
		b = binary.LittleEndian.AppendUint64(b, c.lo)
		b = binary.LittleEndian.AppendUint64(b, c.hi)
	}
	return b
}

func parseTally(b []byte) (*tally, error) {
	if len(b) != tallySize {
		return nil, fmt.Errorf("it has %d bytes instead of %d", len(b), tallySize)
	}
	next := func() uint64 {
		n := binary.LittleEndian.Uint64(b)
		b = b[8:]
		return n
	}
	t := &tally{commits: next(), last: next()}
	for i := range t.counts {
		t.counts[i] = count{next(), next(), next()}
	}
	return t, nil
}

// facts is the table of the store's own facts. It is counted nowhere.
const facts table = -1

// fact reads one of them. lock is the engine's text to lock the row, or "".
func (s *session) fact(name, lock string) (value []byte, found bool, err error) {
	var sum []byte
	found, err = s.one("SELECT value, sum FROM sandboxd_meta WHERE name = $1 "+lock, []any{[]byte(name)}, &value, &sum)
	if err != nil {
		return nil, false, s.engine.errorf(err, "read the store's %s", name)
	}
	if want := sumRow(facts, row{[]byte(name), value}); found && string(want[:]) != string(sum) {
		return nil, false, &DamageError{"facts", name}
	}
	return value, found, nil
}

func (s *session) putFact(name string, value []byte) error {
	sum := sumRow(facts, row{[]byte(name), value})
	return s.run("INSERT INTO sandboxd_meta (name, value, sum) VALUES ($1, $2, $3) "+
		"ON CONFLICT (name) DO UPDATE SET value = excluded.value, sum = excluded.sum", []byte(name), value, sum[:])
}

func (s *session) tally(lock string) (*tally, error) {
	b, found, err := s.fact(tallyName, lock)
	if err != nil {
		return nil, err
	}
	t, err := parseTally(b)
	if !found || err != nil {
		return nil, &DamageError{"facts", tallyName}
	}
	return t, nil
}

func (s *session) putTally(t *tally) error { return s.putFact(tallyName, t.bytes()) }
