package isolation

import (
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"
)

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
		"close", "close_range", "dup", "dup3", "pipe2", "cachestat",
	}},
	{why: "names and attributes of files; the mounts and the ids decide what they reach", calls: []string{
		"openat", "openat2", "faccessat", "faccessat2", "fstat", "newfstatat", "statx", "statfs", "fstatfs", "readlinkat",
		"getdents64", "getcwd", "chdir", "fchdir", "mkdirat", "renameat", "renameat2", "linkat", "symlinkat", "unlinkat",
		"fchmod", "fchmodat", "fchmodat2", "fchown", "fchownat", "umask", "utimensat",
		"getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr",
		"inotify_init1", "inotify_add_watch", "inotify_rm_watch",
	}},
	{why: "memory of the own process; JIT compilers need W to X", calls: []string{
		"brk", "mmap", "munmap", "mremap", "mprotect", "madvise", "mincore", "msync", "mlock", "mlock2", "munlock", "mlockall", "munlockall", "memfd_create",
		"pkey_alloc", "pkey_free", "pkey_mprotect", "membarrier", "get_mempolicy", "set_mempolicy", "mbind", "mseal", "map_shadow_stack",
	}},
	{why: "waiting for events", calls: []string{
		"ppoll", "pselect6", "epoll_create1", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "eventfd2",
		"signalfd4", "timerfd_create", "timerfd_settime", "timerfd_gettime",
	}},
	{why: "processes and threads of the own domain", calls: []string{
		"execve", "execveat", "exit", "exit_group", "wait4", "waitid", "kill", "tkill", "tgkill", "pidfd_open", "pidfd_send_signal", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
		"getpid", "getppid", "gettid", "getpgid", "setpgid", "getsid", "setsid", "set_tid_address", "prctl", "set_robust_list", "get_robust_list", "rseq",
		"futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue", "restart_syscall", "sched_yield", "sched_getaffinity", "sched_setaffinity", "sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler",
		"sched_getattr", "sched_setattr", "sched_get_priority_min", "sched_get_priority_max", "sched_rr_get_interval", "getpriority", "setpriority", "ioprio_get", "ioprio_set", "getcpu",
	}},
	{why: "what x86-64 has besides: older forms of the calls above, which arm64 never had", only: amd64, calls: []string{
		"open", "creat", "access", "stat", "lstat", "readlink", "getdents", "mkdir", "rmdir", "rename", "link", "symlink", "unlink", "chmod", "chown", "lchown", "utime", "utimes", "futimesat", "inotify_init",
		"dup2", "pipe", "poll", "select", "epoll_create", "epoll_wait", "eventfd", "signalfd", "pause", "alarm", "time",
		"fork", "vfork", "getpgrp", "arch_prctl",
	}},
	{why: "threads and processes, but no new namespaces; clone3 hides its flags from the filter and answers ENOSYS", calls: []string{"clone"}, args: []*configs.Arg{masked(0, newNamespaces, 0)}},
	{why: "signals", calls: []string{"rt_sigaction", "rt_sigprocmask", "rt_sigpending", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigreturn", "sigaltstack", "getitimer", "setitimer"}},
	{why: "time: reading it and sleeping", calls: []string{
		"gettimeofday", "clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "times", "timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete",
	}},
	{why: "the init handler drops to the sandbox user; without capabilities these change nothing (docs/decisions/0001)", calls: []string{
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
	{why: "plain files; devices need a capability besides", only: amd64, calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, unix.S_IFREG)}},
	{why: "plain files, in short", only: amd64, calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, 0)}},
	{why: "fifos", only: amd64, calls: []string{"mknod"}, args: []*configs.Arg{masked(1, unix.S_IFMT, unix.S_IFIFO)}},
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
		"kexec_load", "kexec_file_load", "init_module", "finit_module", "delete_module", "reboot", "acct", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex", "syslog", "sethostname", "setdomainname",
		"vhangup",
	}},
	{why: "ports and segments of the processor", only: amd64, calls: []string{"iopl", "ioperm", "modify_ldt"}},
	{why: "kernel AIO", calls: []string{"io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "io_pgetevents"}},
}, cloneRules()...)

// debugging is what the profile debug allows besides. The init handler is not in
// reach: it has other ids, and is not dumpable.
var debugging = []ruleGroup{
	{why: "debuggers and tracers of the own domain's processes", calls: []string{"ptrace", "process_vm_readv", "process_vm_writev"}},
	{why: "debuggers start programs at fixed addresses", calls: []string{"personality"}, args: []*configs.Arg{arg(0, configs.EqualTo, addrNoRandomize)}},
}

// addrNoRandomize is ADDR_NO_RANDOMIZE of linux/personality.h.
const addrNoRandomize = 0x0040000

// cloneRules refuse every new namespace by itself: a rule can compare a masked
// argument for equality only.
func cloneRules() (groups []ruleGroup) {
	for _, flag := range []uint64{unix.CLONE_NEWNS, unix.CLONE_NEWUTS, unix.CLONE_NEWIPC, unix.CLONE_NEWUSER, unix.CLONE_NEWPID, unix.CLONE_NEWNET, unix.CLONE_NEWCGROUP} {
		groups = append(groups, ruleGroup{why: "new namespaces", calls: []string{"clone"}, args: []*configs.Arg{masked(0, flag, flag)}})
	}
	return groups
}
