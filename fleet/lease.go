package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// Lease is the right to run one invocation. Its holder must call Invoke, once.
type Lease struct {
	f *Fleet
	m *member
}

// Invoke runs the invocation and returns when its answer is complete, or has begun if
// it is a stream, which must then be read to its end. If the lease has
// no sandbox yet, it makes one on this goroutine. An invocation that a sandbox has
// taken runs to its end, whether or not anybody still wants the answer.
//
// Failures of the function are Results. The error is ErrClosed when the fleet shuts
// down first, ErrCutShort when it does not wait for the answer, or rapid's ErrUnavailable
// or ErrDuplicate in managed mode; any other error is the platform's fault (INV-24).
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
		if errors.Is(err, rapid.ErrUnavailable) || errors.Is(err, rapid.ErrDuplicate) { // the sandbox is well
			l.unused()
			return nil, fmt.Errorf("invoke sandbox %s: %w", l.m.sandbox.ID(), err)
		}
		l.broke()
		if l.f.life.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ErrCutShort, err)
		}
		// A sandbox that died, or is being reset, since its last invocation has not
		// seen this one, so another sandbox may run it. A new sandbox that cannot
		// take its first invocation is a fault to tell, not to repeat.
		unseen := errors.Is(err, rapid.ErrDead) || errors.Is(err, rapid.ErrBusy)
		if fresh || !unseen {
			return nil, fmt.Errorf("invoke sandbox %s: %w", l.m.sandbox.ID(), err)
		}
		if err := l.exchange(); err != nil {
			return nil, err
		}
	}
}

// make fills the lease's place with a new sandbox and starts its reaper.
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
		return fmt.Errorf("make a sandbox: %w", err)
	}
	m.sandbox, m.made = s, time.Now()
	go f.reap(m)
	return nil
}

// answered notes that the invocation has its answer, and has its end noted.
func (l *Lease) answered(res *rapid.Result) {
	f, m := l.f, l.m
	f.mu.Lock()
	m.invocations++
	m.stream = res.Stream
	if m.phase == taken && res.Stream == nil { // else the reaper has found it dead, or waits for the end of the stream
		f.move(m, finishing)
	}
	f.mu.Unlock()
	res.AfterDone(m.done)
}

// unused frees a sandbox that did not run the invocation.
func (l *Lease) unused() {
	l.f.mu.Lock()
	l.f.giveBack(l.m)
	l.f.mu.Unlock()
}

// broke has the reaper close a sandbox that did not take its invocation.
func (l *Lease) broke() {
	l.f.mu.Lock()
	if l.m.phase == taken { // else the reaper has found it dead
		l.f.move(l.m, leaving)
	}
	l.f.mu.Unlock()
	close(l.m.broken)
}

// exchangeTime is how long exchange waits. The place of a provisioned sandbox is its
// successor's, which may take long, and fail again and again.
const exchangeTime = time.Minute

// exchange trades a broken sandbox for another or for a new place. It takes what is
// there, else it waits, before all others, for what becomes free first: most often the
// place of the broken one.
func (l *Lease) exchange() error {
	f := l.f
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return ErrClosed
	}
	tenant := l.m.tenant
	if f.available(tenant) {
		*l = *f.take(tenant)
		f.mu.Unlock()
		return nil
	}
	w := waiter{tenant, make(chan *Lease, 1)}
	f.waiters = slices.Insert(f.waiters, 0, w)
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTime) // that of the request is over with Reserve
	defer cancel()
	next, err := f.wait(ctx, w)
	if err != nil {
		return err
	}
	*l = *next
	return nil
}
