package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// expectation is one property of a process: how to read it from the kernel, and what
// it must be. An empty want means that the check is not for such a process.
type expectation struct {
	check string
	read  func(subject) (string, error)
	want  string
	or    string // what it may be too; "" means nothing else
	init  string // what it must be for the init handler; "" means want
}

// subject is a process as the checks see it.
type subject struct {
	Process
	dir    string // in the proc file system
	reader Reader
	mounts []mount // what it sees; of several at one point the last
}

// Finding is what the kernel says of one process about one expectation.
type Finding struct {
	Check  string `json:"check"`
	Domain string `json:"domain"`
	Role   string `json:"role"`
	PID    int    `json:"pid"` // on the host
	Want   string `json:"want"`
	Got    string `json:"got"`
	Met    bool   `json:"met"`
}

// The checks that the host's network is exempt from.
const (
	checkNamespaces = "own namespaces"
	checkInterfaces = "network interfaces"
)

// A difference must last for settleTime, and for settleTries of it, since hosts are
// busy, where something is being made: a process between fork and exec is what the
// init handler is, and a domain gets its mounts before it gets a process.
const (
	settleTime  = 20 * time.Millisecond
	settleTries = 100
)

// Posture compares every process of the domains with what it must be confined to.
// Processes that end meanwhile are left out. The findings are in the order of the
// expectations.
func (r Reader) Posture(domains []Domain) ([]Finding, error) {
	all, err := r.Read(domains)
	if err != nil {
		return nil, err
	}
	found := make([][]Finding, len(expected)) // by expectation
	inDomain := map[string]int{}              // how many processes
	for _, p := range all {
		inDomain[p.Domain]++
	}
	for _, p := range all {
		findings, err := r.judge(p)
		making := func() bool { return r.forked(p) || inDomain[p.Domain] == 1 }
		for try := 0; err == nil && unmet(findings) && (try == 0 || try < settleTries && making()); try++ {
			time.Sleep(settleTime)
			findings, err = r.judge(p)
		}
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", p.PID, err)
		}
		for i, f := range findings {
			if f != nil {
				found[i] = append(found[i], *f)
			}
		}
	}
	return slices.Concat(found...), nil
}

// judge reads a process anew and compares it with every expectation; nil stands for
// one that is not for such a process.
func (r Reader) judge(p Process) ([]*Finding, error) {
	s, err := r.subject(p)
	if err != nil {
		return nil, err
	}
	findings := make([]*Finding, len(expected))
	for i, e := range expected {
		want := e.want
		if s.Role == RoleInit && e.init != "" {
			want = e.init
		}
		if want == "" {
			continue
		}
		got, err := e.read(s)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", e.check, err)
		}
		findings[i] = &Finding{e.check, s.Domain, s.Role, s.PID, want, got, got == want || e.or != "" && got == e.or}
	}
	return findings, nil
}

// ExemptNetwork leaves out what cannot be met by a sandbox that was given the host's
// network on purpose.
func ExemptNetwork(findings []Finding) []Finding {
	var rest []Finding
	for _, f := range findings {
		switch f.Check {
		case checkInterfaces:
			continue
		case checkNamespaces:
			f.Want = strings.Join(slices.DeleteFunc(strings.Fields(f.Want), func(kind string) bool { return kind == "net" }), " ")
			f.Met = f.Got == f.Want
		}
		rest = append(rest, f)
	}
	return rest
}

func unmet(findings []*Finding) bool {
	return slices.ContainsFunc(findings, func(f *Finding) bool { return f != nil && !f.Met })
}

// forked tells whether a process has yet to execute its program. Only PID 1 may run
// the init handler's: elsewhere that ends at once.
func (r Reader) forked(p Process) bool {
	exe, err := os.Readlink(r.path(strconv.Itoa(p.PID), "exe"))
	return err == nil && exe == initPath && p.Role != RoleInit
}

// initPath is where a domain has the init handler's program.
const initPath = "/.sandbox-init"

