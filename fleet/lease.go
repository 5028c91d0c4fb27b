package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// Lease is the right to run one invocation. The holder must call Invoke, once.
type Lease struct {
	f *Fleet
	m *member
}

// Invoke runs the invocation and returns when its answer is complete, or has begun if it is
// streamed; the caller must read a stream to its end. If the lease has no sandbox yet, Invoke
// creates one on this goroutine. Once a sandbox has accepted the invocation, it runs to its
// end, even if the answer is no longer needed.
//
// Failures of the function are Results. The error is ErrClosed if the fleet shuts down first,
// ErrCutShort if it does not wait for the answer, or in managed mode rapid.ErrUnavailable or
// rapid.ErrDuplicate. Any other error is a fault of the platform (INV-24).
func (l *Lease) Invoke(inv *rapid.Invocation) (*rapid.Result, error) {
	for {
		fresh := l.m.sandbox == nil
		if fresh {
			if err := l.make(); err != nil {
				return nil, err
			}
			if p, ok := l.m.sandbox.(*place); ok && p.joined {
				fresh = false
			}
		}
		res, err := l.m.sandbox.Invoke(l.f.life, inv)
		if err == nil {
			l.answered(res)
			return res, nil
		}
		if errors.Is(err, rapid.ErrUnavailable) || errors.Is(err, rapid.ErrDuplicate) { // the sandbox can take other invocations
			l.unused()
			return nil, fmt.Errorf("invoke sandbox %s: %w", l.m.sandbox.ID(), err)
		}
		l.broke()
		if l.f.life.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrCutShort, err)
		}
		// A sandbox that has died, or is being reset, since its last invocation has not
		// received this one, so another sandbox may run it. If a new sandbox cannot run its
		// first invocation, report the error: another sandbox would fail as well.
		unseen := errors.Is(err, rapid.ErrDead) || errors.Is(err, rapid.ErrBusy)
		if fresh || !unseen {
			return nil, fmt.Errorf("invoke sandbox %s: %w", l.m.sandbox.ID(), err)
		}
		if err := l.exchange(); err != nil {
			return nil, err
		}
	}
}

// make creates the sandbox of the lease and starts its reaper.
func (l *Lease) make() error {
	f, m := l.f, l.m
	s, err := f.newSandbox(m)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if m.provisioned && !f.closing {
			m.made = time.Now()
			f.replace(m)
		}
		f.remove(m)
		f.reapers.Done()
		if f.life.Err() != nil {
			return fmt.Errorf("%w: %w", ErrClosed, err)
		}
		return fmt.Errorf("create a sandbox: %w", err)
	}
	m.sandbox, m.made = s, time.Now()
	go f.reap(m)
	return nil
}

// answered records that the invocation is answered, and arranges for m.done to be called when
// it is Done.
func (l *Lease) answered(res *rapid.Result) {
	f, m := l.f, l.m
	f.mu.Lock()
	m.invocations++
	m.stream = res.Stream
	if m.phase == taken && res.Stream == nil { // else the sandbox has died, or the answer is still streamed
		f.move(m, finishing)
	}
	f.mu.Unlock()
	res.AfterDone(m.done)
}

// unused makes a sandbox free that did not run the invocation.
func (l *Lease) unused() {
	l.f.mu.Lock()
	l.f.giveBack(l.m)
	l.f.mu.Unlock()
}

// broke makes the reaper close a sandbox that refused its invocation.
func (l *Lease) broke() {
	l.f.mu.Lock()
	if l.m.phase == taken { // else the reaper has noticed that the sandbox died
		l.f.move(l.m, leaving)
	}
	l.f.mu.Unlock()
	close(l.m.broken)
}

// exchangeTime limits the wait in exchange. The place of a provisioned sandbox goes to its
// replacement, which may take long to initialize, or fail repeatedly.
const exchangeTime = time.Minute

// exchange replaces the lease's broken sandbox by another one or by a new place. If none is
// available, it waits at the head of the queue for the first that becomes free, which most
// often is the place of the broken sandbox.
func (l *Lease) exchange() error {
	f := l.f
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return ErrClosed
	}
	tenant := l.m.tenant
	if next := f.take(tenant, nil); next != nil {
		*l = *next
		f.mu.Unlock()
		return nil
	}
	w := waiter{tenant, make(chan grant, 1)}
	f.waiters = slices.Insert(f.waiters, 0, w)
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTime) // the context of the request applied to Reserve only
	defer cancel()
	next, err := f.wait(ctx, w)
	if err != nil {
		return err
	}
	*l = *next
	return nil
}
