// Package pool keeps things ready that take long to make, so that whoever needs one does
// not wait (docs/decisions/0008). Things come in shapes: one is of use only to those who
// ask for its shape. The package knows nothing of what things and shapes are.
package pool

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// window is how far back demand counts: a pool holds what was taken within it.
	window = 10 * time.Second
	// respite passes, once a taker has finished, before the next thing is made: a refill
	// would take the CPU that the taker still needs.
	respite = 20 * time.Millisecond
	// patience bounds the wait for takers that do not finish, before each thing that is made:
	// demand must not leave the pool empty for good.
	patience = 100 * time.Millisecond
	// firstRetry and lastRetry bound the wait after a failed Make, which doubles.
	firstRetry = time.Second
	lastRetry  = 30 * time.Second
	// makeTime bounds a Make: its context ends then.
	makeTime = time.Minute
	// discards is how many things a pool that is closed discards at once.
	discards = 16
	// checkEvery is how often a pool that holds something looks whether it still should.
	checkEvery = 5 * time.Second
)

// Config says what a pool holds. Make, Discard and Ceiling are required.
type Config[K comparable, T any] struct {
	// Make makes one of that shape. It is called in the background, by one goroutine, and
	// has a minute.
	Make func(ctx context.Context, shape K) (T, error)
	// Discard releases one that nobody took. It is called by the same goroutine, but by
	// several at once when the pool is closed.
	Discard func(T)
	// Floor is the least to hold of each shape that is in use ([Pool.Use]). Zero is allowed:
	// then the pool fills with demand.
	Floor int
	// Ceiling returns the most that could be used now, of all shapes together. It wins over
	// Floor. It is called often and must be cheap.
	Ceiling func() int
	// Pressure reports that memory is short: then the pool holds nothing. May be nil.
	Pressure func() bool
	// OnError gets the errors of Make. May be nil.
	OnError func(error)
}

// Pool holds things of type T ready, by their shapes. All methods are safe for concurrent
// use.
type Pool[K comparable, T any] struct {
	cfg    Config[K, T]
	cancel context.CancelFunc
	done   chan struct{}
	wake   chan struct{} // capacity 1

	mu     sync.Mutex
	shapes map[K]*shelf[T]
	order  []K // of shapes, the one that was asked for last at the end

	busy     int           // takers that have not finished
	finished time.Time     // when the last of them did
	calm     chan struct{} // closed when all have; nil if there is none
}

// shelf is what the pool knows of one shape.
type shelf[T any] struct {
	users int         // see Use
	ready []T         // oldest first
	takes []time.Time // within the window, oldest first, at most as many as Ceiling was
}

// New returns a pool, which fills as soon as a shape is in use. The caller must Close it.
func New[K comparable, T any](cfg Config[K, T]) *Pool[K, T] {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool[K, T]{cfg: cfg, cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1), shapes: map[K]*shelf[T]{}}
	go p.keep(ctx)
	return p
}

// Use says that things of that shape may be asked for, until the function that it returns
// is called, which is done once.
func (p *Pool[K, T]) Use(shape K) (done func()) {
	p.mu.Lock()
	p.shelf(shape).users++
	p.mu.Unlock()
	p.Look()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		p.shelf(shape).users--
		p.mu.Unlock()
		p.Look()
	})
}

// shelf returns the shape's shelf, with p.mu held.
func (p *Pool[K, T]) shelf(shape K) *shelf[T] {
	s := p.shapes[shape]
	if s == nil {
		s = new(shelf[T])
		p.shapes[shape] = s
		p.order = append(p.order, shape)
	}
	return s
}

// Look has the pool look at once whether there is something to do. Call it when what Ceiling
// returns has risen and demand may wait for it.
func (p *Pool[K, T]) Look() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Take returns one of that shape that is ready, the newest first, or false at once. It
// belongs to the caller. A miss counts as demand too.
//
// Until the caller calls finish, which it may do more than once, the pool makes nothing,
// but no longer than patience: whoever takes something has work to do with it, or makes
// one itself.
func (p *Pool[K, T]) Take(shape K) (thing T, finish func(), ok bool) {
	now := time.Now()
	p.mu.Lock()
	if p.busy++; p.calm == nil {
		p.calm = make(chan struct{})
	}
	s := p.shelf(shape)
	if i := slices.Index(p.order, shape); i < len(p.order)-1 {
		p.order = append(slices.Delete(p.order, i, i+1), shape)
	}
	s.takes = append(s.takes, now)
	if over := len(s.takes) - max(p.cfg.Ceiling(), 1); over > 0 {
		s.takes = s.takes[over:]
	}
	if n := len(s.ready); n > 0 {
		thing, ok = s.ready[n-1], true
		var zero T
		s.ready[n-1] = zero
		s.ready = s.ready[:n-1]
	}
	p.mu.Unlock()
	p.Look()
	return thing, sync.OnceFunc(p.finish), ok
}

