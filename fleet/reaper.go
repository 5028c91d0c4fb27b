package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// closeTimeout bounds the closing of one sandbox: the widest shutdown window (2 s,
// LC-64), the wait for kills (9 s, LC-63), and the removal of what it held.
const closeTimeout = 20 * time.Second

// reap waits for the end of the sandbox, or until nobody has needed
// it for long, then closes it: it is the reaper of m.
func (f *Fleet) reap(m *member) {
	defer f.reapers.Done()
	f.watch(m)

	f.mu.Lock()
	f.move(m, leaving)
	f.mu.Unlock()
	// Tear-down cannot be cancelled; it has a deadline of its own.
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := m.sandbox.Close(ctx)
	if err != nil {
		err = fmt.Errorf("close sandbox %s: %w", m.sandbox.ID(), err)
	}
	f.mu.Lock()
	closing := f.closing
	if m.provisioned && !closing {
		f.replace(m)
	}
	f.remove(m)
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
		case <-tooLong:
			left := f.spinDown(m)
			if left == 0 {
				return
			}
			timer.Reset(left)
		case <-m.broken:
			return
		case <-m.sandbox.Ended():
			return
		case <-f.life.Done():
			return
		}
	}
}

// done frees m at the end of its invocation. One whose sandbox has died stays with its
// reaper, which will see that.
func (f *Fleet) done(m *member) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.stream != nil {
		f.streamed(m)
	}
	if m.phase == finishing && m.sandbox.State() != rapid.Dead {
		f.move(m, idle)
	}
}

// Idle is a sandbox that is idle, or a place of one ([Share]).
type Idle struct {
	ID     string
	Since  time.Time
	member *member
}

// Idlers lists the sandboxes that are idle, the longest idle first. Provisioned ones are not
// among them.
func (f *Fleet) Idlers() (list []Idle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.idle {
		if !m.provisioned {
			list = append(list, Idle{m.sandbox.ID(), m.since, m})
		}
	}
	return list
}

// CloseIdle closes a sandbox of [Fleet.Idlers], unless it was used since.
func (f *Fleet) CloseIdle(i Idle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i.member.phase == idle && i.member.since.Equal(i.Since) {
		f.discard(i.member)
	}
}

// spinDown withdraws m from use if it has been idle for long; else it says when that may
// be so.
func (f *Fleet) spinDown(m *member) (left time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.phase != idle || m.provisioned {
		return f.cfg.IdleTimeout
	}
	if left := f.cfg.IdleTimeout - time.Since(m.since); left > 0 {
		return left
	}
	f.move(m, leaving)
	return 0
}
