package fleet

import (
	"context"
	"slices"
	"sync"

	"github.com/sandboxd/sandboxd/rapid"
)

// Share returns a Config.New that gives each sandbox of newSandbox n places in the
// fleet, for sandboxes that run up to n invocations at once (section 1.9). The fleet's
// Max counts places then. A sandbox is closed with the last of its places, and only so:
// who waits for one that has been made gets a place, even if the context has ended.
func Share(n int, newSandbox func(context.Context) (Sandbox, error)) func(context.Context) (Sandbox, error) {
	s := &sharing{n: n, make: newSandbox}
	return s.join
}

type sharing struct {
	n    int
	make func(context.Context) (Sandbox, error)

	mu   sync.Mutex
	open []*shared // those with a place, oldest first
}

// shared is one sandbox of several places.
type shared struct {
	made    chan struct{} // closed when the next two are valid
	sandbox Sandbox
	err     error

	places int // in use; sharing.mu. Who makes the sandbox has one until made is closed
}

// join takes a place of a sandbox that has one, else of a new one.
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

// over reports whether nobody can join b any more.
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

// enter takes a place of b, with s.mu held.
func (s *sharing) enter(b *shared) {
	b.places++
	if b.places == s.n {
		s.open = slices.DeleteFunc(s.open, func(o *shared) bool { return o == b })
	}
}

// abandon gives a place of b back, and reports true, if b is still being made. It is not
// the last one then. Once b has been made, all other places may have been given back: the
// one that is left must be used, and closed.
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

// leave gives a place of b back, and reports whether it was the last one in use.
func (s *sharing) leave(b *shared) (last bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.giveBack(b)
}

// giveBack is leave with s.mu held.
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

// place is one of a sandbox's places.
type place struct {
	Sandbox
	s      *sharing
	b      *shared
	joined bool // the sandbox was there, or being made, before the place
}

// Close gives the place back; with the last one it closes the sandbox.
func (p *place) Close(ctx context.Context) error {
	if !p.s.leave(p.b) {
		return nil
	}
	return p.Sandbox.Close(ctx)
}
