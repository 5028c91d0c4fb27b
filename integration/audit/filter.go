package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is one system call: its number and its six arguments.
type call [7]uint64

// passed is what a call answers that no filter has refused: no kernel and no filter
// answers it. It lies within the errors of the system call interface, 1 to 4095.
const passed = 4000

// probe makes the call c by an instruction of its own. It returns what the kernel
// leaves in the result register.
func probe(c *call) (result uintptr)

// probeAddress is where the code of probe begins.
func probeAddress() uintptr

// ia32 makes the 32-bit system call of that number without arguments.
func ia32(number uintptr) (result uintptr)

// probeBytes is more than the code of probe takes.
const probeBytes = 128

// ask tells what the seccomp filters of this process say to the calls: the errno of
// their refusal, or passed. No call is carried out, so any may be asked about, by
// anybody, on any host: a further filter hands what probe calls, and nothing else, to
// a goroutine that answers passed. The kernel follows the strictest filter, and a
// refusal is stricter than that.
func ask(calls []call) ([]int, error) {
	type answer struct {
		errnos []int
		err    error
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread() // and the thread, with its filter, ends with the goroutine
		listener, err := interceptProbe(unix.SECCOMP_RET_USER_NOTIF, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
		if err != nil {
			answers <- answer{nil, err}
			return
		}
		go answerPassed(listener)
		errnos := make([]int, 0, len(calls))
		for i := range calls {
			errnos = append(errnos, -int(probe(&calls[i])))
		}
		answers <- answer{errnos, nil}
	}()
	a := <-answers
	return a.errnos, a.err
}

// tryRest is ask where a listener exists already, as in sandboxd, which answers sysinfo(2):
// the kernel allows one. What probe calls then meets a verdict by which the kernel answers
// ENOSYS, and any refusal is stricter than that. Calls that answer ENOSYS are carried out, in a
// child, since they pass or are refused with that errno. So all that is refused otherwise is
// never carried out, and a call that this kernel lacks counts as refused.
func tryRest(calls []call) ([]int, error) {
	type answer struct {
		errnos []int
		err    error
	}
	answers := make(chan answer)
	go func() {
		runtime.LockOSThread() // see ask
		_, err := interceptProbe(unix.SECCOMP_RET_TRACE, 0)
		errnos := make([]int, 0, len(calls))
		for i := range calls {
			if err != nil {
				break
			}
			errnos = append(errnos, -int(probe(&calls[i])))
		}
		answers <- answer{errnos, err}
	}()
	a := <-answers
	for i, errno := range a.errnos {
		listened := calls[i][0] == unix.SYS_SYSINFO && errno == int(unix.EFAULT)
		if listened || errno == int(unix.ENOSYS) && passes(&calls[i]) {
			a.errnos[i] = passed
		}
	}
	return a.errnos, a.err
}

// passes makes a call in a child and reports whether it did anything but answer ENOSYS.
func passes(c *call) bool {
	pid, errno := forkAndProbe(c)
	if errno != 0 {
		return false
	}
	var status unix.WaitStatus
	for range 1000 { // 0.1 s; a call that waits for ever passes
		if got, err := unix.Wait4(int(pid), &status, unix.WNOHANG|unix.WALL, nil); got == int(pid) || err != nil && err != unix.EINTR {
			return status.Signaled() || status.ExitStatus() != refusedCode
		}
		time.Sleep(100 * time.Microsecond)
	}
	_ = unix.Kill(int(pid), unix.SIGKILL)
	_, _ = unix.Wait4(int(pid), nil, unix.WALL, nil)
	return true
}

// refusedCode is what the child of forkAndProbe exits with after ENOSYS.
const refusedCode = 77

// forkAndProbe makes the call in a child of one thread, see forkAndCall.
//
//go:nosplit
//go:noinline
func forkAndProbe(c *call) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)
	if pid != 0 || errno != 0 {
		return pid, errno
	}
	code := uintptr(0)
	if int32(probe(c)) == -int32(unix.ENOSYS) {
		code = refusedCode
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// interceptProbe filters the calling thread: what probe calls meets the verdict. With the flag
// for a listener it returns one.
func interceptProbe(verdict uint32, flags uintptr) (listener int, err error) {
	const ( // struct seccomp_data
		addressLow  = 8
		addressHigh = 12
	)
	begin := probeAddress()
	if uint64(begin)>>32 != 0 {
		return -1, errors.New("the program is linked too high for its filter: build it static, without PIE")
	}
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	filter := []unix.SockFilter{
		load(addressHigh),
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 0, Jf: 4},
		load(addressLow),
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(begin), Jf: 2},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: uint32(begin) + probeBytes, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: verdict},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return -1, os.NewSyscallError("prctl PR_SET_NO_NEW_PRIVS", err)
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return -1, os.NewSyscallError("seccomp", errno)
	}
	return int(fd), nil
}

// notification is the kernel's struct seccomp_notif, verdict its seccomp_notif_resp.
type (
	notification struct {
		id         uint64
		pid, flags uint32
		number     int32
		arch       uint32
		address    uint64
		args       [6]uint64
	}
	verdict struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// answerPassed answers every call that arrives until the filtered thread has ended.
func answerPassed(listener int) {
	defer unix.Close(listener)
	for {
		fds := []unix.PollFd{{Fd: int32(listener), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		} else if err != nil || fds[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n)))
		if errno == unix.EINTR || errno == unix.ENOENT { // a signal interrupted the call, which comes again
			continue
		}
		if errno != 0 {
			fmt.Fprintln(os.Stderr, "audit: receive a call:", errno)
			return
		}
		v := verdict{id: n.id, errno: -passed}
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&v)))
		if errno != 0 && errno != unix.ENOENT { // as above
			fmt.Fprintln(os.Stderr, "audit: answer to a call:", errno)
			return
		}
	}
}
