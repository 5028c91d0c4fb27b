package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// ErrTooLarge reports that one sandbox of the fleet needs more memory than its [Budget] has.
var ErrTooLarge = errors.New("a sandbox needs more memory than all sandboxes together may have")

// Budget limits the sandboxes of several fleets together: their number, and their memory.
// When there is no room for a new sandbox, the longest idle ones of all fleets are closed.
// If none is idle, but one is about to be, the request waits for it; other requests get
// ErrNoRoom at once. Requests get room in the order of their arrival.
//
// A sandbox that is being closed does not count any more, so that nobody waits for its
// removal. As many as the limit may be on their way out at once. Provisioned sandboxes count,
// and are never closed to make room.
//
// An invocation of an idle sandbox does not involve the Budget, except for one atomic load
// when it is Done.
type Budget struct {
	sandboxes int
	memory    uint64
	waiting   atomic.Int32 // length of queue

	mu      sync.Mutex // may be locked while a Fleet.mu is held, not the other way round
	used    int
	bytes   uint64
	leaving int                 // sandboxes that are being closed
	fleets  map[*Fleet]struct{} // those that may have sandboxes
	queue   []*turn             // longest waiting first
}

// A turn is a place in the queue.
type turn struct {
	wake chan struct{} // capacity 1; receives a value when the first turn must look again
}

// NewBudget returns a budget for that many sandboxes, with that many bytes of memory
// together; 0 bytes are no limit.
func NewBudget(sandboxes int, bytes uint64) *Budget {
	if bytes == 0 {
		bytes = 1 << 62
	}
	return &Budget{sandboxes: max(sandboxes, 1), memory: bytes, fleets: map[*Fleet]struct{}{}}
}

// take takes room for a sandbox of f. It returns false if there is none, or if others wait
// for it; t is the turn of the request, nil if it does not wait. The caller holds f.mu.
func (b *Budget) take(f *Fleet, t *turn) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) > 0 && b.queue[0] != t || !b.fits(b.used, b.bytes+f.cfg.Memory) {
		return false
	}
	b.add(f)
	return true
}

// force takes room for a provisioned sandbox of f, even if there is none. The caller holds
// f.mu.
func (b *Budget) force(f *Fleet) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.add(f)
}

// add records one more sandbox of f. The caller holds b.mu.
func (b *Budget) add(f *Fleet) {
	b.used++
	b.bytes += f.cfg.Memory
	b.fleets[f] = struct{}{}
}

// fits reports whether one more sandbox fits beside used others, with which there are that
// many bytes. The caller holds b.mu.
func (b *Budget) fits(used int, bytes uint64) bool {
	return used < b.sandboxes && b.used+b.leaving < 2*b.sandboxes && bytes <= b.memory
}

// closes gives back the room of a sandbox of f that is going to be closed. The caller holds
// f.mu.
func (b *Budget) closes(f *Fleet) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used--
	b.bytes -= f.cfg.Memory
	b.leaving++
	b.wakeFirst()
}

// closed records that such a sandbox is gone, or was never made. The caller holds f.mu.
func (b *Budget) closed(f *Fleet) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leaving--
	if len(f.members) == 0 {
		delete(b.fleets, f)
	}
	b.wakeFirst()
}

// signal makes the first turn look again, because a sandbox has become idle.
func (b *Budget) signal() {
	if b == nil || b.waiting.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wakeFirst()
}

// wakeFirst makes the first turn look again. The caller holds b.mu.
func (b *Budget) wakeFirst() {
	if len(b.queue) == 0 {
		return
	}
	select {
	case b.queue[0].wake <- struct{}{}:
	default: // it will look again anyway
	}
}

// wakeAll makes all turns look again, because a fleet is shut down.
func (b *Budget) wakeAll() {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range b.queue {
		select {
		case t.wake <- struct{}{}:
		default:
		}
	}
}

// wait returns a lease of f when there is room for its sandbox. It returns ErrNoRoom if no
// sandbox is going to make room.
func (b *Budget) wait(ctx context.Context, f *Fleet, tenant string) (*Lease, error) {
	if f.cfg.Memory > b.memory {
		return nil, fmt.Errorf("%w: %d MB of %d MB", ErrTooLarge, f.cfg.Memory>>20, b.memory>>20)
	}
	l, err := b.queued(ctx, f, tenant)
	if err == errFull {
		return f.Reserve(ctx, tenant)
	}
	return l, err
}

// errFull reports that the fleet has Max sandboxes, so the Budget does not matter.
var errFull = errors.New("the fleet has as many sandboxes as it may have")

// queued implements wait. It returns errFull if there can be no other sandbox of f.
func (b *Budget) queued(ctx context.Context, f *Fleet, tenant string) (*Lease, error) {
	t := &turn{make(chan struct{}, 1)}
	b.mu.Lock()
	b.queue = append(b.queue, t)
	b.waiting.Add(1)
	b.mu.Unlock()
	defer b.leave(t)
	for {
		l, err := f.grab(tenant, t)
		if l != nil || err != nil {
			return l, err
		}
		room, soon := b.makeRoom(f.cfg.Memory, t)
		if room {
			continue
		}
		if b.position(t) >= soon {
			return nil, ErrNoRoom
		}
		select {
		case <-t.wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for room for a sandbox: %w", ctx.Err())
		}
	}
}

// leave removes t from the queue. The next turn looks whether there is more room.
func (b *Budget) leave(t *turn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, t)
	b.queue = slices.Delete(b.queue, i, i+1)
	b.waiting.Add(-1)
	b.wakeFirst()
}

// position returns how many turns are before t.
func (b *Budget) position(t *turn) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Index(b.queue, t)
}

// makeRoom closes the longest idle sandboxes of all fleets, as many as it takes for one of
// that many bytes, if t is the first turn. It closes none if that is not enough. It returns
// whether there is room now, and how many sandboxes are about to be idle or gone.
func (b *Budget) makeRoom(bytes uint64, t *turn) (room bool, soon int) {
	b.mu.Lock()
	fleets := make([]*Fleet, 0, len(b.fleets))
	for f := range b.fleets {
		fleets = append(fleets, f)
	}
	first := b.queue[0] == t
	b.mu.Unlock()
	type idler struct {
		Idle
		fleet *Fleet
	}
	var idlers []idler
	for _, f := range fleets {
		f.mu.Lock()
		f.finalizeStreams()
		soon += f.count[finishing]
		f.mu.Unlock()
		for _, i := range f.Idlers() {
			idlers = append(idlers, idler{i, f})
		}
	}
	slices.SortFunc(idlers, func(a, b idler) int { return a.Since.Compare(b.Since) })

	b.mu.Lock()
	soon += b.leaving
	used, total, n := b.used, b.bytes+bytes, 0
	for ; n < len(idlers) && !b.fits(used, total); n++ {
		used--
		total -= idlers[n].fleet.cfg.Memory
	}
	room = first && b.fits(used, total)
	b.mu.Unlock()
	if !room {
		if !first { // those before may leave some of them
			soon += len(idlers)
		}
		return false, soon
	}
	for _, i := range idlers[:n] {
		i.fleet.CloseIdle(i.Idle)
	}
	return true, soon
}
