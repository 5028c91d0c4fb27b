package isolation

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"sync"

	"github.com/opencontainers/cgroups"
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// InitPath is where a domain shows its init handler. It is mounted read-only, so
// that the file cannot be opened for writing from inside (SEC-31).
const InitPath = "/.sandbox-init"

// Paths are the places on the host that a domain's configuration refers to.
type Paths struct {
	Rootfs string // directory that becomes the root of the domain
	NetNS  string // network namespace that the sandbox's domains share; "" with NetworkHost
	Init   string // binary of the init handler
	Dev    string // directory that becomes /dev: the nodes of DeviceNodes, and an empty directory shm
}

var idPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,39}$`) })

// Validate reports the first thing that makes s unusable.
func (s Spec) Validate() error {
	if !idPattern().MatchString(s.ID) {
		return fmt.Errorf("sandbox id %q: want 1 to 40 of a-z, 0-9 and -, not starting with -", s.ID)
	}
	if s.IDBase < IDCount {
		return fmt.Errorf("sandbox %s: host id base %d would map host system users; use at least %d", s.ID, s.IDBase, IDCount)
	}
	if len(s.Domains) == 0 {
		return fmt.Errorf("sandbox %s has no domain", s.ID)
	}
	for _, d := range s.Domains {
		if d != RuntimeDomain && d != ExtensionDomain {
			return fmt.Errorf("sandbox %s: unknown domain %q", s.ID, d)
		}
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || m.Target == "/" {
			return fmt.Errorf("sandbox %s: mount target %q is not a clean absolute path below /", s.ID, m.Target)
		}
		if len(m.Sources) == 0 {
			return fmt.Errorf("sandbox %s: mount %s has no source", s.ID, m.Target)
		}
	}
	if _, ok := profiles[s.Profile()]; !ok {
		return fmt.Errorf("sandbox %s: unknown seccomp profile %q", s.ID, s.Seccomp)
	}
	if err := s.Network.validate(); err != nil {
		return fmt.Errorf("sandbox %s: network: %w", s.ID, err)
	}
	return nil
}

// Profile is the name of the seccomp profile of the sandbox's processes.
func (s Spec) Profile() string {
	if s.Seccomp == "" {
		return DefaultProfile
	}
	return s.Seccomp
}

// oomScore makes sandboxes the first to go when the host, not a sandbox, runs out of
// memory: before the daemon, whose own score they would have otherwise, and before
// the host's services (proc(5), oom_score_adj).
const oomScore = 500

// initCapabilities are what the init handler starts with. It gives up SETPCAP and
// SYS_RESOURCE before its handshake (SEC-31); the processes that it
// starts have none.
var initCapabilities = []string{"CAP_KILL", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_RESOURCE"}

// MaskedPaths are those of /proc that tell of the host or steer it (SEC-35).
// Files are to read as /dev/null, directories are to be empty.
func MaskedPaths() []string {
	return []string{
		"/proc/acpi", "/proc/asound", "/proc/cmdline", "/proc/interrupts", "/proc/kallsyms", "/proc/kcore",
		"/proc/keys", "/proc/key-users", "/proc/kmsg", "/proc/kpagecgroup", "/proc/kpagecount", "/proc/kpageflags",
		"/proc/latency_stats", "/proc/modules", "/proc/sched_debug", "/proc/scsi", "/proc/slabinfo",
		"/proc/timer_list", "/proc/timer_stats", "/proc/vmallocinfo", "/proc/vmcore",
		"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sysrq-trigger",
	}
}

// Config returns libcontainer's configuration of one domain. It describes the
// domain's namespaces, an almost empty read-only root, and the init handler; code,
// layers and the base's directories are attached to the live domain afterwards, and
// MaskedPaths are hidden before. The seccomp filter, that of Profile, is not in it: the
// init handler puts it on itself.
func (s Spec) Config(domain string, p Paths) (*configs.Config, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	if !slices.Contains(s.Domains, domain) {
		return nil, fmt.Errorf("sandbox %s has no domain %q", s.ID, domain)
	}
	if p.Rootfs == "" || (p.NetNS == "") != (s.Network.Mode == NetworkHost) || p.Init == "" || p.Dev == "" {
		return nil, errors.New("config needs root, network namespace, init handler and devices")
	}
	hostname := s.Hostname
	if hostname == "" {
		hostname = "sandbox" // as /etc/hosts inside has it
	}
	ids := []configs.IDMap{{ContainerID: 0, HostID: int64(s.IDBase), Size: IDCount}}
	score := oomScore
	return &configs.Config{
		Rootfs:          p.Rootfs,
		Readonlyfs:      true,
		RootPropagation: unix.MS_PRIVATE | unix.MS_REC,
		Hostname:        hostname,
		Namespaces:      namespaces(p.NetNS),
		UIDMappings:     ids,
		GIDMappings:     ids,
		Capabilities: &configs.Capabilities{
			Bounding: initCapabilities, Effective: initCapabilities, Permitted: initCapabilities,
		},
		NoNewPrivileges: true,
		Rlimits:         rlimits(),
		OomScoreAdj:     &score,
		Scheduler:       &configs.Scheduler{Policy: specs.SchedBatch}, // docs/decisions/0024
		Mounts:          mounts(p),
		// None: the domain's processes enter its cgroups by themselves. libcontainer always
		// makes some; that it may not is nothing to it if they are said to be those of a
		// user other than root.
		Cgroups: &cgroups.Cgroup{Parent: "/", Name: noCgroup, Rootless: true, Resources: &cgroups.Resources{}},
	}, nil
}

// noCgroup is the name of a cgroup that libcontainer does not make, and nobody else: no
// sandbox has such an id.
const noCgroup = ".not-made"

// namespaces are those of a domain; without a path of a network namespace it has none
// of its own.
func namespaces(netNS string) configs.Namespaces {
	list := configs.Namespaces{
		{Type: configs.NEWNS}, {Type: configs.NEWPID}, {Type: configs.NEWIPC}, {Type: configs.NEWUTS},
		{Type: configs.NEWUSER}, {Type: configs.NEWCGROUP},
	}
	if netNS != "" {
		list = append(list, configs.Namespace{Type: configs.NEWNET, Path: netNS})
	}
	return list
}

// mounts are the file systems that the kernel makes for a domain, the devices, and the
// init handler. /proc/sys becomes read-only later: the init handler first writes
// the limits of its own user namespace there.
func mounts(p Paths) []*configs.Mount {
	const (
		locked = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
		shown  = unix.MS_BIND | unix.MS_RDONLY | unix.MS_NOSUID
	)
	return []*configs.Mount{
		{Device: "proc", Source: "proc", Destination: "/proc", Flags: locked},
		{Device: "bind", Source: p.Dev, Destination: "/dev", Flags: shown | unix.MS_NOEXEC},
		// POSIX shared memory and semaphores of Python's multiprocessing and the like; counted as the sandbox's memory.
		{Device: "tmpfs", Source: "shm", Destination: "/dev/shm", Flags: locked, Data: "mode=1777,size=16m,nr_inodes=1024"},
		{Device: "bind", Source: p.Init, Destination: InitPath, Flags: shown | unix.MS_NODEV},
	}
}

// rlimits of everything in a domain (ENV-34, SEC-37).
func rlimits() []configs.Rlimit {
	fixed := func(kind int, n uint64) configs.Rlimit { return configs.Rlimit{Type: kind, Soft: n, Hard: n} }
	return []configs.Rlimit{
		fixed(unix.RLIMIT_NOFILE, 1024),
		fixed(unix.RLIMIT_CORE, 0),
		fixed(unix.RLIMIT_MEMLOCK, 64<<10),
		fixed(unix.RLIMIT_MSGQUEUE, 0),
		fixed(unix.RLIMIT_RTPRIO, 0),
		fixed(unix.RLIMIT_NICE, 0),
	}
}

// DeviceNode is a character device, which everybody may read and write.
type DeviceNode struct {
	Name         string // in /dev
	Major, Minor uint32
}

// DeviceNodes are the devices of a domain.
func DeviceNodes() []DeviceNode {
	return []DeviceNode{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}
}

// DeviceRules are the cgroup rules that allow the devices of a domain and nothing else.
func DeviceRules() []*devices.Rule {
	rules := []*devices.Rule{{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: false}}
	for _, d := range DeviceNodes() {
		rules = append(rules, &devices.Rule{Type: devices.CharDevice, Major: int64(d.Major), Minor: int64(d.Minor), Permissions: "rw", Allow: true})
	}
	return rules
}
