package runc

import (
	"fmt"
	"os"
	"sync/atomic"

	"github.com/containerd/cgroups/v3/cgroup1"
	"golang.org/x/sys/unix"
)

// oomWatch ends a whole sandbox when the kernel has killed one of its processes for
// the memory limit. Cgroup v2 does that by itself (memory.oom.group); v1 only says
// that it ran out (ARCHITECTURE decision 12).
type oomWatch struct {
	events *os.File
	seen   atomic.Uint64 // how often the sandbox ran out of memory
	done   chan struct{}
}

func watchOOM(c *cgroup) (*oomWatch, error) {
	fd, err := c.v1.RegisterMemoryEvent(cgroup1.OOMEvent())
	if err != nil {
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	w := &oomWatch{events: os.NewFile(fd, "memory.oom_control"), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		var count [8]byte
		for {
			if _, err := w.events.Read(count[:]); err != nil {
				return // closed
			}
			// The event comes before the kernel has chosen and counted its victim.
			w.seen.Add(1)
			_ = c.kill() // fails only when the cgroup is gone already
		}
	}()
	return w, nil
}

// Close ends the watch and waits until it has ended.
func (w *oomWatch) Close() {
	w.events.Close()
	<-w.done
}
