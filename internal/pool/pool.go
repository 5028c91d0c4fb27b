// Package pool keeps things ready that take long to make, so that who needs one does
// not wait (ARCHITECTURE decision 2). It knows nothing of what they are.
package pool

import (
	"context"
	"sync"
	"time"
)

const (
	// window is how far back demand counts: a pool holds what was taken within it.
	window = 10 * time.Second
	// respite is left to whoever took something, once it has settled, before the next is
	// made: a refill would take the CPU that the taker needs.
	respite = 20 * time.Millisecond
	// patience bounds the wait for takers that do not settle, before each thing that is made:
	// demand must not leave the pool empty for good.
	patience = 100 * time.Millisecond
	// firstRetry and lastRetry bound the wait after a failed Make, which doubles.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// makeTime ends a Make that hangs: nothing else would be made, and nobody told.
	makeTime = time.Minute
	// checkEvery is how often a pool that holds something looks whether it still should.
	checkEvery = 5 * time.Second
)

// Config says what a pool holds. Make, Discard and Ceiling are required.
type Config[T any] struct {
	// Make makes one. It is called in the background, by one goroutine, and has a minute.
	Make func(ctx context.Context) (T, error)
	// Discard releases one that nobody took. It is called by the same goroutine.
	Discard func(T)
	// Floor is the least to hold. Zero is allowed: then the pool fills with demand.
	Floor int
	// Ceiling returns the most that could be used now. It wins over Floor. It is
	// called often and must be cheap.
	Ceiling func() int
	// Pressure reports that memory is short: then the pool holds nothing. May be nil.
	Pressure func() bool
	// OnError gets the errors of Make. May be nil.
	OnError func(error)
}

// Pool holds things of type T ready. All methods are safe for concurrent use.
type Pool[T any] struct {
	cfg    Config[T]
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // capacity 1

	mu    sync.Mutex
	ready []T
	takes []time.Time // within the window, oldest first, at most as many as Ceiling was

	unsettled int           // takers
	settled   time.Time     // when the last of them settled
	calm      chan struct{} // closed when all have; nil if there is none
}

// New returns a pool that begins to fill at once. The caller must Close it.
func New[T any](cfg Config[T]) *Pool[T] {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool[T]{cfg: cfg, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	go p.keep(ctx)
	return p
}

// Take returns one that is ready, the newest first, or false at once. It belongs to
// the caller. A miss counts as demand too.
//
// Until the caller calls settle, which it may do more than once, the pool makes nothing,
// but no longer than patience: whoever takes something has work to do with it, or makes
// one itself.
func (p *Pool[T]) Take() (thing T, settle func(), ok bool) {
	now := time.Now()
	p.mu.Lock()
	if p.unsettled++; p.calm == nil {
		p.calm = make(chan struct{})
	}
	p.takes = append(p.takes, now)
	if over := len(p.takes) - max(p.cfg.Ceiling(), 1); over > 0 {
		p.takes = p.takes[over:]
	}
	if n := len(p.ready); n > 0 {
		thing, ok = p.ready[n-1], true
		var zero T
		p.ready[n-1] = zero
		p.ready = p.ready[:n-1]
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return thing, sync.OnceFunc(p.settle), ok
}

func (p *Pool[T]) settle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.settled = time.Now()
	if p.unsettled--; p.unsettled == 0 {
		close(p.calm)
		p.calm = nil
	}
}

// Ready is how many are ready.
func (p *Pool[T]) Ready() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.ready)
}

// Close discards what nobody took and returns when that is done. Take finds nothing
// afterwards. Closing twice is allowed.
func (p *Pool[T]) Close() {
	p.cancel()
	<-p.done
}

// keep is the pool's one goroutine: it makes and discards until the pool is closed.
func (p *Pool[T]) keep(ctx context.Context) {
	defer close(p.done)
	defer p.empty()
	retry := firstRetry
	for {
		wait := checkEvery
		switch surplus, ok := p.surplus(); {
		case ok:
			p.cfg.Discard(surplus)
			continue
		case p.wants():
			if !p.rest(ctx) {
				return
			}
			if !p.wants() {
				continue
			}
			thing, err := p.make(ctx)
			if err == nil {
				p.put(thing)
				retry = firstRetry
				continue
			}
			if ctx.Err() != nil {
				return
			}
			if p.cfg.OnError != nil {
				p.cfg.OnError(err)
			}
			if !sleep(ctx, retry) {
				return
			}
			retry = min(2*retry, lastRetry)
			continue
		case p.Ready() == 0 && p.cfg.Pressure == nil:
			wait = window // nothing to look after; only demand changes that
		}
		timer := time.NewTimer(wait)
		select {
		case <-p.wake:
			timer.Stop()
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

func (p *Pool[T]) make(ctx context.Context) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	return p.cfg.Make(ctx)
}

// rest returns when respite has passed since all takers have settled, but after patience
// at the latest. It returns false if ctx ends first.
func (p *Pool[T]) rest(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		p.mu.Lock()
		calm, left := p.calm, respite-time.Since(p.settled)
		p.mu.Unlock()
		switch {
		case calm != nil:
			select {
			case <-calm:
			case <-bounded.Done():
				return ctx.Err() == nil
			}
		case left <= 0:
			return true
		case !sleep(bounded, left):
			return ctx.Err() == nil
		}
	}
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// target is how many to hold now: what was taken within the window, but at least the
// floor and at most the ceiling.
func (p *Pool[T]) target() int {
	if p.cfg.Pressure != nil && p.cfg.Pressure() {
		return 0
	}
	p.mu.Lock()
	old := time.Now().Add(-window)
	for len(p.takes) > 0 && p.takes[0].Before(old) {
		p.takes = p.takes[1:]
	}
	demand := len(p.takes)
	p.mu.Unlock()
	return min(max(demand, p.cfg.Floor), p.cfg.Ceiling())
}

func (p *Pool[T]) wants() bool { return p.Ready() < p.target() }

// surplus takes out the oldest if there are more than the target.
func (p *Pool[T]) surplus() (thing T, ok bool) {
	target := max(p.target(), 0)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.ready) <= target {
		return thing, false
	}
	thing = p.ready[0]
	p.ready = append(p.ready[:0], p.ready[1:]...)
	return thing, true
}

func (p *Pool[T]) put(thing T) {
	p.mu.Lock()
	p.ready = append(p.ready, thing)
	p.mu.Unlock()
}

// empty discards everything, for good.
func (p *Pool[T]) empty() {
	p.mu.Lock()
	rest := p.ready
	p.ready = nil
	p.mu.Unlock()
	for _, thing := range rest {
		p.cfg.Discard(thing)
	}
}
