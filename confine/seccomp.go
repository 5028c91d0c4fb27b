package confine

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// calls are the system calls that a confined process may make. Each has its reason.
var calls = []struct {
	why     string
	numbers []uintptr
}{
	{"files and sockets that are open", []uintptr{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_CLOSE,
		unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_FCNTL,
		unix.SYS_RECVMSG, unix.SYS_RECVFROM, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
	}},
	{"pipes for the output of processes in sandboxes", []uintptr{unix.SYS_PIPE2}},
	{"the netpoller, and whether all output is read", []uintptr{unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_PPOLL}},
	{"bodies from one socket to another", []uintptr{unix.SYS_SPLICE, unix.SYS_SENDFILE}},
	{"memory", []uintptr{unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MPROTECT, unix.SYS_BRK}},
	{"threads and their signals", []uintptr{
		unix.SYS_FUTEX, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_TGKILL, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN,
		unix.SYS_SIGALTSTACK, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_RESTART_SYSCALL,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
	}},
	{"time", []uintptr{unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY}},
	{"random numbers", []uintptr{unix.SYS_GETRANDOM}},
}

// architecture is the kernel's name of what we run on (linux/audit.h).
var architecture = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// What a filter sees (struct seccomp_data); of its arguments of 64 bits the lower halves,
// which come first on the architectures that we have.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// program is the filter: calls are allowed, threads may be made and processes not, what
// is sent connects to nowhere, and all else fails with EPERM.
func program() ([]unix.SockFilter, error) {
	arch, ok := architecture[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal  = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		any    = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		result = unix.BPF_RET | unix.BPF_K

		refused = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	p := []unix.SockFilter{
		{Code: load, K: offsetArch},
		{Code: equal, Jt: 1, K: arch},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: offsetCall},
	}
	for _, group := range calls {
		for _, n := range group.numbers {
			p = append(p, unix.SockFilter{Code: equal, Jf: 1, K: uint32(n)}, unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ALLOW})
		}
	}
	// clone3 says what it makes in memory that a filter does not see: as if there were
	// none, so that libc takes clone.
	p = append(p,
		unix.SockFilter{Code: equal, Jf: 1, K: unix.SYS_CLONE3},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	// Of these calls an argument says what they do: a bit of it, or its value.
	for _, c := range []struct {
		call, argument uint32
		test           uint16
		value          uint32
		yes, no        uint32
	}{
		{unix.SYS_CLONE, 0, any, unix.CLONE_THREAD, unix.SECCOMP_RET_ALLOW, refused},
		{unix.SYS_SENDTO, 3, any, unix.MSG_FASTOPEN, refused, unix.SECCOMP_RET_ALLOW}, // which connects
		{unix.SYS_SENDMSG, 2, any, unix.MSG_FASTOPEN, refused, unix.SECCOMP_RET_ALLOW},
		{unix.SYS_SOCKETPAIR, 0, equal, unix.AF_UNIX, unix.SECCOMP_RET_ALLOW, refused}, // for output, as pipes
		{unix.SYS_IOCTL, 1, equal, unix.TIOCINQ, unix.SECCOMP_RET_ALLOW, refused},      // is all output read?
	} {
		p = append(p,
			unix.SockFilter{Code: equal, Jf: 4, K: c.call},
			unix.SockFilter{Code: load, K: offsetArgs + 8*c.argument},
			unix.SockFilter{Code: c.test, Jf: 1, K: c.value},
			unix.SockFilter{Code: result, K: c.yes},
			unix.SockFilter{Code: result, K: c.no})
	}
	return append(p, unix.SockFilter{Code: result, K: refused}), nil
}

// filter puts the filter on all threads.
func filter() error {
	p, err := program()
	if err != nil {
		return fmt.Errorf("confine: seccomp: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("confine: seccomp: %w", errno)
	}
	return nil
}
