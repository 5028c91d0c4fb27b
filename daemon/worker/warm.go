package worker

import (
	"context"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
)

// trimEvery is how often the memory of idle sandboxes is looked at.
const trimEvery = 5 * time.Second

// warmSet bounds the memory that idle sandboxes hold, which else only their idle
// time-out ends. Of all functions' sandboxes the ones idle longest go first.
type warmSet struct {
	most  uint64      // bytes that all may hold together
	short func() bool // the host's memory is short
}

// idler is an idle sandbox.
type idler struct {
	fleet *fleet.Fleet
	fleet.Idle
	bytes uint64 // the most that it ever had
}

// keep closes idle sandboxes until ctx ends.
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
		case <-ctx.Done():
			return
		}
	}
}

// idlers are the idle sandboxes of all functions, the longest idle first.
func (f *functions) idlers() (list []idler) {
	for _, s := range f.all() {
		for _, i := range s.fleet.Idlers() {
			list = append(list, idler{s.fleet, i, s.factory.memoryPeak(i.ID)})
		}
	}
	slices.SortStableFunc(list, func(a, b idler) int { return a.Since.Compare(b.Since) })
	return list
}

// surplus is how many of the idle sandboxes, from the first on, have to go. When the host's
// memory is short half of them do, and half of the rest the next time.
func (w warmSet) surplus(list []idler) int {
	bytes := make([]uint64, len(list))
	seen := map[string]bool{}
	var total uint64
	for i, idle := range list { // in managed mode an id comes once for each place
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

// warmSet says how much memory idle sandboxes may hold: half of the host's unless the
// operator says otherwise.
func (w *worker) warmSet() warmSet {
	most := w.config.WarmMemory
	if most == 0 {
		total, _ := w.memory.Read()
		most = total / 2
	}
	return warmSet{most: most, short: w.memory.Short}
}

// memoryPeak is the most memory in bytes that a sandbox ever had, 0 for one that is being
// removed.
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
