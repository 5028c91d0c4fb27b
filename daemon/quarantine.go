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
)

const (
	// firstRetry and lastRetry bound the pauses between attempts to remove a sandbox in
	// quarantine, which double: what holds it may be a process that waits for a disk.
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// quarantine has the sandboxes that could not be removed (S-09). Their ids stay
// leased. Removal is tried again after pauses, and a last time when the daemon ends.
// All methods are safe for concurrent use, also while close runs and after it. Use
// newQuarantine.
type quarantine struct {
	log     *logrus.Logger
	life    context.Context // ends with close
	end     context.CancelFunc
	reapers sync.WaitGroup // one goroutine for each sandbox; grows under mu, until last is set

	mu   sync.Mutex
	held map[string]*quarantined // by sandbox id
	last context.Context         // of the last attempts; nil until close
}

// quarantined is one sandbox that could not be removed.
type quarantined struct {
	since  time.Time
	remove func(context.Context) error // removes the sandbox and ends its lease
	cause  error                       // of the latest failure; under quarantine.mu
}

func newQuarantine(log *logrus.Logger) *quarantine {
	q := &quarantine{log: log, held: map[string]*quarantined{}}
	q.life, q.end = context.WithCancel(context.Background())
	return q
}

// admit takes in the sandbox id, which remove could not remove for the reason cause, and
// returns the error to report. remove is called by one goroutine at a time. Once close
// has been called, remove is not: the attempt that failed was the last.
func (q *quarantine) admit(id string, cause error, remove func(context.Context) error) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := &quarantined{since: time.Now(), remove: remove, cause: cause}
	q.held[id] = s
	if q.last != nil {
		return stays(id, cause)
	}
	q.reapers.Go(func() { q.reap(id, s) })
	return fmt.Errorf("sandbox %s is quarantined: %w", id, cause)
}

// stays is the error of a sandbox that nobody tries to remove any more.
func stays(id string, cause error) error {
	return fmt.Errorf("sandbox %s stays quarantined: %w", id, cause)
}

// reap tries to remove one sandbox until that succeeds, or close is called and a last
// attempt fails.
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
			log.WithError(s.cause).Warn("a sandbox stays quarantined: it still cannot be removed")
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

// try tries once to remove a sandbox, and reports whether it is removed.
func (q *quarantine) try(ctx context.Context, id string, s *quarantined) bool {
	err := s.remove(ctx)
	q.mu.Lock()
	defer q.mu.Unlock()
	if s.cause = err; err == nil {
		delete(q.held, id)
	}
	return err == nil
}

// list returns by id since when sandboxes are in quarantine.
func (q *quarantine) list() map[string]time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	since := map[string]time.Time{}
	for id, s := range q.held {
		since[id] = s.since
	}
	return since
}

// count returns how many sandboxes are in quarantine.
func (q *quarantine) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.held)
}

// close tries to remove each sandbox a last time, all at once, until ctx ends. It
// returns the errors of those that stay.
func (q *quarantine) close(ctx context.Context) error {
	q.mu.Lock()
	q.last = ctx // from here on reapers does not grow
	q.mu.Unlock()
	q.end()
	reaped := make(chan struct{})
	go func() {
		defer close(reaped)
		q.reapers.Wait()
	}()
	select {
	case <-reaped:
	case <-ctx.Done(): // an attempt may hang in the kernel, which knows no context
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(q.held)) {
		errs = append(errs, stays(id, q.held[id].cause))
	}
	return errors.Join(errs...)
}
