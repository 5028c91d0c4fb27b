package runc

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/containerd/cgroups/v3/cgroup1"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// oomWatch kills a whole sandbox when it has run out of memory. With cgroup v2 the kernel does
// that (memory.oom.group); v1 only sends an event (docs/decisions/0037).
type oomWatch struct {
	events *os.File
	seen   *os.File      // file in memory that counts how often the sandbox ran out of memory
	done   chan struct{} // closed when the goroutine has returned
}

func watchOOM(c *parentCgroup) (*oomWatch, error) {
	fd, err := c.v1.RegisterMemoryEvent(cgroup1.OOMEvent())
	if err != nil {
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	if err := unix.SetNonblock(int(fd), true); err != nil {
		unix.Close(int(fd))
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	w := &oomWatch{events: os.NewFile(fd, "memory.oom_control"), done: make(chan struct{})}
	if w.seen, err = newCounter(); err != nil {
		w.events.Close()
		return nil, fmt.Errorf("watch for out of memory: %w", err)
	}
	go func() {
		defer close(w.done)
		var count [8]byte
		for times := 1; ; times++ {
			if _, err := w.events.Read(count[:]); err != nil {
				return // Close was called
			}
			// The event comes before the kernel has chosen and counted its victim.
			_, _ = w.seen.WriteAt(strconv.AppendInt(nil, int64(times), 10), 0)
			_ = c.kill() // fails only if the cgroup has been removed
		}
	}()
	return w, nil
}

// Close ends the watch and waits until its goroutine has returned.
func (w *oomWatch) Close() {
	w.events.Close()
	<-w.done
	w.seen.Close()
}

// newCounter creates a file in memory with the content 0.
func newCounter() (*os.File, error) {
	fd, err := unix.MemfdCreate("oom-seen", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("oom-seen", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "oom-seen")
	if _, err := f.WriteString("0"); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// reader opens the counter for reading only.
func (w *oomWatch) reader() (*os.File, error) {
	var f *os.File
	err := descriptor.Use(w.seen, func(fd int) (err error) {
		f, err = os.Open("/proc/self/fd/" + strconv.Itoa(fd))
		return err
	})
	return f, err
}
