package fleet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"
)

// ErrNotReady says that a provisioned sandbox ended before it had initialized (LC-09).
var ErrNotReady = errors.New("the initialization failed; the sandbox's log has the reason")

// The pauses before a provisioned sandbox that died young is made again.
const (
	firstPause = time.Second
	longPause  = time.Minute
)

// Provision makes the provisioned sandboxes and returns when all have initialized,
// or with the first error: what cannot initialize is not put to use (LC-09). Call it
// once, before Reserve.
func (f *Fleet) Provision(ctx context.Context) error {
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return ErrClosed
	}
	members := make([]*member, min(f.cfg.Provisioned, f.cfg.Max))
	for i := range members {
		members[i] = f.place(&member{provisioned: true, phase: warming})
	}
	f.mu.Unlock()
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(runtime.GOMAXPROCS(0)) // each has a time limit: more at once would only be slower
	for _, m := range members {
		all.Go(func() error { return f.provision(ctx, m) })
	}
	return all.Wait()
}

// provision gives m its sandbox and waits until that is ready for use.
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
	if m.phase == warming { // else its reaper has found it dead
		f.move(m, idle)
	}
	f.mu.Unlock()
	return nil
}

// replace makes a provisioned member in the place of a dead one, with f.mu held and
// before that is removed: nobody else gets the place. After one that died young there is
// a pause, which doubles.
func (f *Fleet) replace(dead *member) {
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

// newSandbox makes the sandbox of m.
func (f *Fleet) newSandbox(m *member) (Sandbox, error) {
	if m.provisioned {
		return f.cfg.NewProvisioned(f.life)
	}
	return f.cfg.New(f.life)
}
