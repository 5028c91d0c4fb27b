package runc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// freezer stops and continues all processes of a sandbox at once, and knows when
// they have really stopped (ARCHITECTURE decisions 4 and 5). It keeps its files
// open: a freeze is one write and one wait. Safe for concurrent use.
type freezer struct {
	mu     sync.Mutex
	state  *os.File // cgroup.freeze, or freezer.state on a legacy host
	events *os.File // cgroup.events; nil on a legacy host
	frozen bool
}

func newFreezer(c *cgroup) (*freezer, error) {
	f := &freezer{}
	name := filepath.Join(c.core, "cgroup.freeze")
	if c.core == "" {
		name = filepath.Join(c.dirV1("freezer"), "freezer.state")
	}
	var err error
	if f.state, err = os.OpenFile(name, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("freezer: %w", err)
	}
	if c.core == "" {
		return f, nil
	}
	if f.events, err = os.Open(filepath.Join(c.core, "cgroup.events")); err != nil {
		f.Close()
		return nil, fmt.Errorf("freezer: %w", err)
	}
	return f, nil
}

func (f *freezer) Close() {
	f.state.Close()
	if f.events != nil {
		f.events.Close()
	}
}

// set freezes or thaws. A freeze returns when the kernel says that every process has
// stopped; after a thaw every process may run. Doing it twice is the same as once.
func (f *freezer) set(ctx context.Context, frozen bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if frozen == f.frozen {
		return nil
	}
	if err := f.write(frozen); err != nil {
		return fmt.Errorf("runc: write %s: %w", f.state.Name(), err)
	}
	if frozen {
		if err := f.await(ctx); err != nil {
			_ = f.write(false) // half frozen is no state to be left in
			return fmt.Errorf("runc: wait for %s: %w", f.state.Name(), err)
		}
	}
	f.frozen = frozen
	return nil
}

func (f *freezer) write(frozen bool) error {
	value := map[bool]string{true: "1", false: "0"}[frozen]
	if f.events == nil {
		value = map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
	}
	_, err := f.state.WriteAt([]byte(value), 0)
	return err
}

// spins is how often await asks again before it waits for the kernel to tell. Most
// sandboxes stop within some 100 us, but the kernel marks changes of cgroup.events at
// most every 10 ms (CGROUP_FILE_NOTIFY_MIN_INTV in kernel/cgroup/cgroup.c).
const spins = 200

// await returns when every process has stopped.
func (f *freezer) await(ctx context.Context) error {
	for n := 0; ; n++ {
		var buf [128]byte
		file, want := f.events, []byte("frozen 1")
		if file == nil {
			file, want = f.state, []byte("FROZEN")
		}
		got, err := file.ReadAt(buf[:], 0)
		if got == 0 && err != nil {
			return err
		}
		if bytes.Contains(buf[:got], want) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		switch {
		case n < spins:
			runtime.Gosched()
		case f.events == nil: // the v1 freezer has nothing to wait for
			time.Sleep(time.Millisecond)
		default: // wake every 50 ms to look at ctx
			fds := []unix.PollFd{{Fd: int32(f.events.Fd()), Events: unix.POLLPRI}}
			if _, err := unix.Poll(fds, 50); err != nil && err != unix.EINTR {
				return fmt.Errorf("poll: %w", err)
			}
		}
	}
}
