// Package clock reads the clock that every process of a host shares, in sandboxes too.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the host's boot (CLOCK_MONOTONIC): comparable between
// processes, as Go's own monotonic readings are not.
func Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(err) // every kernel has this clock
	}
	return time.Duration(t.Nano())
}
