package worker

import (
	"context"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
)

// trimEvery is the interval between checks of the idle sandboxes' memory.
const trimEvery = 5 * time.Second

// warmSet limits the memory of idle sandboxes, which would otherwise stay until their idle
// time-out. It closes the longest idle sandboxes of all functions first.
type warmSet struct {
	most  uint64      // most bytes of all idle sandboxes together
	short func() bool // reports whether the host is short of memory
}

// idler is an idle sandbox.
type idler struct {
	fleet *fleet.Fleet
	fleet.Idle
	bytes uint64 // its peak memory
}

// keep closes surplus idle sandboxes, and forgets functions without any, until ctx ends.
func (w warmSet) keep(ctx context.Context, f *functions) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			idlers := f.idlers()
			for _, i := range idlers[:w.surplus(idlers)] {
				i.fleet.CloseIdle(i.Idle)
			}
			f.dropUnused(f.w.config.IdleTimeout)
		case <-ctx.Done():
			return
		}
	}
}

// idlers returns the idle sandboxes of all functions, the longest idle first.
func (f *functions) idlers() (list []idler) {
	for _, s := range f.all() {
		for _, i := range s.fleet.Idlers() {
			list = append(list, idler{s.fleet, i, s.factory.memoryPeak(i.ID)})
		}
	}
	slices.SortStableFunc(list, func(a, b idler) int { return a.Since.Compare(b.Since) })
	return list
}

// surplus returns how many sandboxes to close, counted from the start of list. If the host
// is short of memory, that is at least half of them.
func (w warmSet) surplus(list []idler) int {
	bytes := make([]uint64, len(list))
	seen := map[string]bool{}
	var total uint64
	for i, idle := range list { // in managed mode an id appears once for each place
		if !seen[idle.ID] {
			bytes[i] = idle.bytes
		}
		seen[idle.ID] = true
		total += bytes[i]
	}
	n := 0
	if w.short() {
		n = (len(list) + 1) / 2
	}
	for _, b := range bytes[:n] {
		total -= b
	}
	for ; total > w.most; n++ {
		total -= bytes[n]
	}
	return n
}

// warmSet returns the limit for idle sandboxes: the operator's, or half of the host's
// memory.
func (w *worker) warmSet() warmSet {
	most := w.config.WarmMemory
	if most == 0 {
		total, _ := w.memory.Read()
		most = total / 2
	}
	return warmSet{most: most, short: w.memory.Short}
}

// memoryForAll returns how much memory the sandboxes of all functions may have together: the
// operator's choice, or that of the host.
func (w *worker) memoryForAll() uint64 {
	if w.config.Memory > 0 {
		return w.config.Memory
	}
	total, _ := w.memory.Read()
	return total
}

// memoryPeak returns the peak memory of a sandbox in bytes, or 0 while it is being removed.
func (f *factory) memoryPeak(id string) uint64 {
	s := f.find(id)
	if s == nil {
		return 0
	}
	peak, err := s.sup.MemoryPeak()
	if err != nil {
		return 0
	}
	return peak
}
