package isolation

import (
	"fmt"
	"runtime"
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

// DefaultProfile is the seccomp profile of a Spec that names none.
const DefaultProfile = "default"

// A rule group is a set of system calls that are treated alike for one reason.
type ruleGroup struct {
	why   string
	calls []string
	args  []*configs.Arg // all must hold; nil means whatever the arguments
}

// A profile lists what a domain may call. Everything else answers ENOSYS, so that
// libraries fall back; what is known to be dangerous answers EPERM, so that nobody
// mistakes the refusal for an old kernel.
type profile struct {
	allow []ruleGroup
	deny  []ruleGroup
}

var profiles = map[string]profile{
	DefaultProfile: {allow: allowed, deny: denied},
}

func arg(index uint, op configs.Operator, value uint64) *configs.Arg {
	return &configs.Arg{Index: index, Op: op, Value: value}
}

// masked holds if argument index, reduced by mask, equals value.
func masked(index uint, mask, value uint64) *configs.Arg {
	return &configs.Arg{Index: index, Op: configs.MaskEqualTo, Value: mask, ValueTwo: value}
}

const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP

var allowed = append([]ruleGroup{
	{why: "reading, writing and placing of open files", calls: []string{
		"read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "lseek", "sendfile", "splice", "tee",
		"copy_file_range", "readahead", "fadvise64", "fallocate", "ftruncate", "truncate", "fsync", "fdatasync", "sync_file_range", "syncfs", "sync", "flock", "fcntl", "ioctl",
		"close", "close_range", "dup", "dup2", "dup3", "pipe", "pipe2", "cachestat",
	}},
	{why: "names and attributes of files; the mounts and the ids decide what they reach", calls: []string{
		"open", "openat", "openat2", "creat", "access", "faccessat", "faccessat2", "stat", "fstat", "lstat", "newfstatat", "statx", "statfs", "fstatfs", "readlink", "readlinkat",
		"getdents", "getdents64", "getcwd", "chdir", "fchdir", "mkdir", "mkdirat", "rmdir", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink", "unlinkat",
		"chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "fchown", "lchown", "fchownat", "umask", "utime", "utimes", "futimesat", "utimensat",
		"getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
		"inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch",
	}},
	{why: "memory of the own process; JIT compilers need W to X", calls: []string{
		"brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "mincore", "msync", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "memfd_create",
		"pkey_alloc", "pkey_free", "pkey_mprotect", "membarrier", "get_mempolicy", "set_mempolicy", "mbind", "mseal", "map_shadow_stack",
	}},
	{why: "waiting for events", calls: []string{
		"poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "eventfd", "eventfd2",
		"signalfd", "signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime",
	}},
	{why: "processes and threads of the own domain", calls: []string{
		"fork", "vfork", "execve", "execveat", "exit", "exit_group", "wait4", "waitid", "kill", "tkill", "tgkill", "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
		"getpid", "getppid", "gettid", "getpgid", "getpgrp", "setpgid", "getsid", "setsid", "set_tid_address", "prctl", "arch_prctl", "set_robust_list", "get_robust_list", "rseq",
		"futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue", "restart_syscall", "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler",
		"sched_getattr", "sched_setattr", "sched_get_priority_min", "sched_get_priority_max", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set", "getcpu",
	}},
	{why: "threads and processes, but no new namespaces; clone3 hides its flags from the filter and answers ENOSYS", calls: []string{"clone"}, args: []*configs.Arg{masked(0, newNamespaces, 0)}},
	{why: "signals", calls: []string{"rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigreturn", "sigaltstack", "pause", "alarm", "getitimer", "setitimer"}},
	{why: "time: reading it and sleeping", calls: []string{
		"time", "gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "times", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
	}},
	{why: "the init handler drops to the sandbox user; without capabilities these change nothing (decision 9)", calls: []string{
		"getuid", "geteuid", "getgid", "getegid", "getresuid", "getresgid", "getgroups", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups", "setfsuid", "setfsgid", "capget", "capset",
	}},
	{why: "limits and facts of the own process and of the machine's load", calls: []string{"getrlimit", "setrlimit", "prlimit64", "getrusage", "sysinfo", "uname", "getrandom"}},
	{why: "narrowing of one's own rights", calls: []string{"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}},
	{why: "System V IPC within the domain's own namespace", calls: []string{"shmget", "shmat", "shmdt", "shmctl", "semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl"}},
	{why: "POSIX message queues, capped at 0 bytes by the limit", calls: []string{"mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr"}},
	{why: "use of sockets once they exist", calls: []string{
		"bind", "listen", "accept", "accept4", "connect", "getsockname", "getpeername", "getsockopt", "shutdown", "sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg",
	}},
	{why: "local sockets", calls: []string{"socket", "socketpair"}, args: []*configs.Arg{arg(0, configs.EqualTo, unix.AF_UNIX)}},
	{why: "libc lists addresses over route netlink", calls: []string{"socket"}, args: []*configs.Arg{arg(0, configs.EqualTo, unix.AF_NETLINK), arg(2, configs.EqualTo, unix.NETLINK_ROUTE)}},
	{why: "options of TCP below TCP_ULP: upper layer protocols' kernel code has a bad record", calls: []string{"setsockopt"}, args: []*configs.Arg{arg(1, configs.EqualTo, unix.SOL_TCP), arg(2, configs.LessThan, unix.TCP_ULP)}},
	{why: "options of TCP above TCP_ULP", calls: []string{"setsockopt"}, args: []*configs.Arg{arg(1, configs.EqualTo, unix.SOL_TCP), masked(2, ^uint64(0x1f), 0x20)}},
	{why: "plain files; devices need a capability besides", calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, unix.S_IFREG)}},
	{why: "plain files, in short", calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, 0)}},
	{why: "fifos", calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, unix.S_IFIFO)}},
	{why: "plain files", calls: []string{"mknodat"}, args: []*configs.Arg{masked(2, unix.S_IFMT, unix.S_IFREG)}},
	{why: "plain files, in short", calls: []string{"mknodat"}, args: []*configs.Arg{masked(2, unix.S_IFMT, 0)}},
	{why: "fifos", calls: []string{"mknodat"}, args: []*configs.Arg{masked(2, unix.S_IFMT, unix.S_IFIFO)}},
	{why: "asking for, and setting, the ordinary Linux personality", calls: []string{"personality"}, args: []*configs.Arg{arg(0, configs.EqualTo, 0)}},
	{why: "asking for the personality", calls: []string{"personality"}, args: []*configs.Arg{arg(0, configs.EqualTo, 0xffffffff)}},
}, slices.Concat(internetRules(), optionRules())...)

