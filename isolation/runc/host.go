package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/isolation"
)

// A Mode is a host's layout of cgroup controllers.
type Mode int

const (
	ModeNone    Mode = iota // no cgroups that sandboxd can use
	ModeUnified             // cgroup v2 only, at /sys/fs/cgroup
	ModeHybrid              // v1 controllers, and a v2 tree without controllers at /sys/fs/cgroup/unified
	ModeLegacy              // v1 controllers only
)

func (m Mode) String() string { return [...]string{"none", "unified", "hybrid", "legacy"}[m] }

const (
	cgroupRoot  = "/sys/fs/cgroup"
	unifiedRoot = "/sys/fs/cgroup/unified"
	// ownFolder is the name of sandboxd's folder in every cgroup tree.
	ownFolder = "sandboxd"
)

// needed lists the controllers that enforce the limits of sandboxes.
var needed = []string{"cpu", "memory", "pids"}

// Host describes the cgroups of a host. It does not change while the host runs. Use
// DetectHost.
type Host struct {
	Mode        Mode
	Hierarchies map[string]string // mount points by v1 controller or name=x; empty with ModeUnified
	V2          string            // mount point of the v2 tree; "" with ModeLegacy
	Systemd     bool              // systemd manages the host
	Controllers []string          // controllers of the v2 tree; ModeUnified only
	Own         string            // cgroup of this process, below the mount point of the v2 tree; "" if there is none
	Delegated   bool              // systemd has delegated Own to this process
}

// DetectHost reads the mounts and cgroups of this process.
func DetectHost() (Host, error) {
	h := Host{Hierarchies: map[string]string{}}
	if fi, err := os.Stat("/run/systemd/system"); err == nil && fi.IsDir() {
		h.Systemd = true
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return h, fmt.Errorf("read mounts: %w", err)
	}
	h.findTrees(string(mounts))
	switch {
	case h.V2 == cgroupRoot:
		h.Mode = ModeUnified
	case h.V2 == unifiedRoot && len(h.Hierarchies) > 0:
		h.Mode = ModeHybrid
	case len(h.Hierarchies) > 0:
		h.Mode, h.V2 = ModeLegacy, "" // ignore a v2 tree elsewhere, which systemd may have mounted
	}
	if h.Mode == ModeUnified {
		offered, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		if err != nil {
			return h, fmt.Errorf("read the controllers of cgroup v2: %w", err)
		}
		h.Controllers = strings.Fields(string(offered))
	}
	if h.V2 != "" {
		if h.Own, err = ownCgroup(); err != nil {
			return h, err
		}
		var buf [8]byte
		n, err := unix.Getxattr(filepath.Join(h.V2, h.Own), "trusted.delegate", buf[:])
		h.Delegated = err == nil && string(buf[:n]) == "1"
	}
	return h, nil
}

// findTrees finds the cgroup trees in a list of mounts, which has the form of fstab(5). Lines
// may have any length: that of an overlay names all of its layers.
func (h *Host) findTrees(mounts string) {
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line) // device, mount point, type, options
		if len(f) < 4 || !strings.HasPrefix(f[1], cgroupRoot) {
			continue
		}
		switch f[2] {
		case "cgroup2":
			h.V2 = f[1]
		case "cgroup":
			for _, o := range strings.Split(f[3], ",") {
				if strings.HasPrefix(o, "name=") || filepath.Base(f[1]) == o || slices.Contains(strings.Split(filepath.Base(f[1]), ","), o) {
					h.Hierarchies[o] = f[1]
				}
			}
		}
	}
}

// NeedsScope reports whether the daemon must request a scope with delegation from systemd,
// because systemd owns the v2 tree and has not delegated the cgroup of this process.
func (h Host) NeedsScope() bool { return h.Mode == ModeUnified && h.Systemd && !h.Delegated }

