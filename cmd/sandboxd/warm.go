package main

import (
	"context"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
)

// trimEvery is how often the memory of idle sandboxes is looked at.
const trimEvery = 5 * time.Second

// warmSet bounds the memory that idle sandboxes hold, which else only their idle
// time-out ends. The ones idle longest go first.
type warmSet struct {
	most  uint64                         // bytes that all may hold together
	peak  func(id string) (bytes uint64) // the most that a sandbox ever had
	short func() bool                    // the host's memory is short
}

// keep trims the fleet until ctx ends.
func (w warmSet) keep(ctx context.Context, f *fleet.Fleet) {
	tick := time.NewTicker(trimEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f.Trim(w.surplus)
		case <-ctx.Done():
			return
		}
	}
}

// surplus is how many of the idle sandboxes, the longest idle first, have to go. When
// the host's memory is short half of them do, and half of the rest the next time.
func (w warmSet) surplus(ids []string) int {
	bytes := make([]uint64, len(ids))
	seen := map[string]bool{}
	var total uint64
	for i, id := range ids { // in managed mode an id comes once for each place
		if !seen[id] {
			bytes[i] = w.peak(id)
		}
		seen[id] = true
		total += bytes[i]
	}
	n := 0
	if w.short() {
		n = (len(ids) + 1) / 2
	}
	for _, b := range bytes[:n] {
		total -= b
	}
	for ; total > w.most; n++ {
		total -= bytes[n]
	}
	return n
}

// warmSet says how much memory the idle sandboxes of the factory may hold; most 0
// stands for half of the host's.
func (f *factory) warmSet(most uint64, host meminfo) warmSet {
	if total, _ := host.read(); most == 0 {
		most = total / 2
	}
	return warmSet{most: most, peak: f.memoryPeak, short: host.short}
}

// memoryPeak is 0 for a sandbox that is being removed.
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
