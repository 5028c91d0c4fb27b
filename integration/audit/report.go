package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fact is one property of the sandbox. Its name is the same in every sandbox.
type fact struct {
	Name  string
	Value string
}

// report prints the facts as JSON. namespaces are those of the host, "kind:[inode]".
func report(namespaces []string) error {
	environment := len(os.Environ())
	facts := []fact{
		{"user and group", fmt.Sprintf("%d, %d", os.Getuid(), os.Getgid())},
		{"host's root behind a user id", hostRoot()},
		{"capabilities, effective and bounding", fmt.Sprintf("%d and %d", capabilities("CapEff"), capabilities("CapBnd"))},
		{"no_new_privs", map[string]string{"0": "no", "1": "yes"}[status("NoNewPrivs")]},
		{"namespaces of the host's", shared(namespaces)},
		{"seccomp filters", status("Seccomp_filters")},
	}
	facts = append(facts, callFacts()...)
	facts = append(facts, mountFacts()...)
	facts = append(facts,
		fact{"secrets of the host in /proc", readable()},
		fact{"/proc/sys can be opened for writing", yes(opens("/proc/sys/kernel/core_pattern", unix.O_WRONLY))},
		fact{"/sys", sysfs()},
		fact{"devices", devices()},
		fact{"network interfaces", interfaces()},
		fact{"processes in sight", fmt.Sprint(processes())},
		fact{"inotify instances", instances()},
		fact{"open files, core size, locked memory, message queues", limits()},
		fact{"descriptors beyond 0, 1 and 2", fmt.Sprint(descriptors())},
		fact{"variables in the environment", fmt.Sprint(environment)},
	)
	return json.NewEncoder(os.Stdout).Encode(facts)
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func file(path string) string {
	text, _ := os.ReadFile(path) // what cannot be read tells nothing
	return string(text)
}

// status is a field of /proc/self/status.
func status(field string) string {
	for line := range strings.Lines(file("/proc/self/status")) {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return "?"
}

func capabilities(set string) int {
	n, _ := strconv.ParseUint(status(set), 16, 64)
	return bits.OnesCount64(n)
}

// hostRoot looks for host id 0 in the own user namespace.
func hostRoot() string {
	for line := range strings.Lines(file("/proc/self/uid_map")) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == "0" {
			return "yes"
		}
	}
	return "no"
}

// shared lists the kinds of namespaces that are also the host's.
func shared(host []string) string {
	var same []string
	for _, kind := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		if link, err := os.Readlink("/proc/self/ns/" + kind); err == nil && slices.Contains(host, link) {
			same = append(same, kind)
		}
	}
	return list(same)
}

// groups of system calls that have let somebody out of a sandbox.
var groups = []struct {
	name  string
	calls []call
}{
	{"new namespaces: unshare, setns, clone", []call{{unix.SYS_UNSHARE, unix.CLONE_NEWUSER}, {unix.SYS_SETNS}, {unix.SYS_CLONE, unix.CLONE_NEWUSER}}},
	{"clone3, whose flags no filter sees", []call{{unix.SYS_CLONE3}}},
	{"mounts", []call{{unix.SYS_MOUNT}, {unix.SYS_UMOUNT2}, {unix.SYS_MOVE_MOUNT}, {unix.SYS_OPEN_TREE}, {unix.SYS_FSOPEN}, {unix.SYS_PIVOT_ROOT}}},
	{"files by handle", []call{{unix.SYS_OPEN_BY_HANDLE_AT}}},
	{"bpf, perf_event_open, userfaultfd", []call{{unix.SYS_BPF}, {unix.SYS_PERF_EVENT_OPEN}, {unix.SYS_USERFAULTFD}}},
	{"io_uring", []call{{unix.SYS_IO_URING_SETUP}}},
	{"keyrings", []call{{unix.SYS_KEYCTL}, {unix.SYS_ADD_KEY}, {unix.SYS_REQUEST_KEY}}},
	{"ptrace, process_vm_readv, pidfd_getfd", []call{{unix.SYS_PTRACE}, {unix.SYS_PROCESS_VM_READV}, {unix.SYS_PIDFD_GETFD}}},
	{"modules, kexec, reboot", []call{{unix.SYS_INIT_MODULE}, {unix.SYS_KEXEC_LOAD}, {unix.SYS_REBOOT}}},
	{"raw packets", []call{{unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0}, {unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW}}},
	{"sockets to the hypervisor", []call{{unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0}}},
	{"netlink beside routes, AF_ALG", []call{{unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER}, {unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0}}},
	{"upper layer protocols of TCP", []call{{unix.SYS_SETSOCKOPT, 0, unix.SOL_TCP, unix.TCP_ULP}}},
}

// callFacts ask the filter about every call of the table, without arguments, and
// about the groups. A call that passes may still be refused for want of a capability.
func callFacts() []fact {
	var calls []call
	for n := uint64(0); n <= unix.SYS_MSEAL; n++ {
		unused := n > 334 && n < unix.SYS_PIDFD_SEND_SIGNAL // 335 and 336 pass every filter
		if !unused {
			calls = append(calls, call{n})
		}
	}
	count := func(calls []call) (string, error) {
		errnos, err := ask(calls)
		if errors.Is(err, unix.EBUSY) {
			errnos, err = tryRest(calls)
		}
		n := 0
		for _, e := range errnos {
			if e == passed {
				n++
			}
		}
		return fmt.Sprintf("%d of %d", n, len(calls)), err
	}
	var facts []fact
	add := func(name string, calls []call) {
		value, err := count(calls)
		if err != nil {
			value = err.Error()
		}
		facts = append(facts, fact{name, value})
	}
	add("system calls that pass", calls)
	for _, g := range groups {
		add("… "+g.name, g.calls)
	}
	out, err := exec.Command("/proc/self/exe", "foreign", "ia32").Output()
	if err != nil {
		out = []byte(err.Error())
	}
	return append(facts, fact{"… of 32 bits", strings.TrimSpace(string(out))})
}