// Missing returns the controllers that sandboxd needs and the host does not have.
func (h Host) Missing() []string {
	var have []string
	want := slices.Clone(needed)
	switch h.Mode {
	case ModeUnified:
		have = h.Controllers
	default:
		for name := range h.Hierarchies {
			have = append(have, name)
		}
		want = append(want, "devices") // v2 uses a BPF program instead
	}
	return slices.DeleteFunc(want, func(c string) bool { return slices.Contains(have, c) })
}

// roots returns the mount points of all cgroup trees.
func (h Host) roots() []string { return h.rootsOf(func(string) bool { return true }) }

// rootsOf returns the mount points of the v1 controllers for which want returns true, and of
// the v2 tree.
func (h Host) rootsOf(want func(controller string) bool) (roots []string) {
	if h.Mode == ModeUnified {
		return []string{h.V2}
	}
	for controller, root := range h.Hierarchies {
		if want(controller) && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	if h.Mode == ModeHybrid {
		roots = append(roots, h.V2)
	}
	slices.Sort(roots)
	return roots
}

// uses reports whether a sandbox needs cgroups of the v1 controller. Each such controller adds
// cgroups that have to be created, entered and removed.
func (h Host) uses(controller string) bool {
	switch controller {
	case "freezer", "cpuacct":
		return h.Mode == ModeLegacy // elsewhere the v2 tree freezes, and counts the CPU time
	case "name=systemd":
		return h.Mode == ModeLegacy // systemd kills what it finds in the daemon's cgroup; in other modes it uses the v2 tree
	}
	return slices.Contains(needed, controller)
}

// at returns h with other mount points: each tree in dir, under the name of its original mount
// point. A tree that is mounted at /sys/fs/cgroup itself becomes dir.
func (h Host) at(dir string) Host {
	move := func(path string) string {
		if path == cgroupRoot {
			return dir
		}
		return filepath.Join(dir, filepath.Base(path))
	}
	h.Hierarchies = maps.Clone(h.Hierarchies)
	for controller, path := range h.Hierarchies {
		h.Hierarchies[controller] = move(path)
	}
	if h.V2 != "" {
		h.V2 = move(h.V2)
	}
	return h
}

// isShared reports whether path is a shared mount, whose mounts and unmounts propagate to other
// mount namespaces (proc_pid_mountinfo(5), optional field shared).
func isShared(path string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 7 || f[4] != path {
			continue
		}
		for _, option := range f[6:] {
			if option == "-" {
				break
			}
			if strings.HasPrefix(option, "shared:") {
				return true, nil
			}
		}
	}
	return false, nil
}

func ownCgroup() (string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("find the cgroup of this process: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p, nil
		}
	}
	return "", errors.New("find the cgroup of this process: /proc/self/cgroup has no line for cgroup v2")
}

// CgroupFolder returns the folder of the daemon instance below the mount point of each cgroup
// tree. If that daemon is killed, [Reconcile] needs this path.
func (h Host) CgroupFolder(instance string) string {
	parent := "/"
	if h.Mode == ModeUnified && h.Delegated {
		parent = h.Own
	}
	return filepath.Join(parent, ownFolder, instance)
}

// placement locates the cgroups of one daemon in the cgroup trees.
type placement struct {
	host   Host     // with the mount points that this process uses
	hosted string   // the daemon's folder below the mount points of the host
	group  string   // the same folder below the mount points in host; "/" if they show only the folder
	roots  []string // mount points of the trees that have the folder
	trees  []string // the part of roots in which each sandbox has cgroups of its own
}

