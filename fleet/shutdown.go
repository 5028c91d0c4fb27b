package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Shutdown accepts no more invocations, waits until the running ones are Done or ctx ends,
// and then closes all sandboxes in parallel, each within 20 s. Callers of
// invocations that still run then get ErrCutShort. Shutdown returns when all sandboxes are
// closed. The error joins those of sandboxes that did not close cleanly with the cause of
// ctx, if that cut invocations short. A second call waits in the same way, and returns the
// same error.
func (f *Fleet) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closing = true
	for _, w := range f.waiters {
		w.grant <- grant{err: ErrClosed}
	}
	f.waiters = nil
	f.noticeDrain()
	f.mu.Unlock()
	f.cfg.Budget.wakeAll()

	select {
	case <-f.drained:
	case <-ctx.Done():
		f.cutShort(context.Cause(ctx))
	}
	f.endLife()
	f.reapers.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(append([]error{f.cut}, f.errs...)...)
}

// Unused reports whether the fleet has no sandboxes, and since when.
func (f *Fleet) Unused() (since time.Time, unused bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.empty, len(f.members) == 0
}

// cutShort records why, if invocations still run that Shutdown does not wait for.
func (f *Fleet) cutShort(why error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.drained:
	default:
		f.cut = cmp.Or(f.cut, fmt.Errorf("running invocations were cut short: %w", why))
	}
}

// Stat describes one sandbox, for lists.
type Stat struct {
	ID          string        // "" while it is being created
	State       string        // a rapid.State, or "Making" or "Closing"
	Made        time.Time     // when it was created
	Invocations uint64        // answered invocations
	Idle        time.Duration // how long it has been idle; 0 if it is not
}

// Stats returns the sandboxes, oldest first. A sandbox with several places ([Share]) appears
// once; its Idle is that of the place that was used last.
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
		if i := slices.IndexFunc(stats, func(o Stat) bool { return st.ID != "" && o.ID == st.ID }); i >= 0 {
			o := &stats[i]
			o.Invocations += st.Invocations
			o.Idle = min(o.Idle, st.Idle)
			if st.Made.Before(o.Made) {
				o.Made = st.Made
			}
			continue
		}
		stats = append(stats, st)
	}
	slices.SortFunc(stats, func(a, b Stat) int { return cmp.Or(a.Made.Compare(b.Made), cmp.Compare(a.ID, b.ID)) })
	return stats
}
