package store

import (
	"context"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// collectEvery is how often a daemon collects. Days are the measure of the ages, so an
	// hour is often enough; a collection also records that what the daemon uses is in use.
	collectEvery = time.Hour
	// collectTime bounds one collection; the next one continues.
	collectTime = 10 * time.Minute
)

// Collector collects in the background as long as a daemon runs.
type Collector struct {
	store  *Store
	keep   Retention
	report func(Result, error)
	cancel context.CancelFunc
	ended  chan struct{}
}

// StartCollector collects now and then every hour, in the background. The caller should
// hold references to the entries that it is going to use, and must close the collector.
// report is called after each collection, never twice at once; its error says what could
// not be removed.
func (s *Store) StartCollector(keep Retention, report func(Result, error)) *Collector {
	ctx, cancel := context.WithCancel(context.Background())
	c := &Collector{store: s, keep: keep, report: report, cancel: cancel, ended: make(chan struct{})}
	go c.run(ctx)
	return c
}

func (c *Collector) run(ctx context.Context) {
	defer close(c.ended)
	ticker := time.NewTicker(collectEvery)
	defer ticker.Stop()
	for {
		round, cancel := context.WithTimeout(ctx, collectTime)
		c.collect(round)
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// collect collects once, at low priority. The end of ctx is no error: the next collection
// continues.
func (c *Collector) collect(ctx context.Context) {
	var r Result
	var err error
	atLowPriority(func() { r, err = c.store.Collect(ctx, c.keep) })
	if ctx.Err() != nil {
		err = nil
	}
	c.report(r, err)
}

// Close stops a collection that is running and collects a last time. It returns when ctx
// ends at the latest. Closing nil does nothing.
func (c *Collector) Close(ctx context.Context) {
	if c == nil {
		return
	}
	c.cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-c.ended
		c.collect(ctx)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// The I/O priority of a thread, from linux/ioprio.h. It is the lowest of the class "best
// effort". In the class "idle" a thread may never get a turn, and others would wait for it:
// a removal takes part in the transactions of the file system's journal.
const (
	ioprioWhoProcess = 1
	ioprioLowest     = 2<<13 | 7 // best effort, the last of 8 levels
)

// atLowPriority runs f on a thread with low I/O priority, and then restores the thread's
// own. The thread must not end instead: a process whose parent-death signal belongs to it
// would be killed.
func atLowPriority(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoProcess, 0, 0)
	if errno == 0 {
		if _, _, errno = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, ioprioLowest); errno == 0 {
			defer unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoProcess, 0, before)
		}
	}
	f() // if the kernel refuses, at the usual priority
}