// limitsDir is where a sandbox's root has the files that tell it its limits.
const limitsDir = "/.sandbox-limits"

// gone tells whether err is that of a process which has ended. A zombie has no mounts
// any more, and its mountinfo answers EINVAL.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL)
}

// subject reads a process anew; Domain and Role are p's.
func (r Reader) subject(p Process) (subject, error) {
	s := subject{dir: r.path(strconv.Itoa(p.PID)), reader: r}
	var err error
	if s.Process, err = r.Process(p.PID); err != nil {
		return s, err
	}
	s.Domain, s.Role, s.Profile = p.Domain, p.Role, p.Profile
	text, err := os.ReadFile(filepath.Join(s.dir, "mountinfo"))
	if err != nil {
		return s, err
	}
	at := map[string]int{}
	for line := range strings.Lines(string(text)) {
		m, ok := parseMount(line)
		if !ok {
			continue
		}
		if i, twice := at[m.point]; twice {
			s.mounts[i] = m
			continue
		}
		at[m.point] = len(s.mounts)
		s.mounts = append(s.mounts, m)
	}
	return s, nil
}

// points lists the mount points of the mounts that are chosen, sorted, or "none".
func (s subject) points(chosen func(mount) bool) (string, error) {
	var list []string
	for _, m := range s.mounts {
		if chosen(m) {
			list = append(list, m.point)
		}
	}
	return listing(list), nil
}

func listing(list []string) string {
	slices.Sort(list)
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, " ")
}

// mode tells how what is mounted at a point is mounted.
func (s subject) mode(point string) (string, error) {
	for _, m := range s.mounts {
		if m.point == point && m.readOnly {
			return "read-only", nil
		}
		if m.point == point {
			return "writable", nil
		}
	}
	return "absent", nil
}

func rootMount(s subject) (string, error)   { return s.mode("/") }
func initProgram(s subject) (string, error) { return s.mode(initPath) }
func procSys(s subject) (string, error)     { return s.mode("/proc/sys") }

// sysfs tells what is below /sys. The only mounts there show files of the sandbox's root in
// place of those of its cgroup, and a cgroup of the daemon's without processes below them,
// all read-only.
func sysfs(s subject) (string, error) {
	points, err := s.points(func(m mount) bool {
		file, found := strings.CutPrefix(m.point, "/sys/fs/cgroup")
		limits := found && m.root == limitsDir+"/cgroup"+file || file == "" && strings.HasSuffix(m.root, "/limits.shown")
		return (m.point == "/sys" || strings.HasPrefix(m.point, "/sys/")) && !(limits && m.readOnly)
	})
	if points == "none" {
		points = "limits of the sandbox"
	}
	return points, err
}

// writable leaves out /proc itself: what may be written of it belongs to the process.
func writable(s subject) (string, error) {
	return s.points(func(m mount) bool { return !m.readOnly && m.point != "/proc" })
}

func setID(s subject) (string, error) {
	return s.points(func(m mount) bool { return !slices.Contains(m.flags, "nosuid") })
}

// deviceMounts leaves out what hides a file of /proc.
func deviceMounts(s subject) (string, error) {
	return s.points(func(m mount) bool {
		hides := strings.HasPrefix(m.point, "/proc/") && m.root == "/null" && m.readOnly
		return !slices.Contains(m.flags, "nodev") && !hides
	})
}

// devices lists the nodes in /dev with what they are nodes of.
func devices(s subject) (string, error) {
	dir := filepath.Join(s.dir, "root", "dev")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	var list []string
	for _, e := range entries {
		var st unix.Stat_t
		path := filepath.Join(dir, e.Name())
		if err := unix.Lstat(path, &st); err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		switch kind, major, minor := st.Mode&unix.S_IFMT, unix.Major(st.Rdev), unix.Minor(st.Rdev); kind {
		case unix.S_IFCHR:
			list = append(list, fmt.Sprintf("%s=%d:%d", e.Name(), major, minor))
		case unix.S_IFBLK:
			list = append(list, fmt.Sprintf("%s=block %d:%d", e.Name(), major, minor))
		}
	}
	return listing(list), nil
}

