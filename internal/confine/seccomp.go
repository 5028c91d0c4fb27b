package confine

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// profile is what a process may do.
type profile struct {
	calls [][]group // the numbers of all of them are allowed
	rules [][]rule
}

// group are system calls with the reason why they are allowed.
type group struct {
	why     string
	numbers []uintptr
}

// rule is about a system call of which an argument says what it does: whether the test
// holds for one of the values decides.
type rule struct {
	call, argument uint32
	test           uint16
	values         []uint32
	yes, no        uint32 // what becomes of it; no may be next, which asks the rules that follow
}

const (
	equal   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	anyBit  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
	allowed = unix.SECCOMP_RET_ALLOW
	refused = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	next    = uint32(unix.SECCOMP_RET_LOG) // is no result that we have
)

// The profiles: of a server that lives on what it holds; of an extractor, which Landlock
// lets use one folder at most, without and with a network; and of a server with a folder.
var (
	server    = profile{[][]group{common}, [][]rule{commonRules, serverRules}}
	files     = profile{[][]group{common, fileCalls}, [][]rule{commonRules}}
	store     = profile{[][]group{common, fileCalls, storeCalls}, [][]rule{commonRules}}
	connected = profile{[][]group{common, fileCalls, networkCalls}, [][]rule{commonRules, networkRules}}
)

