package inspect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// CapabilitySet is a set of capabilities, bit N for capability N.
type CapabilitySet uint64

// Capabilities are the five sets of a process.
type Capabilities struct {
	Inheritable CapabilitySet `json:"inheritable"`
	Permitted   CapabilitySet `json:"permitted"`
	Effective   CapabilitySet `json:"effective"`
	Bounding    CapabilitySet `json:"bounding"`
	Ambient     CapabilitySet `json:"ambient"`
}

// Union is what is in any of the five sets: 0 is the posture of a sandbox's process.
func (c Capabilities) Union() CapabilitySet {
	return c.Inheritable | c.Permitted | c.Effective | c.Bounding | c.Ambient
}

// capabilityNames are in the order of linux/capability.h.
var capabilityNames = []string{
	"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
	"SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
	"IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
	"SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
	"LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
}

// Names returns the capabilities of the set without their CAP_ prefix, never nil.
func (s CapabilitySet) Names() []string {
	names := []string{}
	for bit := range 64 {
		switch {
		case s&(1<<bit) == 0:
		case bit < len(capabilityNames):
			names = append(names, capabilityNames[bit])
		default:
			names = append(names, strconv.Itoa(bit))
		}
	}
	return names
}

// String lists the names, or says "none".
func (s CapabilitySet) String() string {
	if s == 0 {
		return "none"
	}
	return strings.Join(s.Names(), ",")
}

// MarshalJSON gives the list of names.
func (s CapabilitySet) MarshalJSON() ([]byte, error) { return json.Marshal(s.Names()) }

// seccompModes are the values of Seccomp in /proc/PID/status.
var seccompModes = []string{"off", "strict", "filter"}

// readStatus reads the status of every thread of a process. Ids, name and pids are
// the main thread's; of capabilities, no_new_privs and seccomp the weakest counts.
func readStatus(dir string, p *Process) error {
	main, err := readStatusFile(filepath.Join(dir, "status"))
	if err != nil {
		return err
	}
	p.Command = main["Name"]
	if p.PIDInside, err = lastInt(main["NSpid"]); err != nil {
		return fmt.Errorf("status: NSpid: %w", err)
	}
	if p.UID.Host, err = effectiveID(main["Uid"]); err != nil {
		return fmt.Errorf("status: Uid: %w", err)
	}
	if p.GID.Host, err = effectiveID(main["Gid"]); err != nil {
		return fmt.Errorf("status: Gid: %w", err)
	}
	p.Groups = []uint32{}
	for _, f := range strings.Fields(main["Groups"]) {
		gid, err := strconv.ParseUint(f, 10, 32)
		if err != nil {
			return fmt.Errorf("status: Groups: %w", err)
		}
		p.Groups = append(p.Groups, uint32(gid))
	}

	threads, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return err
	}
	weakest := confinement{noNewPrivs: true, mode: len(seccompModes), filters: -1}
	for _, t := range threads {
		c, err := readConfinement(filepath.Join(dir, "task", t.Name(), "status"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a thread that has ended
		}
		if err != nil {
			return err
		}
		weakest = weakest.weaker(c)
	}
	if weakest.filters < 0 {
		return fs.ErrNotExist
	}
	p.Capabilities, p.NoNewPrivs = weakest.caps, weakest.noNewPrivs
	p.Seccomp, p.Filters = seccompModes[weakest.mode], weakest.filters
	return nil
}

// confinement is what may differ between the threads of a process.
type confinement struct {
	caps       Capabilities
	noNewPrivs bool
	mode       int // index into seccompModes
	filters    int // -1: no thread yet
}

// weaker combines the weakest of two threads.
func (c confinement) weaker(o confinement) confinement {
	c.caps = Capabilities{
		c.caps.Inheritable | o.caps.Inheritable,
		c.caps.Permitted | o.caps.Permitted,
		c.caps.Effective | o.caps.Effective,
		c.caps.Bounding | o.caps.Bounding,
		c.caps.Ambient | o.caps.Ambient,
	}
	c.noNewPrivs = c.noNewPrivs && o.noNewPrivs
	c.mode = min(c.mode, o.mode)
	if c.filters < 0 || o.filters < c.filters {
		c.filters = o.filters
	}
	return c
}

// readConfinement reads one thread's status file.
func readConfinement(path string) (confinement, error) {
	s, err := readStatusFile(path)
	if err != nil {
		return confinement{}, err
	}
	c := confinement{noNewPrivs: s["NoNewPrivs"] == "1"}
	for name, set := range map[string]*CapabilitySet{
		"CapInh": &c.caps.Inheritable, "CapPrm": &c.caps.Permitted, "CapEff": &c.caps.Effective,
		"CapBnd": &c.caps.Bounding, "CapAmb": &c.caps.Ambient,
	} {
		bits, err := strconv.ParseUint(s[name], 16, 64)
		if err != nil {
			return confinement{}, fmt.Errorf("%s: %s: %w", path, name, err)
		}
		*set = CapabilitySet(bits)
	}
	if c.mode, err = strconv.Atoi(s["Seccomp"]); err != nil || c.mode < 0 || c.mode >= len(seccompModes) {
		return confinement{}, fmt.Errorf("%s: Seccomp is %q", path, s["Seccomp"])
	}
	if n, ok := s["Seccomp_filters"]; ok { // since Linux 5.9
		if c.filters, err = strconv.Atoi(n); err != nil {
			return confinement{}, fmt.Errorf("%s: Seccomp_filters: %w", path, err)
		}
	}
	return c, nil
}

// readStatusFile splits a status file into its fields.
func readStatusFile(path string) (map[string]string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			fields[name] = strings.TrimSpace(value)
		}
	}
	return fields, nil
}

// lastInt returns the last of the numbers in s.
func lastInt(s string) (int, error) {
	fields := strings.Fields(s)
	if len(fields) == 0 {
		return 0, errors.New("no number")
	}
	return strconv.Atoi(fields[len(fields)-1])
}

// effectiveID returns the second of the four ids of a Uid or Gid line.
func effectiveID(s string) (uint32, error) {
	fields := strings.Fields(s)
	if len(fields) != 4 {
		return 0, fmt.Errorf("%q has not four ids", s)
	}
	id, err := strconv.ParseUint(fields[1], 10, 32)
	return uint32(id), err
}
