package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Cgroup is where a process is in the cgroup trees and what bounds it there. A limit
// is the tightest on the way from the process's cgroup to the root; 0 means none.
type Cgroup struct {
	Path               string  `json:"path"` // in the v2 tree, or on a pure v1 host in the memory tree
	MemoryBytes        int64   `json:"memory_bytes"`
	MemoryAndSwapBytes int64   `json:"memory_and_swap_bytes"` // equal to MemoryBytes where swap is off
	CPUs               float64 `json:"cpus"`                  // quota by period
	PIDs               int64   `json:"pids"`
	Frozen             bool    `json:"frozen"`
}

// mount is one line of mountinfo, as far as it matters here.
type mount struct {
	id                  string
	root, point, fstype string
	flags               []string // of the mount
	options             []string // of the file system
	readOnly            bool     // by the mount or by the file system
}

// parseMount parses a line of mountinfo: 36 35 98:0 ROOT POINT OPTS … - TYPE SOURCE FSOPTS.
func parseMount(line string) (mount, bool) {
	left, right, ok := strings.Cut(line, " - ")
	l, r := strings.Fields(left), strings.Fields(right)
	if !ok || len(l) < 6 || len(r) < 3 {
		return mount{}, false
	}
	m := mount{id: l[0], root: l[3], point: l[4], fstype: r[0], flags: strings.Split(l[5], ","), options: strings.Split(r[2], ",")}
	m.readOnly = slices.Contains(m.flags, "ro") || slices.Contains(m.options, "ro")
	return m, true
}

// hierarchy is a process's place in one cgroup tree: the host directories from its
// cgroup up to the root of the mount.
type hierarchy struct {
	path string   // as /proc/PID/cgroup has it
	dirs []string // own first
}

// trees holds a process's places by controller; "" is the v2 tree.
type trees map[string]hierarchy

// readCgroup reads place and limits. On a hybrid host limits are in the v1 trees and
// the frozen state in the v2 tree; each is looked for where its controller is.
func (r Reader) readCgroup(dir string, p *Process) error {
	t, err := r.cgroupTrees(dir)
	if err != nil {
		return err
	}
	p.Cgroup.Path = t.place().path
	if err := t.readMemory(&p.Cgroup); err != nil {
		return err
	}
	if p.Cgroup.CPUs, err = t.cpus(); err != nil {
		return err
	}
	if p.Cgroup.PIDs, err = least(t.of("pids"), "pids.max"); err != nil {
		return err
	}
	p.Cgroup.Frozen, err = t.frozen()
	return err
}

// cgroupTrees finds a process's cgroup directories on the host.
func (r Reader) cgroupTrees(dir string) (trees, error) {
	places, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	if err != nil {
		return nil, err
	}
	mounts, err := os.ReadFile(r.path("self", "mountinfo"))
	if err != nil {
		return nil, err
	}
	t := trees{}
	for line := range strings.Lines(string(places)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // ID:CONTROLLERS:PATH
		if len(fields) != 3 {
			return nil, fmt.Errorf("cgroup: line %q", line)
		}
		for _, controller := range strings.Split(fields[1], ",") {
			t[controller] = hierarchy{fields[2], cgroupDirs(string(mounts), controller, fields[2])}
		}
	}
	return t, nil
}

// cgroupDirs returns the directories of the cgroup at path, own first, up to the
// mount point of the controller's tree; none if the tree is not mounted.
func cgroupDirs(mountinfo, controller, path string) []string {
	for line := range strings.Lines(mountinfo) {
		m, ok := parseMount(line)
		if !ok || !m.holds(controller) {
			continue
		}
		rel, err := filepath.Rel(m.root, path)
		if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
			continue
		}
		var dirs []string
		for ; rel != "."; rel = filepath.Dir(rel) {
			dirs = append(dirs, filepath.Join(m.point, rel))
		}
		return append(dirs, m.point)
	}
	return nil
}

