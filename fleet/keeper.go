package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// closeTimeout bounds the closing of one sandbox: the widest shutdown window (2 s,
// LC-64), the wait for kills (9 s, LC-63), and the removal of what it held.
const closeTimeout = 20 * time.Second

// keep is the keeper of m: it waits for the end of each invocation and of the
// sandbox, then closes it.
func (f *Fleet) keep(m *member) {
	defer f.keepers.Done()
	f.watch(m)

	f.mu.Lock()
	f.move(m, leaving)
	f.mu.Unlock()
	// Tear-down cannot be cancelled; it has a deadline of its own.
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := m.sandbox.Close(ctx)
	if err != nil {
		err = fmt.Errorf("fleet: close sandbox %s: %w", m.sandbox.ID(), err)
	}
	f.mu.Lock()
	f.remove(m)
	closing := f.closing
	if closing && err != nil {
		f.errs = append(f.errs, err)
	}
	f.mu.Unlock()
	if !closing && err != nil {
		f.cfg.OnError(err)
	}
}

// watch returns when m is to be closed.
func (f *Fleet) watch(m *member) {
	var tooLong <-chan time.Time
	var timer *time.Timer
	if f.cfg.IdleTimeout > 0 {
		timer = time.NewTimer(f.cfg.IdleTimeout)
		defer timer.Stop()
		tooLong = timer.C
	}
	for {
		select {
		case res := <-m.results:
			if res.Stream != nil {
				if !f.await(m, res.Stream.Ended()) {
					return
				}
				f.mu.Lock()
				f.streamed(m)
				f.mu.Unlock()
			}
			if !f.await(m, res.Done) || m.sandbox.State() == rapid.Dead {
				return
			}
			f.mu.Lock()
			f.move(m, idle)
			f.mu.Unlock()
			if timer != nil {
				timer.Reset(f.cfg.IdleTimeout)
			}
		case <-tooLong:
			if f.spinDown(m) {
				return
			}
		case <-m.broken:
			return
		case <-m.sandbox.Ended():
			return
		case <-f.life.Done():
			return
		}
	}
}

// await waits for an event of m's invocation; false means that m is to be closed.
func (f *Fleet) await(m *member, event <-chan struct{}) bool {
	select {
	case <-event:
		return true
	case <-m.sandbox.Ended():
	case <-f.life.Done():
	}
	return false
}

// spinDown withdraws m from use if it is idle. The timer may also fire while m is
// taken; the end of that invocation sets it again.
func (f *Fleet) spinDown(m *member) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.phase != idle {
		return false
	}
	f.move(m, leaving)
	return true
}

// Shutdown takes no more invocations, waits until those that run are Done or ctx
// ends, and then closes all sandboxes in parallel (each within 20 s); those that still
// run get their answer from the sandbox's shutdown. It returns when nothing is left;
// the error joins that of ctx, if it ended first, with those of the sandboxes that
// did not close cleanly. A second call waits likewise and returns the same.
func (f *Fleet) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closing = true
	for _, w := range f.waiters {
		w <- nil
	}
	f.waiters = nil
	f.noticeDrain()
	f.mu.Unlock()

	var cut error
	select {
	case <-f.drained:
	case <-ctx.Done():
		cut = fmt.Errorf("fleet: wait for running invocations: %w", ctx.Err())
	}
	f.endLife()
	f.keepers.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(append([]error{cut}, f.errs...)...)
}

// Stat describes one sandbox, for lists.
type Stat struct {
	ID          string // "" while it is being made
	State       string // rapid's state; "Making" and "Closing" are the fleet's own
	Made        time.Time
	Invocations uint64        // answered ones
	Idle        time.Duration // how long it has been free; 0 unless it is
}

// Stats lists the sandboxes, oldest first.
func (f *Fleet) Stats() []Stat {
	f.mu.Lock()
	defer f.mu.Unlock()
	stats := make([]Stat, 0, len(f.members))
	for m := range f.members {
		st := Stat{Made: m.made, Invocations: m.invocations, State: "Making"}
		if m.sandbox != nil {
			st.ID, st.State = m.sandbox.ID(), m.sandbox.State().String()
		}
		switch m.phase {
		case idle:
			st.Idle = time.Since(m.since)
		case leaving:
			st.State = "Closing"
		}
		stats = append(stats, st)
	}
	slices.SortFunc(stats, func(a, b Stat) int { return cmp.Or(a.Made.Compare(b.Made), cmp.Compare(a.ID, b.ID)) })
	return stats
}
