package runc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// hostFacts reads what the files of limits repeat of the host.
func hostFacts() (isolation.Host, error) {
	var h isolation.Host
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return h, os.NewSyscallError("sysinfo", err)
	}
	h.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return h, os.NewSyscallError("sched_getaffinity", err)
	}
	for n := range len(set) * strconv.IntSize {
		if set.IsSet(n) {
			h.CPUs = append(h.CPUs, n)
		}
	}
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return h, err
	}
	h.CPUInfo = isolation.ParseCPUInfo(string(text))
	if text, err = os.ReadFile("/proc/stat"); err != nil {
		return h, err
	}
	for line := range strings.Lines(string(text)) {
		_, _ = fmt.Sscanf(line, "btime %d", &h.BootTime)
	}
	return h, nil
}

// processors distributes the processors of the host among sandboxes. It is safe for
// concurrent use.
type processors struct {
	all []int // numbers, in order

	mu    sync.Mutex
	users map[int]int // sandboxes that are confined to a processor, by its number
}

// take returns n processors, those with the fewest users, in order; or all if n is 0 or
// the host has no more. The caller gives them back.
func (p *processors) take(n int) []int {
	if n == 0 || n >= len(p.all) {
		return p.all
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := map[int]bool{}
	for range n {
		best := -1
		for _, cpu := range p.all {
			if !taken[cpu] && (best < 0 || p.users[cpu] < p.users[best]) {
				best = cpu
			}
		}
		taken[best] = true
	}
	var list []int
	for _, cpu := range p.all {
		if taken[cpu] {
			list = append(list, cpu)
			p.users[cpu]++
		}
	}
	return list
}

// give takes back what take has returned. Of all processors, and of none, it keeps no
// account.
func (p *processors) give(list []int) {
	if len(list) == len(p.all) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, cpu := range list {
		p.users[cpu]--
	}
}

// chooseCPUs gives the sandbox as many processors as its limits say, and reports whether
// they are others than before.
func (s *Sandbox) chooseCPUs() bool {
	p, n := s.engine.processors, isolation.VCPUs(s.spec.Limits)
	if n == 0 || n > len(p.all) {
		n = len(p.all)
	}
	if n == len(s.cpus) {
		return false
	}
	p.give(s.cpus)
	s.cpus = p.take(n)
	return true
}

// fillLimits creates in the root the files that tell the sandbox its limits. When the limits
// have changed since an earlier call, it changes what differs.
func (s *Sandbox) fillLimits(tree *rootTree) error {
	old, limits := s.cpus, s.spec.Limits
	limits.CPU = 0 // only decides how many processors there are
	others := s.chooseCPUs()
	if !others && limits == s.shown {
		return nil
	}
	files := isolation.LimitFiles(limits, s.cpus, s.engine.host)
	if others {
		for name := range s.limitFiles {
			if _, kept := files[name]; kept {
				continue
			}
			if err := tree.remove(name, 0); err != nil {
				return err
			}
		}
		for _, dir := range slices.Backward(isolation.CPUDirs(old)) {
			if err := tree.remove(dir, unix.AT_REMOVEDIR); err != nil && !errors.Is(err, unix.ENOTEMPTY) { // not empty: kept
				return err
			}
		}
		for _, dir := range append(isolation.LimitDirs(), isolation.CPUDirs(s.cpus)...) {
			if err := tree.mkdir(dir); err != nil {
				return err
			}
		}
	}
	for name, content := range files {
		if was, ok := s.limitFiles[name]; ok && was == content {
			continue
		}
		if err := tree.write(name, content); err != nil {
			return err
		}
	}
	s.limitFiles, s.shown = files, limits
	return nil
}

// limitsCgroup is the name of a cgroup in the daemon's folder on a unified host. It has no
// processes; no sandbox has such an id.
const limitsCgroup = "limits.shown"

// makeLimitsCgroup creates the cgroup that every domain shows at isolation.CgroupDir, and
// returns its path; "" if the host is not unified. Only root may read its files. Sandboxes
// see the files of fillLimits in their place (showLimits).
func (p *placement) makeLimitsCgroup() (_ string, err error) {
	if p.host.Mode != ModeUnified {
		return "", nil
	}
	dir := filepath.Join(p.host.V2, p.group, limitsCgroup)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(dir))
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		if err := os.Chmod(filepath.Join(dir, e.Name()), 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// cgroupMount returns a detached read-only mount of cgroup v2 for isolation.CgroupDir of a
// domain, or -1 if the host has only cgroup v1. On a unified host it is that of
// makeLimitsCgroup, on a hybrid one the domain's, which showLimits covers.
func (e *Engine) cgroupMount(c *parentCgroup, domain string) (int, error) {
	path := e.limitsCgroup
	if path == "" {
		if c.core == "" {
			return -1, nil
		}
		path = c.domainDir(c.place.host.V2, domain)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := unix.MountAttr{Attr_set: readOnly | unix.MOUNT_ATTR_NOEXEC, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

// showLimits shows the files of fillLimits where programs look for them, in the mount
// namespace of the calling thread. cgroups is the result of cgroupMount. JVMs and .NET take the
// files at isolation.CgroupDir for those of a cgroup only if the file system there, or a line of
// /proc/self/mountinfo, says cgroup2.
//
// On a unified host each of the sandbox's files covers the one of the same name. Elsewhere
// cgroup v2 has no such names, so that the folder covers all of cgroups.
func (e *Engine) showLimits(cgroups int) error {
	if cgroups >= 0 {
		if err := (detached{cgroups, isolation.CgroupDir}).move(); err != nil {
			return err
		}
	}
	for _, m := range isolation.LimitMounts(e.limitsCgroup != "") { // they are read-only because the root is
		err := unix.Mount(m.Sources[0], m.Target, "", unix.MS_BIND, "")
		if err != nil && !errors.Is(err, unix.ENOENT) { // a controller that the host has not
			return &os.PathError{Op: "mount over", Path: m.Target, Err: err}
		}
	}
	return nil
}

// setAffinity lets every thread of the init handler pid, and thereby every process that it
// starts, use no other processors than cpus.
func setAffinity(pid int, cpus []int) error {
	var set unix.CPUSet
	for _, cpu := range cpus {
		set.Set(cpu)
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	for done, again := map[int]bool{}, true; again; { // a thread that starts meanwhile has the affinity of the one that starts it
		again = false
		tasks, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, err := strconv.Atoi(task.Name())
			if err != nil || done[tid] {
				continue
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("confine process %d to the processors %v: %w", pid, cpus, err)
			}
			done[tid], again = true, true
		}
	}
	return nil
}
