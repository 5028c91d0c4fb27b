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
	// A registry may let us wait. Meanwhile the Go runtime collects garbage every two minutes.
	idleOnNetwork = idleness{10 * time.Minute, 50 * time.Millisecond}
)

// looks is how often a process is looked at within the limit.
const looks = 60

// errStalled says that an extraction did nothing.
var errStalled = errors.New("the process was ended: it did nothing")

// watch returns nil when ctx has ended, and errStalled when the process has been idle for
// too long. moves counts the movements of all processes that may wait for one another. It
// counts looks, not time: while this process is stopped, others may have to wait for it.
func (i idleness) watch(ctx context.Context, pid int, moves *atomic.Int64) error {
	ticker := time.NewTicker(i.limit / looks)
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
		if idle >= looks {
			return fmt.Errorf("%w for %v", errStalled, i.limit)
		}
	}
}

// cpuTime is what all threads of a process have used (clock_getcpuclockid(3)).
func cpuTime(pid int) (time.Duration, error) {
	const scheduled = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	err := unix.ClockGettime(int32(^pid<<3|scheduled), &t)
	return time.Duration(t.Nano()), err
}
