package inspect

// expected is the posture of every process in a sandbox, as the kernel must tell it:
// the one place where it is written down. It shares nothing with what makes sandboxes,
// so that neither can drift alone. A process of its own is PID 1, the init handler: it
// is not the sandbox user, and keeps what it takes to start processes as that user.
var expected = []expectation{
	{check: "user, group, other groups", read: ids, want: "993, 990, none", init: "0, 0, none"},
	{check: "host ids", read: idRange, want: "65536 from an unprivileged one on"},
	{check: "capabilities", read: capabilities, want: "none", init: "permitted KILL,SETGID,SETUID; effective KILL,SETGID,SETUID"},
	{check: "no_new_privs", read: noNewPrivs, want: "on every thread"},
	{check: "seccomp", read: seccomp, want: "1 filter on every thread"},
	{check: "seccomp profile", read: profile, want: "one of sandboxd's", or: "not told by the kernel"},
	{check: checkNamespaces, read: ownNamespaces, want: "user pid mnt net ipc uts cgroup"},
	{check: "root", read: rootMount, want: "read-only"},
	{check: "writable mounts", read: writable, want: "/dev/shm /tmp"},
	{check: "mounts with set-id effect", read: setID, want: "none"},
	{check: "mounts with devices", read: deviceMounts, want: "/dev"},
	{check: "devices", read: devices, want: "full=1:7 null=1:3 random=1:8 tty=5:0 urandom=1:9 zero=1:5"},
	{check: "init handler's program", read: initProgram, want: "read-only"},
	{check: "/proc/sys", read: procSys, want: "read-only"},
	{check: "/sys", read: sysfs, want: "limits of the sandbox"},
	{check: "readable in /proc", read: unmasked, want: "nothing of the host's secrets"},
	{check: checkInterfaces, read: interfaces, want: "lo", or: "eth0 lo"}, // with egress
	{check: "descriptors on the host's files", read: foreignFiles, want: "none"},
	{check: "files in the host's memory", read: foreignMemory, want: "none"},
	{check: "environment", read: environment, init: "GOMAXPROCS HOME"}, // that of others is the function's
	{check: "session keyring", read: keyring, init: "own"},
	{check: "limits of the process", read: limits, want: "core 0, files 1024, locked 65536, msgqueue 0, nice 0, realtime 0"},
	{check: "memory", read: memory, want: "limited, no swap"},
	{check: "processes", read: processes, want: "at most 1024, init handlers not counted"},
	{check: "out of memory", read: oomGroup, want: "ends the domain", or: "left to the daemon by cgroup v1"},
	{check: "first to go when the host is out of memory", read: oomScore, want: "500"},
}

// hidden are the files and folders of /proc that tell secrets of the host or steer it:
// they must be absent, empty, or /dev/null.
var hidden = []string{
	"acpi", "bus", "cmdline", "fs", "interrupts", "irq", "kallsyms", "kcore", "key-users", "keys", "kmsg",
	"kpagecgroup", "kpagecount", "kpageflags", "latency_stats", "modules", "sched_debug", "scsi", "slabinfo",
	"sysrq-trigger", "timer_list", "timer_stats", "vmallocinfo", "vmcore",
}

const (
	expectedPIDs   = 1024  // ENV-34
	handlerPIDs    = 16    // what an init handler may take beyond them
	idCount        = 65536 // of a sandbox's range
	unprivilegedID = 65536 // the first host id that no user of the system has
)
