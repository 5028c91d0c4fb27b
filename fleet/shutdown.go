package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Shutdown takes no more invocations, waits until those that run are Done or ctx
// ends, and then closes all sandboxes in parallel (each within 20 s); callers of those that
// still run get ErrCutShort. It returns when nothing is left;
// the error joins the cause of ctx's end, if some ran then, with those of the sandboxes that
// did not close cleanly. A second call waits likewise and returns the same.
func (f *Fleet) Shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closing = true
	for _, w := range f.waiters {
		w.grant <- nil
	}
	f.waiters = nil
	f.noticeDrain()
	f.mu.Unlock()

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

// cutShort remembers that invocations do not get the time to end, and why, if any run.
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
	ID          string // "" while it is being made
	State       string // rapid's state; "Making" and "Closing" are the fleet's own
	Made        time.Time
	Invocations uint64        // answered ones
	Idle        time.Duration // how long it has been free; 0 unless it is
}

// Stats lists the sandboxes, oldest first. One of several places ([Share]) is listed
// once, and idle as long as its place that was used last.
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
