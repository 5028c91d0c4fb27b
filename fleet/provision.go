package fleet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
)

// ErrNotReady reports that a provisioned sandbox ended before it had initialized (LC-09).
var ErrNotReady = errors.New("the initialization failed; the sandbox's log has the reason")

// First and longest pause before a provisioned sandbox that died soon after its creation is
// replaced.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

// Provision creates the provisioned sandboxes and returns when all have initialized. If one
// cannot initialize, Provision returns the first error, and the fleet must not be used
// (LC-09). Call it once, before Reserve.
func (f *Fleet) Provision(ctx context.Context) error {
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return ErrClosed
	}
	members := make([]*member, min(f.cfg.Provisioned, f.cfg.Max))
	for i := range members {
		f.cfg.Budget.force(f)
		members[i] = f.place(&member{provisioned: true, phase: warming})
	}
	f.mu.Unlock()
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(runtime.GOMAXPROCS(0)) // more at once would be slower, and each has a time limit
	for _, m := range members {
		all.Go(func() error { return f.provision(ctx, m) })
	}
	return all.Wait()
}

// provision creates the sandbox of m and waits until it has initialized.
func (f *Fleet) provision(ctx context.Context, m *member) error {
	if err := (&Lease{f: f, m: m}).make(); err != nil {
		return err
	}
	select {
	case <-m.sandbox.Ready():
	case <-m.sandbox.Ended():
		return fmt.Errorf("provision sandbox %s: %w", m.sandbox.ID(), ErrNotReady)
	case <-f.life.Done():
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("provision sandbox %s: %w", m.sandbox.ID(), ctx.Err())
	}
	f.mu.Lock()
	if m.phase == warming { // else the reaper has noticed that the sandbox died
		f.move(m, idle)
	}
	f.mu.Unlock()
	return nil
}

// replace adds a provisioned member in place of a dead one, and creates its sandbox in the
// background. If the dead one died soon after its creation, replace pauses first, twice as
// long each time. The caller holds f.mu, and removes the dead member afterwards, so that no
// request gets the place.
func (f *Fleet) replace(dead *member) {
	f.cfg.Budget.force(f)
	m := f.place(&member{provisioned: true, phase: warming})
	if !dead.yields && time.Since(dead.made) < longPause {
		m.pause = min(max(2*dead.pause, firstPause), longPause)
	}
	go func() {
		t := time.NewTimer(m.pause)
		defer t.Stop()
		select {
		case <-t.C:
		case <-f.life.Done():
		}
		if err := f.provision(f.life, m); err != nil && f.life.Err() == nil {
			f.cfg.OnError(err)
		}
	}()
}

// newSandbox creates the sandbox of m.
func (f *Fleet) newSandbox(m *member) (Sandbox, error) {
	if m.provisioned {
		return f.cfg.NewProvisioned(f.life)
	}
	return f.cfg.New(f.life)
}
