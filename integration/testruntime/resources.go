package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// alloc maps N MiB of anonymous memory, touches every page, and keeps it.
func alloc(t *testRuntime, s script.Step, r *script.Result) {
	for range s.N {
		mem, err := unix.Mmap(-1, 0, mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			fail(r, err)
			return
		}
		for i := 0; i < mib; i += 4096 {
			mem[i] = 1
		}
		t.held = append(t.held, mem)
		r.N++
	}
}

// spin keeps N threads busy for MS of wall time and notes the CPU time that the
// process got meanwhile (MS) and the wall time that passed (N), in milliseconds.
func spin(_ *testRuntime, s script.Step, r *script.Result) {
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
	r.N, r.MS = time.Since(start).Milliseconds(), (cpuTime() - before).Milliseconds()
}

// cpuTime is the user and system time of the process so far.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// openMany opens descriptors, at most N, until one cannot be had; it notes how
// many there were and closes them.
func openMany(_ *testRuntime, s script.Step, r *script.Result) {
	var fds []int
	for r.N < s.N {
		fd, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			fail(r, err)
			break
		}
		fds = append(fds, fd)
		r.N++
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// memfd makes a file in memory with the name in Data, and leaves it open.
func memfd(_ *testRuntime, s script.Step, r *script.Result) {
	_, err := unix.MemfdCreate(s.Data, unix.MFD_CLOEXEC)
	fail(r, err)
}

// shmget makes a segment of shared memory (shmget(2)) with the key N, which stays.
func shmget(_ *testRuntime, s script.Step, r *script.Result) {
	_, err := unix.SysvShmGet(int(s.N), 4096, unix.IPC_CREAT|unix.IPC_EXCL|0o666)
	fail(r, err)
}

// fill writes to the file Path until that fails or N bytes are in it, and notes
// how many are.
func fill(_ *testRuntime, s script.Step, r *script.Result) {
	f, err := os.Create(s.Path)
	if err != nil {
		fail(r, err)
		return
	}
	defer f.Close()
	block := make([]byte, mib)
	for r.N < s.N {
		n, err := f.Write(block)
		r.N += int64(n)
		if err != nil {
			fail(r, err)
			return
		}
	}
	fail(r, f.Sync())
}

// fillInodes makes up to N empty files in the new folder Path, until that fails.
func fillInodes(_ *testRuntime, s script.Step, r *script.Result) {
	if err := os.Mkdir(s.Path, 0o755); err != nil {
		fail(r, err)
		return
	}
	for r.N < s.N {
		f, err := os.Create(filepath.Join(s.Path, fmt.Sprint(r.N)))
		if err != nil {
			fail(r, err)
			return
		}
		f.Close()
		r.N++
	}
}

// ticker notes the time again and again, in the background, for the rest of the
// process's life.
type ticker struct {
	mu    sync.Mutex
	times []int64
}

// tick starts a ticker with the period MS.
func tick(t *testRuntime, s script.Step, _ *script.Result) {
	t.ticks = new(ticker)
	go func(k *ticker) {
		for {
			k.mu.Lock()
			k.times = append(k.times, time.Now().UnixMilli())
			k.mu.Unlock()
			time.Sleep(millis(s))
		}
	}(t.ticks)
}

// all returns the times noted so far.
func (k *ticker) all() []int64 {
	if k == nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]int64(nil), k.times...)
}