// unmasked looks into the process's own /proc. Only there a mask can be told from
// what it hides.
func unmasked(s subject) (string, error) {
	var readable []string
	for _, name := range hidden {
		path := filepath.Join(s.dir, "root", "proc", name)
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if err == unix.ENOENT || err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3) {
			continue
		}
		if err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		if entries, err := os.ReadDir(path); err != nil || len(entries) > 0 {
			readable = append(readable, name)
		}
	}
	if len(readable) == 0 {
		return "nothing of the host's secrets", nil
	}
	return listing(readable), nil
}

func ids(s subject) (string, error) {
	groups := "none"
	if len(s.Groups) > 0 {
		groups = fmt.Sprint(s.Groups)
	}
	return fmt.Sprintf("%d, %d, %s", s.UID.Inside, s.GID.Inside, groups), nil
}

// idRange wants one range in both maps, that no host user is in.
func idRange(s subject) (string, error) {
	var maps []string
	for _, file := range []string{"uid_map", "gid_map"} {
		text, err := os.ReadFile(filepath.Join(s.dir, file))
		if err != nil {
			return "", err
		}
		maps = append(maps, strings.Join(strings.Fields(string(text)), " "))
	}
	var inside, host, count uint64
	if _, err := fmt.Sscan(maps[0], &inside, &host, &count); err != nil {
		return maps[0], nil
	}
	if maps[0] == maps[1] && inside == 0 && host >= unprivilegedID && count == idCount && len(strings.Fields(maps[0])) == 3 {
		return "65536 from an unprivileged one on", nil
	}
	return "users " + maps[0] + "; groups " + maps[1], nil
}

func capabilities(s subject) (string, error) {
	var sets []string
	for _, set := range []struct {
		name string
		set  CapabilitySet
	}{
		{"inheritable", s.Capabilities.Inheritable}, {"permitted", s.Capabilities.Permitted}, {"effective", s.Capabilities.Effective},
		{"bounding", s.Capabilities.Bounding}, {"ambient", s.Capabilities.Ambient},
	} {
		if set.set != 0 {
			sets = append(sets, set.name+" "+set.set.String())
		}
	}
	if sets == nil {
		return "none", nil
	}
	return strings.Join(sets, "; "), nil
}

func noNewPrivs(s subject) (string, error) {
	if s.NoNewPrivs {
		return "on every thread", nil
	}
	return "off", nil
}

func seccomp(s subject) (string, error) {
	if s.Seccomp == "filter" {
		return fmt.Sprintf("%d filter on every thread", s.Filters), nil
	}
	return s.Seccomp, nil
}

func ownNamespaces(s subject) (string, error) {
	var own []string
	for _, n := range s.Namespaces {
		if n.Own {
			own = append(own, n.Kind)
		}
	}
	return strings.Join(own, " "), nil
}

// interfaces lists the network interfaces in sight.
func interfaces(s subject) (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "net", "dev"))
	if err != nil {
		return "", err
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if name, _, ok := strings.Cut(line, ":"); ok {
			names = append(names, strings.TrimSpace(name))
		}
	}
	return listing(names), nil
}

// environment lists the names of the variables.
func environment(s subject) (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "environ"))
	if err != nil {
		return "", err
	}
	var names []string
	for pair := range strings.SplitSeq(string(text), "\x00") {
		if name, _, ok := strings.Cut(pair, "="); ok {
			names = append(names, name)
		}
	}
	return listing(names), nil
}

// keyring looks for a key that the sandbox's ids alone own: a session keyring that was
// made for it.
func keyring(s subject) (string, error) {
	text, err := os.ReadFile(s.reader.path("key-users"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if user, _, _ := strings.Cut(strings.TrimSpace(line), ":"); user == fmt.Sprint(s.UID.Host) {
			return "own", nil
		}
	}
	return "shared with others", nil
}