func mountFacts() []fact {
	var writable, suid, device []string
	hostPaths := 0
	root := "?"
	for line := range strings.Lines(file("/proc/self/mountinfo")) {
		left, right, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		flags := strings.Split(f[5], ",")
		rw := slices.Contains(flags, "rw") && slices.Contains(strings.Split(g[2], ","), "rw")
		node := g[0] == "devtmpfs" && f[3] != "/" || f[3] == "/null"
		if f[4] == "/" {
			root = map[bool]string{true: "writable", false: "read-only"}[rw]
		}
		if rw && !node && f[4] != "/" && f[4] != "/proc" {
			writable = append(writable, f[4])
		}
		if !slices.Contains(flags, "nosuid") {
			suid = append(suid, f[4])
		}
		if !slices.Contains(flags, "nodev") && !node {
			device = append(device, f[4])
		}
		if f[3] != "/" && !node && g[0] != "proc" && !strings.HasPrefix(g[0], "cgroup") {
			hostPaths++
		}
	}
	return []fact{
		{"root", root},
		{"other writable mounts", list(writable)},
		{"mounts with set-id effect", fmt.Sprint(len(suid))},
		{"mounts, other than of one device, that allow devices", fmt.Sprint(len(device))},
		{"paths of the host in mountinfo", fmt.Sprint(hostPaths)},
	}
}

// secrets are files and folders of /proc that tell of the host or steer it.
var secrets = []string{
	"acpi", "bus", "cmdline", "fs", "interrupts", "irq", "kallsyms", "kcore", "key-users", "keys", "kmsg", "kpagecgroup", "kpagecount",
	"kpageflags", "modules", "scsi", "slabinfo", "sysrq-trigger", "timer_list", "vmallocinfo", "vmcore",
}

// readable lists the secrets that can be opened and hold something.
func readable() string {
	var names []string
	for _, name := range secrets {
		path := "/proc/" + name
		if entries, err := os.ReadDir(path); err == nil {
			if len(entries) > 0 {
				names = append(names, name)
			}
			continue
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if n, _ := f.Read(make([]byte, 1)); n > 0 {
			names = append(names, name)
		}
		_ = f.Close()
	}
	return list(names)
}

func opens(path string, flags int) bool {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		_ = unix.Close(fd)
	}
	return err == nil
}

// sysfs tells whose files below /sys can be read.
func sysfs() string {
	entries, err := os.ReadDir("/sys")
	if err != nil || len(entries) == 0 {
		return "absent or empty"
	}
	kernel := []int64{unix.SYSFS_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC}
	found := errors.New("found")
	err = filepath.WalkDir("/sys", func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return nil
		}
		defer f.Close()
		var st unix.Statfs_t
		if unix.Fstatfs(int(f.Fd()), &st) == nil && slices.Contains(kernel, int64(st.Type)) {
			return found
		}
		return nil
	})
	if err != nil {
		return fmt.Sprintf("%d entries", len(entries))
	}
	return "nothing of the kernel's"
}

// devices counts device nodes directly in /dev.
func devices() string {
	entries, _ := os.ReadDir("/dev")
	n := 0
	for _, e := range entries { // a node may be mounted on a plain file
		if info, err := os.Stat("/dev/" + e.Name()); err == nil && info.Mode()&os.ModeDevice != 0 && e.Type()&os.ModeSymlink == 0 {
			n++
		}
	}
	return fmt.Sprint(n)
}

func interfaces() string {
	var names []string
	for line := range strings.Lines(file("/proc/net/dev")) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	slices.Sort(names)
	return list(names)
}

func processes() int {
	entries, _ := os.ReadDir("/proc")
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err == nil {
			n++
		}
	}
	return n
}

// instances counts the inotify instances that can be had, up to 200.
func instances() string {
	const most = 200
	var fds []int
	for len(fds) < most {
		fd, err := unix.InotifyInit1(unix.IN_CLOEXEC)
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	if len(fds) == most {
		return fmt.Sprintf("%d and more", most)
	}
	return fmt.Sprint(len(fds))
}

func limits() string {
	var values []string
	for _, kind := range []int{unix.RLIMIT_NOFILE, unix.RLIMIT_CORE, unix.RLIMIT_MEMLOCK, unix.RLIMIT_MSGQUEUE} {
		var l unix.Rlimit
		value := "?"
		if unix.Getrlimit(kind, &l) == nil {
			value = strconv.FormatUint(l.Max, 10)
			if l.Max == unix.RLIM_INFINITY {
				value = "∞"
			}
		}
		values = append(values, value)
	}
	return strings.Join(values, ", ")
}

// descriptors counts what was inherited: what Go opens itself is close-on-exec.
func descriptors() int {
	n := 0
	for fd := 3; fd < 1024; fd++ {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && flags&unix.FD_CLOEXEC == 0 {
			n++
		}
	}
	return n
}
