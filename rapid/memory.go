package rapid

import (
	"sync/atomic"
	"time"
)

const (
	// lookEvery is the interval in which the memory of a sandbox that works is looked at
	// (docs/decisions/0044). An invocation that is shorter is looked at once, for its report.
	lookEvery = 20 * time.Millisecond
	// lookSeldom is the interval for work that lasts for seconds.
	lookSeldom = 100 * time.Millisecond
	// looksEach is how many looks it takes until the interval grows by lookEvery.
	looksEach = 16
)

// memoryWatch looks at the memory of a sandbox while it works. Between two looks the kernel
// knows the peak of all memory only, page cache included. The timer is not stopped at the
// end of an invocation: that it may fire in vain costs less.
type memoryWatch struct {
	timer *time.Timer
	on    atomic.Bool // the timer is set, or its function runs
	looks int         // since on was set; only the timer's function uses it
}

// watchMemory begins the looks, unless they have begun.
func (s *Sandbox) watchMemory() {
	if s.watch.on.CompareAndSwap(false, true) {
		s.watch.timer.Reset(lookEvery)
	}
}

// lookAtMemory is the function of the timer.
func (s *Sandbox) lookAtMemory() {
	w := &s.watch
	if s.State().works() {
		_, _ = s.sup.MemoryUsed() // the report of the invocation deals with an error
		w.looks++
		w.timer.Reset(min(lookEvery*time.Duration(1+w.looks/looksEach), lookSeldom))
		return
	}
	w.looks = 0
	w.on.Store(false)
	if s.State().works() { // from now on, and it may have seen on
		s.watchMemory()
	}
}

// works reports whether processes of the sandbox work, and are reported on.
func (s State) works() bool { return s == Initializing || s == Restoring || s == Invoking }
