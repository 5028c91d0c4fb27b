package main

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"strconv"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/state/blob"
)

// workers is how many change the store at the same time. Each has keys, a log, a queue and
// timers of its own, so that what it has done is known by how many changes it made.
const workers = 4

// slots is how many functions a worker has at most.
const slots = 6

// A kind is what a change does, beside the worker's count and a record in its log.
type kind int

const (
	deploy  kind = iota // a function: a blob, a key with its digest, a secret, a timer, an entry of the queue
	remove              // a function, but for the entry, and the blob that is left to a sweep
	consume             // the first entry of the queue is leased and finished
	trim                // the log is cut
	large               // a value of many pages
)

// A change is what a worker does in one transaction.
type change struct {
	kind kind
	slot int
}

// changeOf returns the nth change of a worker, from 1 on. It is the same whenever it is asked
// for.
func changeOf(worker int, n uint64) change {
	r := random("change", worker, n)
	c := change{slot: r.IntN(slots)}
	switch k := r.IntN(16); {
	case k < 9:
		c.kind = deploy
	case k < 11:
		c.kind = remove
	case k < 13:
		c.kind = consume
	case k < 14:
		c.kind = trim
	default:
		c.kind = large
	}
	return c
}

// random returns a source that depends on what it is for, the worker and the change.
func random(what string, worker int, n uint64) *rand.Rand {
	return rand.New(rand.NewChaCha8(sha256.Sum256(fmt.Appendf(nil, "%s %d %d", what, worker, n))))
}

// content is the blob of a worker's nth change. One in four is another's too.
func content(worker int, n uint64) []byte {
	if n%4 == 0 {
		worker, n = workers, n/4%5
	}
	r := random("content", worker, n)
	size := r.IntN(20_000)
	if r.IntN(8) == 0 {
		size = r.IntN(300_000)
	}
	return bytesOf(r, size)
}

// bytesOf returns so many bytes that nobody could guess.
func bytesOf(r *rand.Rand, size int) []byte {
	b := make([]byte, size+8)
	for i := 0; i < size; i += 8 {
		v := r.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b[:size]
}

// functionValue is what the key of a function has that the nth change has deployed.
func functionValue(n uint64, d blob.Digest) string {
	return strconv.FormatUint(n, 10) + " " + fmt.Sprintf("%x", d)
}

// secret is what the nth change of a worker stores encrypted.
func secret(worker int, n uint64) string { return fmt.Sprintf("secret %d %d", worker, n) }

// largeValue is the value that the nth change stores.
func largeValue(worker int, n uint64) string {
	r := random("large", worker, n)
	return strconv.FormatUint(n, 10) + " " + string(bytesOf(r, r.IntN(60_000)))
}

// A part is what the store must have of a worker after its first n changes.
type part struct {
	worker     int
	n          uint64
	deployed   map[int]uint64 // by slot: the change that has deployed the function
	queue      []uint64       // the changes that have added an entry
	cut        uint64         // the first record that the log has, the nth being of the nth change
	largeSince uint64         // the change that has stored the large value; 0 if none has
}

// newPart returns what the store must have after the first n changes of a worker.
func newPart(worker int, n uint64) *part {
	p := &part{worker: worker, deployed: map[int]uint64{}, cut: 1}
	for p.n < n {
		p.next()
	}
	return p
}

// next makes the next change.
func (p *part) next() {
	p.n++
	switch c := changeOf(p.worker, p.n); c.kind {
	case deploy:
		p.deployed[c.slot] = p.n
		p.queue = append(p.queue, p.n)
	case remove:
		delete(p.deployed, c.slot)
	case consume:
		p.queue = p.queue[min(1, len(p.queue)):]
	case trim:
		p.cut = max(p.cut, cutAt(p.n))
	case large:
		p.largeSince = p.n
	}
}

// cutAt is where the nth change cuts the log if it does.
func cutAt(n uint64) uint64 { return n - min(n-1, 5) }

// The names of what a worker has.
func countKey(worker int) string          { return fmt.Sprintf("n/%d", worker) }
func functionPrefix(worker int) string    { return fmt.Sprintf("fn/%d/", worker) }
func functionKey(worker, slot int) string { return fmt.Sprintf("fn/%d/%d", worker, slot) }
func largeKey(worker int) string          { return fmt.Sprintf("large/%d", worker) }
func logName(worker int) string           { return fmt.Sprintf("log/%d", worker) }
func queueName(worker int) string         { return fmt.Sprintf("queue/%d", worker) }

// place is where the secret of a function is stored.
func place(worker, slot int) seal.Place {
	return seal.Place{Table: "secret", Key: fmt.Sprintf("secret/%d/%d", worker, slot)}
}
