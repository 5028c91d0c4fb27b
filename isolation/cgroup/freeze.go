package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
)

// switchFile is the file that freezes and thaws.
func (h *Handle) switchFile() *os.File {
	if f := h.file[Freeze]; f != nil {
		return f
	}
	return h.file[FreezeState]
}

// SetFrozen freezes or thaws. A freeze returns when the kernel says that every process has
// stopped; after a thaw every process may run. Doing it twice is the same as once.
func (h *Handle) SetFrozen(ctx context.Context, frozen bool) error {
	h.freezing.Lock()
	defer h.freezing.Unlock()
	if frozen == h.frozen {
		return nil
	}
	if err := h.write(frozen); err != nil {
		return fmt.Errorf("write %s: %w", h.switchFile().Name(), err)
	}
	if frozen {
		if err := h.await(ctx); err != nil {
			_ = h.write(false) // half frozen is no state to be left in
			return fmt.Errorf("wait for %s: %w", h.switchFile().Name(), err)
		}
	}
	h.frozen = frozen
	return nil
}

func (h *Handle) write(frozen bool) error {
	value := map[bool]string{true: "1", false: "0"}[frozen]
	if h.file[Events] == nil {
		value = map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
	}
	_, err := h.switchFile().WriteAt([]byte(value), 0)
	return err
}

// spins is how often await asks again before it waits for the kernel to tell. Most
// sandboxes stop within some 100 us, but the kernel marks changes of cgroup.events at
// most every 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c).
const spins = 200

// await returns when every process has stopped.
func (h *Handle) await(ctx context.Context) error {
	for n := 0; ; n++ {
		var buf [128]byte
		file, want := h.file[Events], []byte("frozen 1")
		if file == nil {
			file, want = h.switchFile(), []byte("FROZEN")
		}
		got, err := contents(file, buf[:])
		if err != nil {
			return err
		}
		if bytes.Contains(got, want) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case n < spins:
			runtime.Gosched()
			_, _, _ = unix.Syscall(unix.SYS_SCHED_YIELD, 0, 0, 0) // who is to stop may wait for this processor (docs/decisions/0024); cannot fail
		case h.file[Events] == nil: // the v1 freezer has nothing to wait for
			time.Sleep(time.Millisecond)
		default: // wake every 50 ms to look at ctx
			err := descriptor.Use(file, func(fd int) error {
				fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
				_, err := unix.Ppoll(fds, &unix.Timespec{Nsec: 50e6}, nil)
				return err
			})
			if err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
		}
	}
}
