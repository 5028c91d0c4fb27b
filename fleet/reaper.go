package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// closeTimeout limits Close of one sandbox: the longest shutdown window (2 s, LC-64), the
// wait for killed processes (9 s, LC-63), and the removal of what the sandbox holds.
const closeTimeout = 20 * time.Second

// reap is the reaper of m: it waits until the sandbox has ended or has been idle for too
// long, and closes it.
func (f *Fleet) reap(m *member) {
	defer f.reapers.Done()
	f.watch(m)

	f.mu.Lock()
	f.move(m, leaving)
	f.mu.Unlock()
	// The removal cannot be canceled; it has its own deadline.
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

// watch waits until m has to be closed.
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

// done makes m free when its invocation is Done. If the sandbox has died, it leaves m to the
// reaper, which will notice that.
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

// Idle is an idle sandbox, or an idle place of one ([Share]).
type Idle struct {
	ID     string
	Since  time.Time
	member *member
}

// Idlers returns the idle sandboxes, the longest idle first, without provisioned ones.
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

// CloseIdle closes a sandbox from [Fleet.Idlers], unless it has been used since.
func (f *Fleet) CloseIdle(i Idle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i.member.phase == idle && i.member.since.Equal(i.Since) {
		f.discard(i.member)
	}
}

// spinDown moves m to leaving and returns 0, if it has been idle for IdleTimeout. Otherwise
// it returns how long that can take at least.
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
