package state

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

// What one commit takes at most.
const (
	maxBatch      = 256     // updates
	maxBatchBytes = 4 << 20 // of values, unless one update has more by itself
)

// maxRetries is how often a batch is run again because of others that write to the same
// database, or because its connection was lost before the commit.
const maxRetries = 5

// request is an update that waits. Its goroutine runs the function itself when the writer
// gives it the transaction, so that a panic, or the end of that goroutine, is its own.
type request struct {
	turn   chan *Tx      // to run in; closed when there is none to come
	ran    chan struct{} // the writer's turn again
	failed error         // what the function returned; read after ran
	late   bool          // it did not run, since its context had ended
	gone   bool          // the goroutine has ended by a panic
	result error         // read after turn is closed
}

// Update calls f with a transaction and stores what f changed, all of it or, if f returns
// an error or panics, nothing. When Update returns nil, the changes are on disk.
//
// Functions run one after the other, each seeing what those before changed, in the
// goroutines of their callers. If the database asks for it f runs again from the start,
// so it should change nothing but the transaction and variables that it sets anew. It must
// not call Update. If ctx ends before f runs, f does not run, and Update returns ctx's
// error; once f runs, Update returns what became of it.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	r := &request{turn: make(chan *Tx, 1), ran: make(chan struct{}, 1)}
	select {
	case <-s.closing:
		return ErrClosed
	default:
	}
	select {
	case s.requests <- r:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.closing:
		return ErrClosed
	}
	for tx := range r.turn {
		r.run(ctx, tx, f)
	}
	return r.result
}

// run calls f and hands the turn back, whatever f does.
func (r *request) run(ctx context.Context, tx *Tx, f func(*Tx) error) {
	r.gone = true
	defer func() {
		tx.end()
		r.ran <- struct{}{}
	}()
	if r.failed = ctx.Err(); r.failed == nil {
		r.failed = f(tx)
	} else {
		r.late = true
	}
	r.gone = false
}

// write is the only goroutine that commits.
func (s *Store) write() {
	defer close(s.closed)
	var sess *session
	for {
		select {
		case r := <-s.requests:
			runtime.Gosched() // let those go on whom the last commit has woken: half as many fsyncs
			sess = s.store(sess, s.collect(r))
		case <-s.closing:
			if sess != nil {
				sess.close()
			}
			return
		}
	}
}

// collect takes what waits, and waits for nothing.
func (s *Store) collect(r *request) []*request {
	batch := []*request{r}
	for len(batch) < maxBatch {
		select {
		case r := <-s.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// store runs a batch to its end in as many commits as its size takes, and returns the
// session for the next one; nil if it must be opened anew.
func (s *Store) store(sess *session, batch []*request) *session {
	for attempt := 0; len(batch) > 0; {
		done, err := 0, s.writable()
		if err == nil && sess == nil {
			sess, err = s.engine.session(context.Background())
		}
		if err == nil {
			done, err = s.commit(sess, batch)
		} else {
			done = len(batch)
		}
		if err != nil && sess != nil {
			sess.close()
			sess = nil
		}
		if again := s.engine.Classify(err); (again == FaultRetry || again == FaultGone) && !errors.Is(err, ErrUnknown) && attempt < maxRetries {
			attempt++
			time.Sleep(time.Duration(attempt*attempt) * time.Millisecond) // others are at work
			continue
		}
		for _, r := range batch[:done] {
			// What a function refused, it may have refused for what is undone now.
			if r.result = r.failed; err != nil && !r.late {
				r.result = err
			}
			close(r.turn)
		}
		batch, attempt = batch[done:], 0
	}
	return sess
}

// commit runs the updates of a batch, as many as one commit takes, in one transaction. It
// returns how many it ran, and the error of all of them.
func (s *Store) commit(sess *session, batch []*request) (done int, err error) {
	begun := false
	defer func() {
		if err != nil && begun {
			sess.run("ROLLBACK") // the session is closed in any case
		}
	}()
	if err = sess.run(s.engine.Begin); err != nil {
		return len(batch), s.engine.errorf(err, "begin a change of the store")
	}
	begun = true
	t, err := sess.tally(s.engine.Lock)
	if err != nil {
		return len(batch), s.noted(err)
	}
	before := *t
	changed, size := 0, 0
	for _, r := range batch {
		if done > 0 && size > maxBatchBytes {
			break
		}
		done++
		if r.gone || r.late {
			continue
		}
		n, err := s.runOne(sess, t, r)
		if err != nil {
			return done, err
		}
		if n > 0 {
			changed++
			size += n
		}
	}
	if *t == before {
		return done, sess.run("ROLLBACK")
	}
	if err := s.writable(); err != nil {
		return done, err // an update has found damage
	}
	t.commits++
	if err := sess.putTally(t); err != nil {
		return done, s.engine.errorf(err, "count a change of the store")
	}
	return done, s.finish(sess, t.commits, changed)
}

// runOne runs one update within a savepoint, to which it returns if the update fails, and
// returns the bytes that it wrote. An error is that of the whole transaction.
func (s *Store) runOne(sess *session, t *tally, r *request) (wrote int, err error) {
	if err := sess.run("SAVEPOINT one"); err != nil {
		return 0, s.engine.errorf(err, "begin a change of the store")
	}
	before := *t
	tx := &Tx{Reader: Reader{store: s, sess: sess, ctx: context.Background()}, tally: t}
	r.turn <- tx
	<-r.ran
	if !r.gone && r.failed == nil && tx.broken == nil {
		if err := sess.run("RELEASE SAVEPOINT one"); err != nil {
			return 0, s.engine.errorf(err, "end a change of the store")
		}
		return tx.wrote, nil
	}
	if r.failed == nil {
		r.failed = tx.broken
	}
	*t = before
	if err := sess.run("ROLLBACK TO SAVEPOINT one"); err != nil {
		// The database has given up all of the transaction, for the reason that the
		// update saw.
		if tx.broken != nil {
			return 0, tx.broken
		}
		return 0, s.engine.errorf(err, "undo a change of the store")
	}
	if f := s.engine.Classify(tx.broken); f == FaultRetry || f == FaultGone {
		return 0, tx.broken
	}
	return 0, nil
}

// finish commits. After a commit that may have left something on the disk nothing is
// written any more.
func (s *Store) finish(sess *session, commit uint64, changed int) error {
	if err := sess.run("COMMIT"); err != nil {
		err := s.engine.errorf(err, "commit to the store")
		switch s.engine.Classify(err) {
		case FaultGone:
			return fmt.Errorf("%w: %w", ErrUnknown, err)
		case FaultDisk, FaultDamage:
			s.fail(err)
		}
		return s.noted(err)
	}
	s.commits.Add(1)
	s.updates.Add(uint64(changed))
	if s.engine.Mark != nil {
		if err := s.engine.Mark(commit); err != nil {
			s.fail(err) // what was committed is on disk, and acknowledged
		}
	}
	return nil
}