// common are the calls of every confined process.
var common = []group{
	{"files and sockets that are open", []uintptr{
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_PWRITE64, unix.SYS_CLOSE,
		unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_FCNTL,
		unix.SYS_RECVMSG, unix.SYS_RECVFROM, unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN,
		unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT,
	}},
	{"pipes for the output of processes in sandboxes", []uintptr{unix.SYS_PIPE2}},
	{"the netpoller, the output of processes, and a cgroup that is to freeze", []uintptr{unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_PPOLL}},
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

// commonRules: threads may be made and processes not, what is sent connects to nowhere, and
// no connection gets another protocol on top (TCP_ULP: its code has a bad record, and
// sandboxes have none of it either).
var commonRules = []rule{
	{unix.SYS_CLONE, 0, anyBit, []uint32{unix.CLONE_THREAD}, allowed, refused},
	{unix.SYS_SENDTO, 3, anyBit, []uint32{unix.MSG_FASTOPEN}, refused, allowed},
	{unix.SYS_SENDMSG, 2, anyBit, []uint32{unix.MSG_FASTOPEN}, refused, allowed},
	{unix.SYS_SETSOCKOPT, 2, equal, []uint32{unix.TCP_ULP}, refused, allowed},
}

// serverRules: pairs of sockets for output, as pipes. Of one for datagrams either end can
// send to any socket that has a path; SOCK_DGRAM and SOCK_RAW, which is the same there,
// have that bit, and SOCK_STREAM and SOCK_SEQPACKET have not.
var serverRules = []rule{
	{unix.SYS_SOCKETPAIR, 1, anyBit, []uint32{unix.SOCK_DGRAM}, refused, next},
	{unix.SYS_SOCKETPAIR, 0, equal, []uint32{unix.AF_UNIX}, allowed, refused},
	{unix.SYS_IOCTL, 1, equal, []uint32{unix.TIOCINQ}, allowed, refused}, // is all output read?
}

// fileCalls are those on files by their path. Nothing that gives a file more of the disk
// than its size says (fallocate, extended attributes), no special files.
var fileCalls = []group{
	{"to open, and to look", []uintptr{
		unix.SYS_OPENAT, unix.SYS_NEWFSTATAT, unix.SYS_STATX, unix.SYS_READLINKAT, unix.SYS_GETDENTS64, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_FSTATFS,
	}},
	{"to make and to remove", []uintptr{
		unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_FTRUNCATE, unix.SYS_FSYNC,
	}},
	{"to remove, by SQLite", libcCalls},
	{"who it is", []uintptr{unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID}},
	{"modes and times", []uintptr{unix.SYS_FCHMOD, unix.SYS_FCHMODAT, unix.SYS_FCHMODAT2, unix.SYS_UTIMENSAT}},
	{"the netpoller, which is made when it is needed", []uintptr{unix.SYS_EVENTFD2}},
}

// storeCalls are those of a database and of files that must survive a power cut.
var storeCalls = []group{
	{"what was written is on the disk", []uintptr{unix.SYS_FDATASYNC, unix.SYS_SYNC_FILE_RANGE}},
	{"one process has the folder", []uintptr{unix.SYS_FLOCK}},
	{"several buffers at once", []uintptr{unix.SYS_PREADV, unix.SYS_PWRITEV}},
	{"a map of a file that grows", []uintptr{unix.SYS_MREMAP}},
	{"how much room is left", []uintptr{unix.SYS_STATFS}},
	{"to open below a folder of the operator's", []uintptr{unix.SYS_OPENAT2}},
}

// networkCalls are those of who looks up names and connects.
var networkCalls = []group{{"connections out", []uintptr{unix.SYS_CONNECT}}}

// networkRules: sockets of a network, none that has a path.
var networkRules = []rule{{unix.SYS_SOCKET, 0, equal, []uint32{unix.AF_INET, unix.AF_INET6}, allowed, refused}}

// architecture is the kernel's name of what we run on (linux/audit.h).
var architecture = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// What a filter sees (struct seccomp_data); of its arguments of 64 bits the lower halves,
// which come first on the architectures that we have.
const (
	offsetCall = 0
	offsetArch = 4
	offsetArgs = 16
)

// program is the profile's filter. What is not allowed fails with EPERM.
func (f profile) program() ([]unix.SockFilter, error) {
	arch, ok := architecture[runtime.GOARCH]
	if !ok {
		return nil, &host.Unsupported{Feature: host.Seccomp, Need: "there is no filter for " + runtime.GOARCH, Fix: "use amd64 or arm64"}
	}
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		result = unix.BPF_RET | unix.BPF_K
	)
	p := []unix.SockFilter{
		{Code: load, K: offsetArch},
		{Code: equal, Jt: 1, K: arch},
		{Code: result, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: offsetCall},
	}
	for _, group := range slices.Concat(f.calls...) {
		for _, n := range group.numbers {
			p = append(p, unix.SockFilter{Code: equal, Jf: 1, K: uint32(n)}, unix.SockFilter{Code: result, K: allowed})
		}
	}
	// clone3 says what it makes in memory that a filter does not see: as if there were
	// none, so that libc takes clone.
	p = append(p,
		unix.SockFilter{Code: equal, Jf: 1, K: unix.SYS_CLONE3},
		unix.SockFilter{Code: result, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)})
	for _, r := range slices.Concat(f.rules...) {
		p = append(p,
			unix.SockFilter{Code: equal, Jf: uint8(2 + 2*len(r.values)), K: r.call},
			unix.SockFilter{Code: load, K: offsetArgs + 8*r.argument})
		for _, v := range r.values {
			p = append(p, unix.SockFilter{Code: r.test, Jf: 1, K: v}, unix.SockFilter{Code: result, K: r.yes})
		}
		if r.no == next {
			p = append(p, unix.SockFilter{Code: load, K: offsetCall})
		} else {
			p = append(p, unix.SockFilter{Code: result, K: r.no})
		}
	}
	return append(p, unix.SockFilter{Code: result, K: refused}), nil
}

// filter puts the filter on all threads of this process.
func (f profile) filter() error {
	p, err := f.program()
	if err != nil {
		return fmt.Errorf("seccomp: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	// With TSYNC, all threads get the filter or none does. If one has a filter of its own,
	// the kernel installs nothing and returns that thread's id, without an errno.
	if thread != 0 {
		return fmt.Errorf("seccomp: the filter is not in force: thread %d has a filter of its own", thread)
	}
	return inForce()
}

// inForce returns an error unless a filter of this package is in force for the calling
// thread. A process under Landlock cannot open /proc to look, so it makes a call that all
// profiles refuse, and that a filter of a container or of package runc allows.
func inForce() error {
	mode, err := unix.PrctlRetInt(unix.PR_GET_SECCOMP, 0, 0, 0, 0)
	if err != unix.EPERM {
		return fmt.Errorf("seccomp: the filter is not in force: prctl(PR_GET_SECCOMP) returned %d, %v; want EPERM", mode, err)
	}
	return nil
}
