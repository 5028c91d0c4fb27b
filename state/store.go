// Package state keeps what the control plane must not lose: keys with values, logs, queues
// and timers, which one transaction can change together (docs/decisions/0051).
//
// A [Store] is opened by one of two engines, state/sqlite and state/postgres. Both run the
// statements of this package on the same tables and pass the same tests, state/statetest.
//
// An [Store.Update] that has returned nil is on disk. One goroutine commits, and commits
// together what arrived while the last commit ran, so that many updates share one fsync.
//
// Each row carries a checksum of its own over its table, key and values, which is checked
// whenever the row is read; and the store counts and sums the rows of each table, so that
// rows that vanished are missed when the store is opened. A row that is damaged is never
// returned. A store with damage is read-only.
//
// A lock order: none. The writer holds no lock while an update runs.
package state

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// What keys, names and values may be.
const (
	MaxKey   = 1024     // bytes of a key, or of the name of a log, queue or timer; at least 1
	MaxValue = 16 << 20 // bytes of a value
)

// Forever is later than any time that the store can keep.
var Forever = time.Unix(0, 1<<63-1).UTC()

// Kinds of errors, for errors.Is.
var (
	ErrNotFound  = errors.New("it does not exist")
	ErrDamaged   = errors.New("it is damaged")
	ErrReadOnly  = errors.New("the store is read-only")
	ErrNoSpace   = errors.New("no space left for the store")
	ErrInUse     = errors.New("the store is in use")
	ErrNewer     = errors.New("the store has a newer format")
	ErrLeaseLost = errors.New("the lease is lost")
	ErrInvalid   = errors.New("invalid argument")
	ErrClosed    = errors.New("the store is closed")
	// ErrUnknown is that of an update whose commit the database did not answer: it may be
	// stored or not.
	ErrUnknown = errors.New("whether the change was stored is not known")
)

// Store is an open store. Its methods may be called at the same time.
type Store struct {
	engine   *Engine
	epoch    string
	readers  chan *session // those that nobody uses; nil stands for one that is not open
	requests chan *request
	closing  chan struct{}
	closed   chan struct{} // the writer has ended
	shut     sync.Once

	updates, commits atomic.Uint64

	mu      sync.Mutex
	damage  []Damage
	doubted [tables]bool // an answer "there is none" from this table cannot be trusted
	broken  error        // why nothing is written any more, if not because of damage
}

// Stats counts since Open.
type Stats struct {
	Updates uint64 // that changed something and were stored
	Commits uint64 // that stored them
}

// Stats returns the counts of now.
func (s *Store) Stats() Stats {
	return Stats{Updates: s.updates.Load(), Commits: s.commits.Load()}
}

// Epoch returns a text that was drawn at random when the store was made or restored.
// What the store counts, such as numbers of revisions, grows only within an epoch.
func (s *Store) Epoch() string { return s.epoch }

// Warnings returns what the operator should know of the database and is no error.
func (s *Store) Warnings() []string { return s.engine.Warnings }

// Open makes a store of the database that e has opened. It makes the tables if there are
// none, migrates those of an older format, and verifies every row. Damage that it finds is
// no error: see [Store.Damage]. The store closes e, also if Open fails.
func Open(ctx context.Context, e *Engine, o Options) (*Store, error) {
	s := &Store{
		engine:   e,
		readers:  make(chan *session, e.Readers),
		requests: make(chan *request),
		closing:  make(chan struct{}),
		closed:   make(chan struct{}),
	}
	if err := s.open(ctx, o); err != nil {
		return nil, errors.Join(fmt.Errorf("open %s: %w", e.Name, err), e.Close())
	}
	for range e.Readers {
		s.readers <- nil
	}
	go s.write()
	return s, nil
}

// Options of [Open].
type Options struct {
	// Folder is where a backup is written before a store of an older format is migrated.
	Folder string
	// Progress is told of the verification now and then; nil is nobody.
	Progress func(Progress)
}

func (s *Store) open(ctx context.Context, o Options) error {
	w, err := s.engine.session(ctx)
	if err != nil {
		return err
	}
	defer w.close()
	if err := s.prepare(ctx, w, o); err != nil {
		return err
	}
	_, err = s.verify(ctx, w, o.Progress)
	return err
}

// Close waits for the updates that run, refuses further ones and closes the database.
func (s *Store) Close() error {
	var err error
	s.shut.Do(func() {
		close(s.closing)
		<-s.closed
		for range cap(s.readers) {
			if r := <-s.readers; r != nil {
				r.close()
			}
		}
		err = s.engine.Close()
	})
	return err
}

// View calls f with a consistent view of the store, in which all updates are that have
// returned. Several views and an update run at the same time. The reader is f's only until
// f returns.
func (s *Store) View(ctx context.Context, f func(*Reader) error) error {
	sess, err := s.reader(ctx)
	if err != nil {
		return err
	}
	r := &Reader{store: s, sess: sess, ctx: ctx}
	defer func() { // also when f panics
		if r.end(); r.lost || sess.run("ROLLBACK") != nil {
			sess.close()
			sess = nil
		}
		s.readers <- sess
	}()
	return f(r)
}

// reader takes a session and begins a transaction that reads. If the database has closed
// the connection meanwhile, another one takes its place.
func (s *Store) reader(ctx context.Context) (*session, error) {
	var sess *session
	select {
	case <-s.closing:
		return nil, ErrClosed
	default:
	}
	select {
	case sess = <-s.readers:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-s.closing:
		return nil, ErrClosed
	}
	if sess != nil && sess.run(s.engine.BeginRead) == nil {
		return sess, nil
	}
	if sess != nil {
		sess.close()
	}
	sess, err := s.engine.session(ctx)
	if err == nil {
		if err = sess.run(s.engine.BeginRead); err == nil {
			return sess, nil
		}
		sess.close()
	}
	s.readers <- nil
	return nil, s.engine.errorf(err, "read the store")
}

// writable says why nothing may be written; nil if it may.
func (s *Store) writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.broken != nil:
		return fmt.Errorf("%w, since %w: mend that and restart", ErrReadOnly, s.broken)
	case len(s.damage) > 0:
		return fmt.Errorf("%w, since %s: restore a backup", ErrReadOnly, s.damage[0])
	}
	return nil
}

// fail makes the store read-only until it is opened again.
func (s *Store) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken == nil {
		s.broken = err
	}
}

// random returns a text that nobody can guess.
func random() string { return rand.Text() }
