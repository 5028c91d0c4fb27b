package fleet

import (
	"context"
	"slices"
	"sync"

	"github.com/sandboxd/sandboxd/rapid"
)

// Share returns a function for Config.New that divides each sandbox of newSandbox into n
// places, for sandboxes that run up to n invocations at once (section 1.9). The fleet's Max
// then is the number of places. A sandbox is closed when its last place is closed. So a caller
// that waits for a sandbox gets a place of it once it has been created, even if its context
// has ended meanwhile: otherwise nothing might close the sandbox.
func Share(n int, newSandbox func(context.Context) (Sandbox, error)) func(context.Context) (Sandbox, error) {
	s := &sharing{n: n, make: newSandbox}
	return s.join
}

type sharing struct {
	n    int
	make func(context.Context) (Sandbox, error)

	mu   sync.Mutex
	open []*shared // sandboxes with a free place, oldest first
}

// shared is one sandbox with several places.
type shared struct {
	made    chan struct{} // closed when sandbox and err are valid
	sandbox Sandbox
	err     error

	places int // in use, including that of the goroutine that creates the sandbox; guarded by sharing.mu
}

// join returns a place of a sandbox that has a free one, or else of a new sandbox.
func (s *sharing) join(ctx context.Context) (Sandbox, error) {
	s.mu.Lock()
	s.open = slices.DeleteFunc(s.open, (*shared).over)
	if len(s.open) > 0 {
		b := s.open[0]
		s.enter(b)
		s.mu.Unlock()
		select {
		case <-b.made:
		case <-ctx.Done():
			if s.abandon(b) {
				return nil, ctx.Err()
			}
		}
		if b.err != nil {
			s.leave(b)
			return nil, b.err
		}
		return &place{b.sandbox, s, b, true}, nil
	}
	b := &shared{made: make(chan struct{})}
	s.open = append(s.open, b)
	s.enter(b)
	s.mu.Unlock()
	b.sandbox, b.err = s.make(ctx)
	close(b.made)
	if b.err != nil {
		s.leave(b)
		return nil, b.err
	}
	return &place{b.sandbox, s, b, false}, nil
}

// over reports whether b can take no more invocations.
func (b *shared) over() bool {
	select {
	case <-b.made:
	default:
		return false
	}
	if b.err != nil {
		return true
	}
	switch b.sandbox.State() {
	case rapid.Resetting, rapid.ShuttingDown, rapid.Dead:
		return true
	}
	return false
}

// enter takes a place of b. The caller holds s.mu.
func (s *sharing) enter(b *shared) {
	b.places++
	if b.places == s.n {
		s.open = slices.DeleteFunc(s.open, func(o *shared) bool { return o == b })
	}
}

// abandon gives a place of b back and returns true, if b is still being created: then the
// place is not the last one. If b has been created, it returns false: all other places may
// have been given back, so the caller must use its place and close it.
func (s *sharing) abandon(b *shared) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-b.made:
		return false
	default:
	}
	s.giveBack(b)
	return true
}

// leave gives a place of b back, and reports whether it was the last one.
func (s *sharing) leave(b *shared) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.giveBack(b)
}

// giveBack implements leave. The caller holds s.mu.
func (s *sharing) giveBack(b *shared) (last bool) {
	b.places--
	if b.places == 0 {
		s.open = slices.DeleteFunc(s.open, func(o *shared) bool { return o == b })
		return true
	}
	if !slices.Contains(s.open, b) {
		s.open = append(s.open, b)
	}
	return false
}

// place is one place of a sandbox. It implements Sandbox.
type place struct {
	Sandbox
	s      *sharing
	b      *shared
	joined bool // another place has created the sandbox
}

// Close gives the place back. If it is the last one, Close closes the sandbox.
func (p *place) Close(ctx context.Context) error {
	if !p.s.leave(p.b) {
		return nil
	}
	return p.Sandbox.Close(ctx)
}