// holds says whether m is the tree of a controller; "" is the v2 tree.
func (m mount) holds(controller string) bool {
	if controller == "" {
		return m.fstype == "cgroup2"
	}
	return m.fstype == "cgroup" && slices.Contains(m.options, controller)
}

// place is where the process is in the v2 tree, or on a pure v1 host in the memory
// tree.
func (t trees) place() hierarchy {
	if h, ok := t[""]; ok && len(h.dirs) > 0 {
		return h
	}
	return t["memory"]
}

// of returns the directories in which a controller's files are: those of its own v1
// tree if there is one, else those of the v2 tree.
func (t trees) of(controller string) []string {
	if h, ok := t[controller]; ok {
		return h.dirs
	}
	return t[""].dirs
}

// readMemory fills in the two memory limits.
func (t trees) readMemory(c *Cgroup) error {
	var err error
	if h, ok := t["memory"]; ok {
		if c.MemoryBytes, err = least(h.dirs, "memory.limit_in_bytes"); err != nil {
			return err
		}
		c.MemoryAndSwapBytes, err = least(h.dirs, "memory.memsw.limit_in_bytes")
		return err
	}
	if c.MemoryBytes, err = least(t[""].dirs, "memory.max"); err != nil {
		return err
	}
	swap, limited, err := smallest(t[""].dirs, "memory.swap.max")
	if limited && c.MemoryBytes != 0 {
		c.MemoryAndSwapBytes = c.MemoryBytes + swap
	}
	return err
}

// cpus returns the tightest CPU quota.
func (t trees) cpus() (float64, error) {
	least := math.Inf(1)
	for _, dir := range t.of("cpu") {
		quota, period, err := cpuQuota(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if quota > 0 && period > 0 {
			least = min(least, float64(quota)/float64(period))
		}
	}
	if math.IsInf(least, 1) {
		return 0, nil
	}
	return least, nil
}

// cpuQuota reads the quota of one cgroup in microseconds; a quota that is not
// positive means none.
func cpuQuota(dir string) (quota, period int64, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "cpu.max"))
	if errors.Is(err, fs.ErrNotExist) {
		if quota, err = readInt(filepath.Join(dir, "cpu.cfs_quota_us")); err != nil {
			return 0, 0, err
		}
		period, err = readInt(filepath.Join(dir, "cpu.cfs_period_us"))
		return quota, period, err
	}
	if err != nil || strings.HasPrefix(string(b), "max") {
		return 0, 0, err
	}
	_, err = fmt.Sscan(string(b), &quota, &period)
	return quota, period, err
}

// frozen asks the v2 tree, else the v1 freezer.
func (t trees) frozen() (bool, error) {
	file, want := "cgroup.events", "frozen 1"
	dirs := t[""].dirs
	if len(dirs) == 0 {
		file, want, dirs = "freezer.state", "FROZEN", t["freezer"].dirs
	}
	if len(dirs) == 0 {
		return false, nil
	}
	b, err := os.ReadFile(filepath.Join(dirs[0], file))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the root cgroup has no such file
	}
	return slices.Contains(strings.Split(strings.TrimSpace(string(b)), "\n"), want), err
}

// least returns the tightest limit in the files of that name in dirs, 0 if there is
// none.
func least(dirs []string, name string) (int64, error) {
	n, _, err := smallest(dirs, name)
	return n, err
}

// smallest is least for limits of which 0 is one: found says whether there is one.
// Numbers so large that v1 uses them for "unlimited" are none.
func smallest(dirs []string, name string) (limit int64, found bool, err error) {
	const unlimited = math.MaxInt64 &^ 0xFFFF // v1: the largest number of whole pages, pages are 64 KiB at most
	for _, dir := range dirs {
		n, err := readInt(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the root of a tree, or a controller that is not enabled here
		}
		if err != nil {
			return 0, false, err
		}
		if n >= 0 && n < unlimited && (!found || n < limit) {
			limit, found = n, true
		}
	}
	return limit, found, nil
}

// readInt reads a file that holds a number or "max", which is -1 here.
func readInt(path string) (int64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s := strings.TrimSpace(string(b))
	if s == "max" {
		return -1, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}
