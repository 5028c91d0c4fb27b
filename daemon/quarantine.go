package daemon

import (
	"context"
	"errors"
	"fmt"
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
// Safe for concurrent use. Use newQuarantine.
type quarantine struct {
	log    *logrus.Logger
	life   context.Context // ends with close
	end    context.CancelFunc
	keeper sync.WaitGroup // one goroutine for each sandbox

	mu   sync.Mutex
	held map[string]quarantined // by sandbox id
}

// quarantined is one sandbox that could not be removed.
type quarantined struct {
	since  time.Time
	remove func(context.Context) error // removes the sandbox and ends its lease
}

func newQuarantine(log *logrus.Logger) *quarantine {
	q := &quarantine{log: log, held: map[string]quarantined{}}
	q.life, q.end = context.WithCancel(context.Background())
	return q
}

// admit takes in the sandbox id, which remove could not remove for the reason cause,
// and returns the error that tells of it.
func (q *quarantine) admit(id string, cause error, remove func(context.Context) error) error {
	q.mu.Lock()
	q.held[id] = quarantined{time.Now(), remove}
	q.mu.Unlock()
	q.keeper.Go(func() { q.keep(id, remove) })
	return fmt.Errorf("sandbox %s is quarantined: %w", id, cause)
}

// keep tries to remove one sandbox until that succeeds or the daemon ends.
func (q *quarantine) keep(id string, remove func(context.Context) error) {
	for pause := firstRetry; ; pause = min(2*pause, lastRetry) {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-q.life.Done():
			timer.Stop()
			return
		}
		ctx, cancel := context.WithTimeout(q.life, teardownTime)
		err := remove(ctx)
		cancel()
		log := q.log.WithField("sandbox", id)
		if err == nil {
			q.mu.Lock()
			delete(q.held, id)
			q.mu.Unlock()
			log.Info("removed a sandbox that was quarantined")
			return
		}
		log.WithError(err).Warn("a sandbox stays quarantined: it still cannot be removed")
	}
}

// list tells by id since when sandboxes are in quarantine.
func (q *quarantine) list() map[string]time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	since := map[string]time.Time{}
	for id, s := range q.held {
		since[id] = s.since
	}
	return since
}

// close tries to remove each sandbox a last time, all at once, until ctx ends. It
// returns the errors of those that stay.
func (q *quarantine) close(ctx context.Context) error {
	q.end()
	q.keeper.Wait()
	var (
		last sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for id, s := range q.held {
		last.Go(func() {
			if err := s.remove(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, fmt.Errorf("sandbox %s stays quarantined: %w", id, err))
			}
		})
	}
	last.Wait()
	return errors.Join(errs...)
}
