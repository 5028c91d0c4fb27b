package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
)

const (
	// cpuPeriod of the quota in microseconds, the kernel's default (Documentation/scheduler/sched-bwc.rst).
	cpuPeriod = 100_000
	// minQuota in microseconds is the smallest quota of the kernel (sched-bwc.rst: 1 ms).
	minQuota = 1_000
	// handlerPIDs is the part of the pids limit for each init handler, in addition to that of
	// the function (SEC-37): the 10 or 11 threads that it keeps, and a few more that the Go
	// runtime may start.
	handlerPIDs = 16
)

// parentCgroup is the parent cgroup of one sandbox. Its domains share its limits, it measures
// their usage, and freezing and killing apply to all of it. Each domain has a cgroup below it.
type parentCgroup struct {
	place  *placement
	path   string // as this process sees it, absolute below each tree's mount
	limits isolation.Limits
	v2     *cgroup2.Manager // limits on a unified host
	v1     cgroup1.Cgroup   // limits elsewhere
	core   string           // directory in the v2 tree for freeze and kill; "" on a legacy host
	handle *cgroup.Handle
	oom    *oomWatch // on v1, where the kernel does not kill the whole group itself; else nil
}

// newCgroup creates the parent cgroup of a sandbox, with its limits but without a CPU quota.
// If it returns a cgroup together with an error, the caller must remove the cgroup.
func newCgroup(p *placement, id string, l isolation.Limits, domains int) (_ *parentCgroup, err error) {
	c := &parentCgroup{place: p, path: filepath.Join(p.group, id), limits: l}
	// The libraries accept an existing cgroup. So refuse an id that is in use, or whose
	// remains could not be removed, before there is anything to roll back.
	claim := p.host.V2
	if p.host.Mode != ModeUnified {
		claim = p.host.Hierarchies["memory"]
	}
	if err := os.Mkdir(filepath.Join(claim, c.path), 0o755); err != nil {
		return nil, fmt.Errorf("sandbox id %s is in use: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create the cgroup of %s: %w", id, err)
		}
	}()
	if p.host.Mode == ModeUnified {
		if c.v2, err = cgroup2.NewManager(p.host.V2, c.path, resourcesV2(l, domains)); err != nil {
			return c, err
		}
		c.core = filepath.Join(p.host.V2, c.path)
	} else if err := c.newV1(domains); err != nil {
		return c, err
	}
	c.handle, err = c.open()
	return c, err
}

// open opens the files to freeze and to measure the sandbox.
func (c *parentCgroup) open() (*cgroup.Handle, error) {
	var files []cgroup.File
	var err error
	add := func(role cgroup.Role, flag int, dir, name string) {
		if err != nil {
			return
		}
		var f *os.File
		if f, err = openPlain(filepath.Join(dir, name), flag); err == nil {
			files = append(files, cgroup.File{Role: role, File: f})
		}
	}
	if c.core != "" {
		add(cgroup.Freeze, os.O_RDWR, c.core, "cgroup.freeze")
		add(cgroup.Events, os.O_RDONLY, c.core, "cgroup.events")
	} else {
		add(cgroup.FreezeState, os.O_RDWR, c.dirV1("freezer"), "freezer.state")
	}
	if c.core != "" {
		add(cgroup.CPUStat, os.O_RDONLY, c.core, "cpu.stat")
	} else if acct := c.place.host.Hierarchies["cpuacct"]; acct != "" {
		add(cgroup.CPUUsage, os.O_RDONLY, filepath.Join(acct, c.path), "cpuacct.usage")
	}
	if c.v2 != nil {
		add(cgroup.Memory, os.O_RDONLY, c.core, "memory.current")
		add(cgroup.MemoryPeak, os.O_RDONLY, c.core, "memory.peak")
		add(cgroup.MemoryStat, os.O_RDONLY, c.core, "memory.stat")
		add(cgroup.OOMEvents, os.O_RDONLY, c.core, "memory.events")
		add(cgroup.PIDs, os.O_RDONLY, c.core, "pids.current")
	} else {
		add(cgroup.Memory, os.O_RDONLY, c.dirV1("memory"), "memory.usage_in_bytes")
		add(cgroup.MemoryPeak, os.O_RDONLY, c.dirV1("memory"), "memory.max_usage_in_bytes")
		add(cgroup.OOMEvents, os.O_RDONLY, c.dirV1("memory"), "memory.oom_control")
		add(cgroup.PIDs, os.O_RDONLY, c.dirV1("pids"), "pids.current")
		if err == nil {
			var f *os.File
			if f, err = c.oom.reader(); err == nil {
				files = append(files, cgroup.File{Role: cgroup.OOMSeen, File: f})
			}
		}
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return cgroup.Open(files)
}

// openPlain opens a kernel file without registering it with the netpoller, as os.Open would:
// then every freeze would wake this process.
func openPlain(name string, flag int) (*os.File, error) {
	fd, err := unix.Open(name, flag|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// measure adds the files of a new domain that count its out-of-memory kills and its memory.
// Cgroup v1 counts a kill in the cgroup of the victim only. For the sum of a cgroup and those
// below it, memory.stat can be old by seconds. On v2 domains have no memory controller.
func (c *parentCgroup) measure(domain string) error {
	if c.v2 != nil {
		return nil
	}
	for role, name := range map[cgroup.Role]string{cgroup.OOMEvents: "memory.oom_control", cgroup.MemoryStat: "memory.stat"} {
		f, err := openPlain(filepath.Join(c.dirV1("memory"), domain, name), os.O_RDONLY)
		if err != nil {
			return err
		}
		c.handle.Add(cgroup.File{Role: role, File: f})
	}
	return nil
}

// limit changes the limits. The new CPU limit takes effect with throttle.
func (c *parentCgroup) limit(l isolation.Limits, domains int) error {
	was := c.limits
	c.limits = l
	if l.MemoryBytes == was.MemoryBytes && l.PIDs == was.PIDs {
		return nil
	}
	var err error
	if c.v2 != nil {
		err = c.v2.Update(resourcesV2(l, domains))
	} else {
		if was.MemoryBytes > 0 && l.MemoryBytes > was.MemoryBytes { // the limit with swap must not be lower at any time
			err = c.v1.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: &l.MemoryBytes}})
		}
		if err == nil {
			err = c.v1.Update(resourcesV1(l, domains))
		}
	}
	if err != nil {
		return fmt.Errorf("set the limits of %s: %w", c.path, err)
	}
	return nil
}

