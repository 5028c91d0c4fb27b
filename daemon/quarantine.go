package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
)

const (
	// firstRetry and lastRetry are the first and the longest pause between attempts to remove
	// a sandbox in quarantine. Pauses double: the cause may be a process that waits for a
	// disk.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// quarantine holds the sandboxes that could not be removed (S-09). Their ids stay leased.
// One goroutine for each sandbox tries again to remove it, with pauses, and a last time when
// the daemon ends. All methods are safe for concurrent use, also during close and after it.
// Use newQuarantine.
type quarantine struct {
	log     *logrus.Logger
	life    context.Context // ends when close is called
	end     context.CancelFunc
	reapers sync.WaitGroup // one goroutine for each sandbox; added to under mu, until last is set

	mu   sync.Mutex
	held map[string]*quarantined // by sandbox id
	last context.Context         // of the last attempts; nil until close
}

// quarantined is one sandbox that could not be removed.
type quarantined struct {
	revision function.ID // zero if it belonged to none
	since    time.Time
	remove   func(context.Context) error // removes the sandbox and ends its lease
	cause    error                       // of the latest failure; guarded by quarantine.mu
}

func newQuarantine(log *logrus.Logger) *quarantine {
	q := &quarantine{log: log, held: map[string]*quarantined{}}
	q.life, q.end = context.WithCancel(context.Background())
	return q
}

// admit adds the sandbox id of a revision, whose removal has failed with cause, and returns
// the error to report. The quarantine calls remove to try again, from one goroutine at a time. After
// close it does not try again.
func (q *quarantine) admit(id string, revision function.ID, cause error, remove func(context.Context) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := &quarantined{revision: revision, since: time.Now(), remove: remove, cause: cause}
	q.held[id] = s
	if q.last != nil {
		return stays(id, cause)
	}
	q.reapers.Go(func() { q.reap(id, s) })
	return fmt.Errorf("sandbox %s is quarantined: %w", id, cause)
}

// stays returns the error for a sandbox that this daemon no longer tries to remove.
func stays(id string, cause error) error {
	return fmt.Errorf("sandbox %s stays quarantined: %w", id, cause)
}

// reap tries to remove one sandbox until it succeeds. When close is called it tries a last
// time.
func (q *quarantine) reap(id string, s *quarantined) {
	log := q.log.WithField("sandbox", id)
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			ctx, cancel := context.WithTimeout(q.life, teardownTime)
			removed := q.try(ctx, id, s)
			cancel()
			if removed {
				log.Info("removed a sandbox that was quarantined")
				return
			}
			log.WithError(s.cause).Warn("a quarantined sandbox still cannot be removed")
		case <-q.life.Done():
			timer.Stop()
			q.mu.Lock()
			ctx := q.last
			q.mu.Unlock()
			q.try(ctx, id, s)
			return
		}
	}
}

// try tries once to remove a sandbox, and reports whether it succeeded.
func (q *quarantine) try(ctx context.Context, id string, s *quarantined) bool {
	err := s.remove(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.cause = err; err == nil {
		delete(q.held, id)
	}
	return err == nil
}

// list returns what is known of each sandbox in quarantine.
func (q *quarantine) list() (facts []admin.Fact) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for id, s := range q.held {
		facts = append(facts, admin.Fact{ID: id, Revision: s.revision, Created: s.since, Quarantined: true})
	}
	return facts
}

// count returns how many sandboxes are in quarantine.
func (q *quarantine) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.held)
}

// close tries a last time to remove each sandbox, all at once, until ctx ends. It returns
// an error for each sandbox that remains.
func (q *quarantine) close(ctx context.Context) error {
	q.mu.Lock()
	q.last = ctx // from here on nothing adds to reapers
	q.mu.Unlock()
	q.end()
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		q.reapers.Wait()
	}()
	select {
	case <-reaped:
	case <-ctx.Done(): // an attempt may hang in a system call, which no context interrupts
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(q.held)) {
		errs = append(errs, stays(id, q.held[id].cause))
	}
	return errors.Join(errs...)
}
