package main

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

const mib = 1 << 20

// spin takes as long as its entry says, of wall time.
func spin(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	before, start := cpuTime(), time.Now()
	var wg sync.WaitGroup
	for range max(s.N, 1) {
		wg.Go(func() {
			runtime.LockOSThread()
			for time.Since(start) < millis(s) {
			}
		})
	}
	wg.Wait()
	e.N = (cpuTime() - before).Milliseconds()
}

// cpuTime is the user and system time of the process so far.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// sysinfo makes the raw calls: no library decides.
func sysinfo(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	var wg sync.WaitGroup
	totals := make([]uint64, max(s.N, 1))
	for i := range totals {
		wg.Go(func() {
			runtime.LockOSThread() // never unlocked, so that each has a thread of its own
			for range 10 {
				var info unix.Sysinfo_t
				if _, _, errno := unix.Syscall(unix.SYS_SYSINFO, uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 {
					totals[i] = math.MaxUint64
				}
				totals[i] = max(totals[i], uint64(info.Totalram)*uint64(info.Unit))
			}
		})
	}
	wg.Wait()
	for _, total := range totals {
		if total != totals[0] {
			e.Fail(fmt.Errorf("answers tell %d and %d bytes", totals[0], total))
		}
	}
	e.N = int64(totals[0])
}

// many makes descriptors, at most as many as the step says, until one cannot be had. It
// notes how many there were and closes them.
func many(s script.Step, e *script.Entry, make func() (int, error)) {
	var fds []int
	for e.N < s.N {
		fd, err := make()
		if err != nil {
			e.Fail(err)
			break
		}
		fds = append(fds, fd)
		e.N++
	}
	for _, fd := range fds {
		_ = unix.Close(fd) // of what was only read
	}
}

func openMany(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	many(s, e, func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) })
}

func watch(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	many(s, e, func() (int, error) { return unix.InotifyInit1(unix.IN_CLOEXEC) })
}

func memfd(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	_, err := unix.MemfdCreate(s.Data, unix.MFD_CLOEXEC)
	e.Fail(err)
}

func shmget(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	_, err := unix.SysvShmGet(int(s.N), 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o666)
	e.Fail(err)
}

func fill(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	f, err := os.Create(s.Path)
	if err != nil {
		e.Fail(err)
		return
	}
	defer f.Close()
	block := make([]byte, mib)
	for e.N < s.N {
		n, err := f.Write(block)
		e.N += int64(n)
		if err != nil {
			e.Fail(err)
			return
		}
	}
	e.Fail(f.Sync())
}

func fillInodes(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	if err := os.Mkdir(s.Path, 0o755); err != nil {
		e.Fail(err)
		return
	}
	for e.N < s.N {
		f, err := os.Create(filepath.Join(s.Path, fmt.Sprint(e.N)))
		if err != nil {
			e.Fail(err)
			return
		}
		f.Close()
		e.N++
	}
}

// pipes makes each pipe as large as it can be.
func pipes(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	var files []*os.File
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	full := bytes.Repeat([]byte("x"), mib)
	for range s.N {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			e.Fail(err)
			return
		}
		files = append(files, os.NewFile(uintptr(p[0]), "read"), os.NewFile(uintptr(p[1]), "write"))
		for size := mib; size >= os.Getpagesize(); size /= 2 { // the user's quota of pipe pages goes down
			if _, err := unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, size); err == nil {
				break
			}
		}
		n, err := unix.Write(p[1], full)
		if err != nil {
			e.Fail(err)
			return
		}
		e.N += int64(n)
	}
}