// allowance returns the pids limit of the cgroup: that of the function and that of the init
// handlers. 0 means no limit.
func allowance(l isolation.Limits, domains int) int64 {
	if l.PIDs == 0 {
		return 0
	}
	return l.PIDs + int64(domains)*handlerPIDs
}

func resourcesV2(l isolation.Limits, domains int) *cgroup2.Resources {
	group, swap := true, int64(0)
	r := &cgroup2.Resources{CPU: &cgroup2.CPU{}, Memory: &cgroup2.Memory{OOMGroup: &group}, Pids: &cgroup2.Pids{Max: allowance(l, domains)}}
	if l.MemoryBytes > 0 {
		r.Memory.Max = &l.MemoryBytes
		if swapAccounting() {
			r.Memory.Swap = &swap
		}
	}
	return r
}

// swapAccounting reports whether the kernel has memory.swap.max.
var swapAccounting = sync.OnceValue(func() bool {
	return fileExists(filepath.Join(cgroupRoot, "memory.swap.max")) // place has mounted the daemon's folder at cgroupRoot
})

func resourcesV1(l isolation.Limits, domains int) *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{}}
	if pids := allowance(l, domains); pids > 0 {
		r.Pids.Limit = &pids
	}
	if l.MemoryBytes > 0 {
		r.Memory.Limit, r.Memory.Swap = &l.MemoryBytes, &l.MemoryBytes // Swap limits memory and swap together
	}
	return r
}

func (c *parentCgroup) newV1(domains int) (err error) {
	subsystems := func() ([]cgroup1.Subsystem, error) {
		h := c.place.host.Hierarchies
		s := []cgroup1.Subsystem{
			cgroup1.NewCpu(filepath.Dir(h["cpu"])),
			cgroup1.NewMemory(filepath.Dir(h["memory"]), cgroup1.OptionalSwap()),
			cgroup1.NewPids(filepath.Dir(h["pids"])),
		}
		if _, ok := h["freezer"]; ok && c.place.host.Mode == ModeLegacy {
			s = append(s, cgroup1.NewFreezer(filepath.Dir(h["freezer"])))
		}
		return s, nil
	}
	if c.v1, err = cgroup1.New(cgroup1.StaticPath(c.path), resourcesV1(c.limits, domains), cgroup1.WithHierarchy(subsystems)); err != nil {
		return err
	}
	for _, root := range c.place.trees {
		if err := os.MkdirAll(filepath.Join(root, c.path), 0o755); err != nil {
			return err
		}
	}
	if c.place.host.V2 != "" {
		c.core = filepath.Join(c.place.host.V2, c.path)
	}
	c.oom, err = watchOOM(c)
	return err
}

// entries creates the cgroups of a domain, and opens the files through which its first process
// enters them (reexec.CgroupFD). The caller must close them.
func (c *parentCgroup) entries(domain string) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(files)
			files, err = nil, fmt.Errorf("create the domain's cgroups: %w", err)
		}
	}()
	for _, root := range c.place.roots {
		dir := c.domainDir(root, domain)
		if slices.Contains(c.place.trees, root) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return files, err
			}
		}
		name, flag := filepath.Join(dir, "tasks"), os.O_WRONLY
		if root == c.place.host.V2 {
			name, flag = dir, unix.O_PATH|unix.O_DIRECTORY
		}
		f, err := openPlain(name, flag)
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// domainDir returns the cgroup of a domain's processes in the tree mounted at root. In a tree
// where sandboxes have no cgroups of their own, that is the daemon's folder.
func (c *parentCgroup) domainDir(root, domain string) string {
	if !slices.Contains(c.place.trees, root) {
		return filepath.Join(root, c.place.group)
	}
	return filepath.Join(root, c.path, domain)
}

