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
	// minQuota in microseconds is the smallest that the kernel takes (sched-bwc.rst: 1 ms).
	minQuota = 1_000
	// handlerPIDs is what each init handler may use of the sandbox's pids limit, beyond
	// the user's (SEC-37): 10 or 11 threads that it keeps in
	// reserve, and a few for a Go runtime that wants one more.
	handlerPIDs = 16
)

// parentCgroup is the parent cgroup of one sandbox: the limits that its domains share,
// its usage, and the switch that freezes and kills all of it. Each domain has a cgroup
// below it.
type parentCgroup struct {
	place  *placement
	path   string // as this process sees it, absolute below each tree's mount
	limits isolation.Limits
	v2     *cgroup2.Manager // limits on a unified host
	v1     cgroup1.Cgroup   // limits elsewhere
	core   string           // directory in the v2 tree for freeze and kill; "" on a legacy host
	handle *cgroup.Handle
	oom    *oomWatch // on v1, where the kernel does not kill the whole group by itself
}

// newCgroup makes the parent cgroup of a sandbox with its limits in force and the
// CPU unthrottled. A cgroup that comes with an error is half made: the caller removes it.
func newCgroup(p *placement, id string, l isolation.Limits, domains int) (_ *parentCgroup, err error) {
	c := &parentCgroup{place: p, path: filepath.Join(p.group, id), limits: l}
	// Making a cgroup that exists is no error for the libraries: an id in use, or one
	// whose remains could not be removed, must be refused before anything is rolled back.
	claim := p.host.V2
	if p.host.Mode != ModeUnified {
		claim = p.host.Hierarchies["memory"]
	}
	if err := os.Mkdir(filepath.Join(claim, c.path), 0o755); err != nil {
		return nil, fmt.Errorf("sandbox id %s is in use: %w", id, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("cgroup of %s: %w", id, err)
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

// open opens the files by which the sandbox is frozen and measured.
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

// openPlain opens a kernel file outside the netpoller, which os.Open would have watch
// it: every freeze would wake this process.
func openPlain(name string, flag int) (*os.File, error) {
	fd, err := unix.Open(name, flag|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// measure takes the file of a new domain that counts its out-of-memory kills: v1
// counts a kill where the victim was, not above.
func (c *parentCgroup) measure(domain string) error {
	if c.v2 != nil {
		return nil
	}
	f, err := openPlain(filepath.Join(c.dirV1("memory"), domain, "memory.oom_control"), os.O_RDONLY)
	if err != nil {
		return err
	}
	c.handle.AddOOMEvents(f)
	return nil
}

// limit puts other limits in force, but that of the CPU.
func (c *parentCgroup) limit(l isolation.Limits, domains int) error {
	was := c.limits
	c.limits = l
	if l.MemoryBytes == was.MemoryBytes && l.PIDs == was.PIDs { // the CPU's is throttle's
		return nil
	}
	var err error
	if c.v2 != nil {
		err = c.v2.Update(resourcesV2(l, domains))
	} else {
		err = c.v1.Update(resourcesV1(l, domains))
	}
	if err != nil {
		return fmt.Errorf("limits of %s: %w", c.path, err)
	}
	return nil
}

// allowance is the pids limit that leaves the user's to the user; 0 means none.
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

// swapAccounting tells whether the kernel has memory.swap.max.
var swapAccounting = sync.OnceValue(func() bool {
	return fileExists(filepath.Join(cgroupRoot, "memory.swap.max")) // cgroupRoot shows the daemon's folder by now
})

func resourcesV1(l isolation.Limits, domains int) *specs.LinuxResources {
	r := &specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, Pids: &specs.LinuxPids{}}
	if pids := allowance(l, domains); pids > 0 {
		r.Pids.Limit = &pids
	}
	if l.MemoryBytes > 0 {
		r.Memory.Limit, r.Memory.Swap = &l.MemoryBytes, &l.MemoryBytes // memory and swap together
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

// doors makes the cgroups of a domain and opens what its first process enters them by
// (reexec.CgroupFD). The caller closes them.
func (c *parentCgroup) doors(domain string) (doors []*os.File, err error) {
	defer func() {
		if err != nil {
			closeAll(doors)
			doors, err = nil, fmt.Errorf("cgroups: %w", err)
		}
	}()
	for _, root := range c.place.roots {
		dir := c.domainDir(root, domain)
		if slices.Contains(c.place.trees, root) {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return doors, err
			}
		}
		name, flag := filepath.Join(dir, "tasks"), os.O_WRONLY
		if root == c.place.host.V2 {
			name, flag = dir, unix.O_PATH|unix.O_DIRECTORY
		}
		door, err := openPlain(name, flag)
		if err != nil {
			return doors, err
		}
		doors = append(doors, door)
	}
	return doors, nil
}

// domainDir is where the processes of a domain are in the tree mounted at root: the
// daemon's folder where sandboxes have no cgroups of their own.
func (c *parentCgroup) domainDir(root, domain string) string {
	if !slices.Contains(c.place.trees, root) {
		return filepath.Join(root, c.place.group)
	}
	return filepath.Join(root, c.path, domain)
}

// entered says why the process pid is not in the cgroups of a domain.
func (c *parentCgroup) entered(pid int, domain string) error {
	file := fmt.Sprintf("/proc/%d/cgroup", pid)
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	is := map[string]string{} // of each v1 controller, and of "" for v2
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 {
			for controller := range strings.SplitSeq(f[1], ",") {
				is[controller] = f[2]
			}
		}
	}
	check := func(controller, root string) error {
		// Above the folder both may see other parts of the tree.
		if want := filepath.Join(c.place.hosted, strings.TrimPrefix(c.domainDir(root, domain), filepath.Join(root, c.place.group))); !strings.HasSuffix(is[controller], want) {
			return fmt.Errorf("process %d is in cgroup %q of %q and not in %s; sandbox-stage is not of the same build", pid, is[controller], controller, want)
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

// throttle puts the sandbox on its CPU share, or lets it run freely (docs/decisions/0036).
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
		return fmt.Errorf("CPU quota of %s: %w", c.path, err)
	}
	return nil
}

func (c *parentCgroup) dirV1(controller string) string {
	return filepath.Join(c.place.host.Hierarchies[controller], c.path)
}

// kill sends SIGKILL to every process of the sandbox, frozen or not. New processes
// cannot escape it.
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

// killTree stops everything below path from forking, signals what is there, and
// lets it run into the signal.
func killTree(path string, p *placement, h *cgroup.Handle) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if h != nil {
		_ = h.SetFrozen(ctx, true) // a process that will not freeze can still be killed
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

// killIn kills the process pid if it is still one of the cgroup path: the id may be
// somebody else's by now (SUP-21).
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

// pidsBelow lists the processes of the cgroup path and of its children, in whichever
// trees it exists.
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

// remove deletes the cgroup, those of the domains, and whatever else is below it in every
// tree, waiting while killed processes still leave.
func (c *parentCgroup) remove(ctx context.Context, domains []string) error {
	if c.oom != nil {
		c.oom.Close()
	}
	if c.handle != nil {
		c.handle.Close()
	}
	for _, root := range c.place.trees {
		for _, name := range domains {
			_ = unix.Rmdir(c.domainDir(root, name)) // else removeTree, which lists what is below, says why not
		}
	}
	return removeTree(ctx, c.place, c.path)
}
