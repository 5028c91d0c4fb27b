package runc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
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

// set freezes or thaws, and returns when the kernel says that it is so. Doing it
// twice is the same as once.
func (f *freezer) set(ctx context.Context, frozen bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if frozen == f.frozen {
		return nil
	}
	if err := f.write(frozen); err != nil {
		return fmt.Errorf("runc: write %s: %w", f.state.Name(), err)
	}
	if err := f.await(ctx, frozen); err != nil {
		if frozen {
			_ = f.write(false) // half frozen is no state to be left in
		}
		return fmt.Errorf("runc: wait for %s: %w", f.state.Name(), err)
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

// await polls cgroup.events, which the kernel marks when its content changes. The
// v1 freezer has no such mark and is asked again every millisecond.
func (f *freezer) await(ctx context.Context, frozen bool) error {
	if f.events == nil {
		want := map[bool]string{true: "FROZEN", false: "THAWED"}[frozen]
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			var buf [16]byte
			n, err := f.state.ReadAt(buf[:], 0)
			if n == 0 && err != nil {
				return err
			}
			if string(bytes.TrimSpace(buf[:n])) == want {
				return nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	want := []byte("frozen 0")
	if frozen {
		want = []byte("frozen 1")
	}
	for {
		var buf [128]byte
		n, err := f.events.ReadAt(buf[:], 0)
		if n == 0 && err != nil {
			return err
		}
		if bytes.Contains(buf[:n], want) {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// Wake every 50 ms to look at ctx.
		fds := []unix.PollFd{{Fd: int32(f.events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(fds, 50); err != nil && err != unix.EINTR {
			return fmt.Errorf("poll: %w", err)
		}
	}
}