// internetRules allow TCP and UDP sockets. Their protocols are named: others of the
// same types (SCTP, MPTCP, SMC, UDP-Lite) would load kernel modules on demand.
func internetRules() (groups []ruleGroup) {
	for _, family := range []uint64{unix.AF_INET, unix.AF_INET6} {
		for _, p := range []struct{ kind, protocol uint64 }{
			{unix.SOCK_STREAM, 0}, {unix.SOCK_STREAM, unix.IPPROTO_TCP}, {unix.SOCK_DGRAM, 0}, {unix.SOCK_DGRAM, unix.IPPROTO_UDP},
		} {
			groups = append(groups, ruleGroup{why: "TCP and UDP", calls: []string{"socket"}, args: []*configs.Arg{
				arg(0, configs.EqualTo, family), masked(1, 0xf, p.kind), arg(2, configs.EqualTo, p.protocol),
			}})
		}
	}
	return groups
}

// optionRules allow the options of the levels that allowed sockets have, TCP's own
// apart. The kernel looks at the low half of the level only, so what is not named
// exactly must be refused: an inequality could be met with bits that it ignores.
func optionRules() (groups []ruleGroup) {
	for _, level := range []uint64{unix.SOL_IP, unix.SOL_SOCKET, unix.SOL_UDP, unix.SOL_IPV6, unix.SOL_NETLINK} {
		groups = append(groups, ruleGroup{why: "socket options beside TCP's", calls: []string{"setsockopt"}, args: []*configs.Arg{arg(1, configs.EqualTo, level)}})
	}
	return groups
}

var denied = append([]ruleGroup{
	{why: "namespaces", calls: []string{"unshare", "setns"}},
	{why: "mounts and roots", calls: []string{"mount", "umount2", "pivot_root", "chroot", "fsopen", "fsconfig", "fsmount", "fspick", "move_mount", "open_tree", "mount_setattr", "statmount", "listmount", "quotactl", "quotactl_fd", "swapon", "swapoff"}},
	{why: "files by handle, past every mount", calls: []string{"open_by_handle_at", "name_to_handle_at"}},
	{why: "large kernel interfaces with a record of privilege bugs", calls: []string{"bpf", "perf_event_open", "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "fanotify_init", "fanotify_mark", "vmsplice", "memfd_secret"}},
	{why: "other processes' memory, descriptors and registers", calls: []string{"ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease", "pidfd_getfd", "kcmp", "migrate_pages", "move_pages"}},
	{why: "keyrings", calls: []string{"add_key", "request_key", "keyctl"}},
	{why: "the kernel, its modules, clocks and logs", calls: []string{
		"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "stime", "syslog", "sethostname", "setdomainname",
		"iopl", "ioperm", "modify_ldt", "vhangup", "lookup_dcookie", "nfsservctl",
	}},
	{why: "kernel AIO", calls: []string{"io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"}},
}, cloneRules()...)

// cloneRules refuse every new namespace by itself: a rule can compare a masked
// argument for equality only.
func cloneRules() (groups []ruleGroup) {
	for _, flag := range []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP} {
		groups = append(groups, ruleGroup{why: "new namespaces", calls: []string{"clone"}, args: []*configs.Arg{masked(0, flag, flag)}})
	}
	return groups
}

// seccompConfig turns the named profile into libcontainer's form. Names that the
// host's libseccomp does not know are left out there, which leaves them refused.
func seccompConfig(name string) (*configs.Seccomp, error) {
	p, ok := profiles[name]
	if !ok {
		return nil, fmt.Errorf("isolation: unknown seccomp profile %q", name)
	}
	arch, ok := map[string]string{"amd64": "amd64", "arm64": "arm64"}[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("isolation: no seccomp profile for %s", runtime.GOARCH)
	}
	enosys, eperm := uint(unix.ENOSYS), uint(unix.EPERM)
	c := &configs.Seccomp{DefaultAction: configs.Errno, DefaultErrnoRet: &enosys, Architectures: []string{arch}}
	for _, g := range p.allow {
		for _, call := range g.calls {
			c.Syscalls = append(c.Syscalls, &configs.Syscall{Name: call, Action: configs.Allow, Args: g.args})
		}
	}
	for _, g := range p.deny {
		for _, call := range g.calls {
			c.Syscalls = append(c.Syscalls, &configs.Syscall{Name: call, Action: configs.Errno, ErrnoRet: &eperm, Args: g.args})
		}
	}
	return c, nil
}