// checkMember returns an error if the process pid is not in the cgroups of a domain.
func (c *parentCgroup) checkMember(pid int, domain string) error {
	file := fmt.Sprintf("/proc/%d/cgroup", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	is := map[string]string{} // cgroup by v1 controller; "" is the v2 tree
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 {
			for controller := range strings.SplitSeq(f[1], ",") {
				is[controller] = f[2]
			}
		}
	}
	check := func(controller, root string) error {
		// Compare the end only: above the folder the two views of the tree may differ.
		if want := filepath.Join(c.place.hosted, strings.TrimPrefix(c.domainDir(root, domain), filepath.Join(root, c.place.group))); !strings.HasSuffix(is[controller], want) {
			return fmt.Errorf("process %d is in cgroup %q of %q instead of %s; sandbox-stage is from another build: rebuild with make build", pid, is[controller], controller, want)
		}
		return nil
	}
	for controller, root := range c.place.host.Hierarchies {
		if slices.Contains(c.place.roots, root) {
			err = errors.Join(err, check(controller, root))
		}
	}
	if c.core != "" {
		err = errors.Join(err, check("", c.place.host.V2))
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// throttle turns the CPU quota of the sandbox on or off (docs/decisions/0036).
func (c *parentCgroup) throttle(on bool) error {
	quota := int64(-1)
	if on && c.limits.CPU > 0 {
		quota = max(int64(c.limits.CPU*cpuPeriod), minQuota)
	}
	period := uint64(cpuPeriod)
	var err error
	if c.v2 != nil {
		limit := cgroup2.CPUMax("max 100000")
		if quota > 0 {
			limit = cgroup2.NewCPUMax(&quota, &period)
		}
		err = c.v2.Update(&cgroup2.Resources{CPU: &cgroup2.CPU{Max: limit}})
	} else {
		err = c.v1.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}})
	}
	if err != nil {
		return fmt.Errorf("set the CPU quota of %s: %w", c.path, err)
	}
	return nil
}

func (c *parentCgroup) dirV1(controller string) string {
	return filepath.Join(c.place.host.Hierarchies[controller], c.path)
}

// kill sends SIGKILL to every process of the sandbox, including frozen ones and those that are
// forked meanwhile.
func (c *parentCgroup) kill() error {
	if c.core != "" {
		err := os.WriteFile(filepath.Join(c.core, "cgroup.kill"), []byte("1"), 0)
		if err == nil || errors.Is(err, fs.ErrNotExist) && !fileExists(c.core) {
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("kill %s: %w", c.path, err)
		}
	}
	return killTree(c.path, c.place, c.handle) // before Linux 5.14, and on v1
}

// killTree freezes the processes below path, so that they cannot fork, sends SIGKILL to each,
// and thaws them, so that they handle the signal. If h is nil, it does not freeze.
func killTree(path string, p *placement, h *cgroup.Handle) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if h != nil {
		_ = h.SetFrozen(ctx, true) // a process that cannot be frozen can still be killed
		defer h.SetFrozen(ctx, false)
	}
	pids, err := pidsBelow(p, path)
	for _, pid := range pids {
		if e := killIn(pid, path); e != nil {
			err = errors.Join(err, fmt.Errorf("kill process %d: %w", pid, e))
		}
	}
	return err
}

// killIn kills the process pid if it is still in the cgroup path. Its id may have been reused
// (SUP-21).
func killIn(pid int, path string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	if !strings.Contains(string(groups), ":"+path+"/") && !strings.Contains(string(groups), ":"+path+"\n") {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	return nil
}

// pidsBelow returns the processes of the cgroup path and of its children, from all trees in
// which it exists.
func pidsBelow(p *placement, path string) (pids []int, err error) {
	for _, root := range p.roots {
		err = errors.Join(err, filepath.WalkDir(filepath.Join(root, path), func(file string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) || err == nil && !d.IsDir() {
				return nil
			}
			if err != nil {
				return err
			}
			b, err := os.ReadFile(filepath.Join(file, "cgroup.procs"))
			if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
				return nil
			}
			for line := range strings.Lines(string(b)) {
				if pid, e := strconv.Atoi(strings.TrimSpace(line)); e == nil && pid > 0 && !slices.Contains(pids, pid) {
					pids = append(pids, pid)
				}
			}
			return err
		}))
	}
	return pids, err
}

// remove removes the cgroup and all cgroups below it from every tree. It waits until killed
// processes have left them.
func (c *parentCgroup) remove(ctx context.Context, domains []string) error {
	if c.oom != nil {
		c.oom.Close()
	}
	if c.handle != nil {
		c.handle.Close()
	}
	for _, root := range c.place.trees {
		for _, name := range domains {
			_ = unix.Rmdir(c.domainDir(root, name)) // saves removeTree from listing directories; it reports errors
		}
	}
	return removeTree(ctx, c.place, c.path)
}