// place creates the folder of the daemon instance in every tree that it uses, and mounts these
// trees at view, in the daemon's private mount namespace. On a unified host view shows only
// the daemon's folder: cgroup libraries write to cgroup.subtree_control of every visible
// ancestor, and nothing may be written above that folder.
//
// place also mounts a read-only file system over /sys/fs/cgroup, which is what libcontainer
// sees. So libcontainer neither creates nor enters cgroups: the processes of domains enter
// theirs themselves (docs/decisions/0025).
func place(h Host, instance, view string) (_ *placement, err error) {
	if h.Mode == ModeNone {
		return nil, &host.Unsupported{Feature: host.Cgroups, Need: "no cgroup tree is mounted at /sys/fs/cgroup", Fix: "mount cgroup2 there"}
	}
	if missing := h.Missing(); len(missing) > 0 {
		return nil, &host.Unsupported{Feature: host.Cgroups, Need: "the host lacks the cgroup controllers " + strings.Join(missing, ", "),
			Fix: "enable them on the kernel's command line"}
	}
	outer := &placement{host: h, hosted: h.CgroupFolder(instance)}
	outer.roots = h.rootsOf(func(c string) bool { return c == "devices" || h.uses(c) })
	parent := filepath.Dir(filepath.Dir(outer.hosted))
	if h.Delegated && h.Mode == ModeUnified {
		if err := moveSelf(filepath.Join(h.V2, parent), "daemon"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			ctx, cancel := context.WithTimeout(context.Background(), rollbackTime)
			defer cancel()
			err = errors.Join(err, removeFolder(ctx, outer))
		}
	}()
	for _, root := range outer.roots {
		if err := makeFolder(filepath.Join(root, outer.hosted)); err != nil {
			return nil, fmt.Errorf("create the cgroup of the daemon: %w", err)
		}
	}
	if h.Mode == ModeUnified {
		for _, d := range []string{parent, filepath.Dir(outer.hosted), outer.hosted} {
			if err := enableControllers(filepath.Join(h.V2, d)); err != nil {
				return nil, err
			}
		}
	}
	p := &placement{host: h.at(view), hosted: outer.hosted, group: outer.hosted}
	if h.Mode == ModeUnified {
		p.group = "/"
	}
	p.roots = p.host.rootsOf(func(c string) bool { return c == "devices" || h.uses(c) })
	p.trees = p.host.rootsOf(h.uses)
	for _, root := range append(h.roots(), cgroupRoot) {
		if shared, err := isShared(root); err != nil || shared {
			return nil, errors.Join(err, fmt.Errorf("%s is a shared mount: the daemon has no mount namespace of its own", root))
		}
	}
	if err := outer.showAt(view); err != nil {
		return nil, fmt.Errorf("mount the cgroup trees for the daemon: %w", err)
	}
	if h.Mode != ModeUnified {
		outer.roots = p.roots // cover unmounts the original mount points
	}
	if err := p.cover(h); err != nil {
		return nil, fmt.Errorf("cover %s: %w", cgroupRoot, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.uncover())
		}
	}()
	if err := p.allowDevices(); err != nil {
		return nil, fmt.Errorf("set the devices that sandboxes may use: %w", err)
	}
	return p, nil
}

// showAt mounts the trees of p at view, each under the name of its mount point and, as a link,
// of its controllers. On a unified host it mounts only the daemon's folder.
func (p *placement) showAt(view string) error {
	if err := os.Mkdir(view, 0o700); err != nil {
		return err
	}
	if p.host.Mode == ModeUnified {
		return bind(filepath.Join(p.host.V2, p.hosted), view)
	}
	for _, root := range p.roots {
		dir := filepath.Join(view, filepath.Base(root))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		if err := bind(root, dir); err != nil {
			return err
		}
	}
	for controller, root := range p.host.Hierarchies {
		name := filepath.Base(root)
		if slices.Contains(p.roots, root) && name != controller {
			if err := os.Symlink(name, filepath.Join(view, controller)); err != nil {
				return err
			}
		}
	}
	return nil
}

