package unpack

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// idleness defines a stalled process: for limit, neither it nor any sibling used more than
// cpu of CPU time. A process whose disk or output makes progress uses more, and an idle Go
// runtime uses less.
type idleness struct{ limit, cpu time.Duration }

var (
	idleAlone = idleness{time.Minute, time.Millisecond}
	// A registry may be slow. Meanwhile the Go runtime collects garbage every two minutes.
	idleOnNetwork = idleness{10 * time.Minute, 50 * time.Millisecond}
)

// checks is how often watch checks a process within the limit.
const checks = 60

// errStalled reports that an extraction made no progress.
var errStalled = errors.New("the process was ended: it did nothing")

// watch returns nil when ctx or the process has ended, and errStalled when the process is
// stalled. Processes that may wait for one another share moves, which counts the checks at
// which one of them had made progress. watch measures the limit in checks, not in time:
// while this daemon is suspended, processes may wait for it, and no check happens.
func (i idleness) watch(ctx context.Context, pid int, moves *atomic.Int64) error {
	ticker := time.NewTicker(i.limit / checks)
	defer ticker.Stop()
	seen, used, idle := moves.Load(), time.Duration(0), 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		now, err := cpuTime(pid)
		if err != nil {
			return nil // it has ended
		}
		if now-used >= i.cpu {
			used = now
			moves.Add(1)
		}
		if idle++; moves.Load() != seen {
			seen, idle = moves.Load(), 0
		}
		if idle >= checks {
			return fmt.Errorf("%w for %v", errStalled, i.limit)
		}
	}
}

// cpuTime returns the CPU time that all threads of a process have used
// (clock_getcpuclockid(3)).
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|scheduled), &t)
	return time.Duration(t.Nano()), err
}