func (p *Pool[K, T]) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finished = time.Now()
	if p.busy--; p.busy == 0 {
		close(p.calm)
		p.calm = nil
	}
}

// Ready is how many of that shape are ready.
func (p *Pool[K, T]) Ready(shape K) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.shapes[shape]; s != nil {
		return len(s.ready)
	}
	return 0
}

// Close discards what nobody took and returns when that is done. Take finds nothing
// afterwards. Closing twice is allowed. If ctx ends first, because a Make or a Discard
// hangs, the error is its.
func (p *Pool[K, T]) Close(ctx context.Context) error {
	p.cancel()
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keep is the pool's one goroutine: it makes and discards until the pool is closed.
func (p *Pool[K, T]) keep(ctx context.Context) {
	defer close(p.done)
	defer p.empty()
	retry := firstRetry
	for {
		wait := checkEvery
		if surplus, ok := p.surplus(); ok {
			p.cfg.Discard(surplus)
			continue
		}
		if _, wants := p.wants(); wants {
			if !p.rest(ctx) {
				return
			}
			shape, wants := p.wants() // it may have changed
			if !wants {
				continue
			}
			thing, err := p.make(ctx, shape)
			if err == nil {
				p.put(shape, thing)
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
		}
		if p.isEmpty() && p.cfg.Pressure == nil {
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

func (p *Pool[K, T]) make(ctx context.Context, shape K) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, makeTime)
	defer cancel()
	return p.cfg.Make(ctx, shape)
}

// rest returns when respite has passed since all takers have finished, but after patience
// at the latest. It returns false if ctx ends first.
func (p *Pool[K, T]) rest(ctx context.Context) bool {
	bounded, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		p.mu.Lock()
		calm, left := p.calm, respite-time.Since(p.finished)
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

// target is how many of a shape to hold if left may be held at all: what was taken within
// the window, but at least the floor if the shape is in use. The caller holds p.mu.
func (p *Pool[K, T]) target(s *shelf[T], left int) int {
	old := time.Now().Add(-window)
	for len(s.takes) > 0 && s.takes[0].Before(old) {
		s.takes = s.takes[1:]
	}
	if s.users == 0 {
		return 0
	}
	return max(min(max(len(s.takes), p.cfg.Floor), left), 0)
}

// left is how many things may be held of all shapes together.
func (p *Pool[K, T]) left() int {
	if p.cfg.Pressure != nil && p.cfg.Pressure() {
		return 0
	}
	return p.cfg.Ceiling()
}

// wants returns a shape of which there are less than the target. Shapes that were asked for
// last come first.
func (p *Pool[K, T]) wants() (shape K, ok bool) {
	left := p.left()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, shape := range slices.Backward(p.order) {
		s := p.shapes[shape]
		target := p.target(s, left)
		if len(s.ready) < target {
			return shape, true
		}
		left -= target
	}
	return shape, false
}

// surplus takes out the oldest of a shape of which there are more than the target. It
// forgets shapes that are of no use any more.
func (p *Pool[K, T]) surplus() (thing T, ok bool) {
	left := p.left()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, shape := range slices.Backward(slices.Clone(p.order)) {
		s := p.shapes[shape]
		target := p.target(s, left)
		if len(s.ready) > target {
			thing = s.ready[0]
			s.ready = slices.Delete(s.ready, 0, 1)
			return thing, true
		}
		if left -= target; s.users == 0 && len(s.takes) == 0 {
			delete(p.shapes, shape)
			p.order = slices.DeleteFunc(p.order, func(o K) bool { return o == shape })
		}
	}
	return thing, false
}

func (p *Pool[K, T]) isEmpty() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shapes {
		if len(s.ready) > 0 {
			return false
		}
	}
	return true
}

func (p *Pool[K, T]) put(shape K, thing T) {
	p.mu.Lock()
	s := p.shelf(shape)
	s.ready = append(s.ready, thing)
	p.mu.Unlock()
}

// empty discards everything, for good.
func (p *Pool[K, T]) empty() {
	p.mu.Lock()
	var rest []T
	for _, s := range p.shapes {
		rest = append(rest, s.ready...)
		s.ready = nil
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	free := make(chan struct{}, discards)
	for _, thing := range rest {
		free <- struct{}{}
		wg.Go(func() {
			p.cfg.Discard(thing)
			<-free
		})
	}
	wg.Wait()
}