// cover mounts over /sys/fs/cgroup the minimum in which libcontainer recognizes the kind of
// cgroups of h. The mount is private, so that later mounts of the host do not appear there. On
// v1 it also unmounts the trees of h, so that libcontainer does not find them in the list of
// mounts.
func (p *placement) cover(h Host) (err error) {
	if p.host.Mode != ModeUnified {
		for _, root := range h.roots() {
			if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
				return &os.PathError{Op: "unmount", Path: root, Err: err}
			}
		}
	}
	if p.host.Mode == ModeUnified {
		err = bind(p.host.V2, cgroupRoot)
	} else if err = unix.Mount("cgroups", cgroupRoot, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=4k,nr_inodes=4"); err != nil {
		err = &os.PathError{Op: "mount", Path: cgroupRoot, Err: err}
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.uncover())
		}
	}()
	if p.host.Mode != ModeUnified {
		devices := filepath.Join(cgroupRoot, "devices") // libcontainer requires it
		if err := os.Mkdir(devices, 0o755); err != nil {
			return err
		}
		if err := bind(p.host.Hierarchies["devices"], devices); err != nil {
			return err
		}
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(unix.AT_FDCWD, cgroupRoot, unix.AT_RECURSIVE, &attr); err != nil {
		return &os.PathError{Op: "mount_setattr", Path: cgroupRoot, Err: err}
	}
	return nil
}

func (p *placement) uncover() error {
	if err := unix.Unmount(cgroupRoot, unix.MNT_DETACH); err != nil {
		return &os.PathError{Op: "unmount", Path: cgroupRoot, Err: err}
	}
	return nil
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return &os.PathError{Op: "bind " + from + " to", Path: to, Err: err}
	}
	return nil
}

// remove uncovers /sys/fs/cgroup and removes the daemon's folder. It does not unmount view,
// which goes with the file system that contains it.
func (p *placement) remove(ctx context.Context) error {
	err := p.uncover()
	outer := &placement{hosted: p.hosted, roots: p.roots}
	if p.host.Mode == ModeUnified {
		outer.roots = []string{cgroupRoot} // the folder cannot be removed from within
	}
	return errors.Join(err, removeFolder(ctx, outer))
}

// allowDevices restricts the daemon's folder to the devices of a domain. Cgroups below it
// cannot allow more.
func (p *placement) allowDevices() error {
	rules := &cgroups.Resources{Devices: isolation.DeviceRules()}
	if p.host.Mode == ModeUnified {
		return cgroups.DevicesSetV2(p.host.V2, rules)
	}
	return cgroups.DevicesSetV1(filepath.Join(p.host.Hierarchies["devices"], p.group), rules)
}

// makeFolder creates dir and its parent. It tries again if another daemon removes the empty
// parent meanwhile.
func makeFolder(dir string) error {
	for {
		err := os.MkdirAll(filepath.Dir(dir), 0o755)
		if err == nil {
			err = os.Mkdir(dir, 0o755)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}

// enableControllers enables the needed controllers for the children of the cgroup dir, unless
// they are enabled already. It also enables io if dir has it: then sandboxes share a disk
// by equal weights, and not by the number of their processes. Whether weights are used (BFQ,
// io.cost) is the host's configuration.
func enableControllers(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the controllers of %s: %w", dir, err)
	}
	offered, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the controllers of %s: %w", dir, err)
	}
	wanted := needed
	if slices.Contains(strings.Fields(string(offered)), "io") {
		wanted = append(slices.Clone(needed), "io")
	}
	enabled := strings.Fields(string(b))
	for _, c := range wanted {
		if slices.Contains(enabled, c) {
			continue
		}
		if err := os.WriteFile(file, []byte("+"+c), 0o644); err != nil {
			return fmt.Errorf("enable the controller %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

func fileExists(path string) bool { _, err := os.Stat(path); return err == nil }

// moveSelf moves every process of the cgroup dir into a child of it, because a v2 cgroup that
// enables controllers for its children may not contain processes. In a new scope, this process
// is the only one.
func moveSelf(dir, child string) error {
	sub := filepath.Join(dir, child)
	if err := os.Mkdir(sub, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("create the cgroup of the daemon process: %w", err)
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("list the processes of %s: %w", dir, err)
	}
	for pid := range strings.Lines(string(procs)) {
		if err := os.WriteFile(filepath.Join(sub, "cgroup.procs"), []byte(strings.TrimSpace(pid)), 0o644); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("move process %s to %s: %w", strings.TrimSpace(pid), sub, err)
		}
	}
	return nil
}
