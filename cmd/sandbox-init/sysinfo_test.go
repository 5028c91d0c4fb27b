package main

import (
	"runtime"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sysinfoFilter leaves sysinfo to the listener and lets all else pass.
var sysinfoFilter = []unix.SockFilter{
	{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
	{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SYSINFO, Jf: 1},
	{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
}

// ENV-40
func TestMemoryOfMeminfo(t *testing.T) {
	for text, want := range map[string][2]uint64{
		"MemTotal:         131072 kB\nMemFree:           98304 kB\nMemAvailable:      98304 kB\n": {128 << 20, 96 << 20},
		"MemTotal: 1 kB": {1 << 10, 0},
		"\n\nMemFree: 2 kB\nSwapTotal: 3 kB\nXMemTotal: 4 kB": {0, 2 << 10},
		"":      {0, 0},
		"MemTo": {0, 0},
	} {
		if total, free := kilobytes([]byte(text), "MemTotal:"), kilobytes([]byte(text), "MemFree:"); total != want[0] || free != want[1] {
			t.Errorf("%q: %d and %d, want %v", text, total, free, want)
		}
	}
}

// The answer to a call that is over is written nowhere, although its pid is in use: here the
// same thread has called again.
func TestAnswerToNobody(t *testing.T) {
	var stale, fresh unix.Sysinfo_t
	addresses := make(chan *unix.Sysinfo_t)
	listener := make(chan int)
	tid := make(chan int, 1)
	results := make(chan syscall.Errno, 1)
	go func() {
		runtime.LockOSThread() // and the thread, with its filter, ends with the goroutine
		tid <- unix.Gettid()
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			t.Error(err)
		}
		form := unix.SockFprog{Len: uint16(len(sysinfoFilter)), Filter: &sysinfoFilter[0]}
		fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&form)))
		if errno != 0 {
			t.Error(errno)
		}
		listener <- int(fd)
		for info := range addresses {
			_, _, errno := syscall.Syscall(unix.SYS_SYSINFO, uintptr(unsafe.Pointer(info)), 0, 0)
			results <- errno
		}
	}()
	thread := <-tid
	a := &answerer{listener: <-listener}
	defer unix.Close(a.listener)
	defer close(addresses)
	receive := func() (n notification) {
		if errno := a.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno != 0 {
			t.Fatal(errno)
		}
		return n
	}
	send := func(v verdict) {
		if errno := a.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&v)); errno != 0 {
			t.Error(errno)
		}
	}
	addresses <- &stale
	first := receive()
	send(verdict{id: first.id, errno: -int32(unix.EFAULT)})
	if errno := <-results; errno != unix.EFAULT {
		t.Fatalf("the first call: %v", errno)
	}
	addresses <- &fresh
	second := receive()
	if int(first.pid) != thread || second.pid != first.pid {
		t.Fatalf("calls of %d and %d, want %d", first.pid, second.pid, thread)
	}
	if errno := a.tell(&first); errno != unix.EPERM || stale != (unix.Sysinfo_t{}) {
		t.Errorf("the first call: %v, %+v; want EPERM and nothing", errno, stale)
	}
	if errno := a.tell(&second); errno != 0 || fresh.Totalram == 0 || fresh.Unit != 1 {
		t.Errorf("the second call: %v, %+v", errno, fresh)
	}
	// A flood of calls must not let the handler grow, whose memory is the function's.
	if n := testing.AllocsPerRun(100, func() { a.tell(&second) }); n != 0 {
		t.Errorf("an answer takes %v allocations", n)
	}
	send(verdict{id: second.id})
	if errno := <-results; errno != 0 {
		t.Errorf("the second call: %v", errno)
	}
}

// The kernel does not tell that it refuses an id.
func TestOpenFilesAsNobody(t *testing.T) {
	const refused = 1<<32 - 1
	if err := openFilesAs(refused, refused); err == nil {
		t.Errorf("files are opened with the rights of id %d", uint32(refused))
	}
}
