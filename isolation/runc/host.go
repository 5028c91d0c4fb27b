package runc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A Mode is how a host mounts its cgroup controllers.
type Mode int

const (
	ModeNone    Mode = iota // no cgroups that sandboxd can use
	ModeUnified             // cgroup v2 alone, at /sys/fs/cgroup
	ModeHybrid              // v1 controllers, and a v2 tree without them at /sys/fs/cgroup/unified
	ModeLegacy              // v1 controllers alone
)

func (m Mode) String() string { return [...]string{"none", "unified", "hybrid", "legacy"}[m] }

const (
	cgroupRoot  = "/sys/fs/cgroup"
	unifiedRoot = "/sys/fs/cgroup/unified"
	// ownFolder is the name of sandboxd's folder in every cgroup tree.
	ownFolder = "sandboxd"
)

// needed are the controllers without which limits would not hold.
var needed = []string{"cpu", "memory", "pids"}

// Host says where a host keeps cgroups. It is read once; hosts do not change this
// while they run.
type Host struct {
	Mode        Mode
	Hierarchies map[string]string // v1 controller, or name=x, to the path of its mount; empty on ModeUnified
	Systemd     bool              // a systemd manages the host
	Own         string            // this process's cgroup in the v2 tree, absolute below its mount; "" if there is none
	Delegated   bool              // systemd has handed Own to this process
}

// DetectHost reads the mounts and cgroups of this process.
func DetectHost() (Host, error) {
	h := Host{Hierarchies: map[string]string{}}
	if fi, err := os.Stat("/run/systemd/system"); err == nil && fi.IsDir() {
		h.Systemd = true
	}
	var v2 string
	mounts, err := os.Open("/proc/self/mounts")
	if err != nil {
		return h, fmt.Errorf("runc: read mounts: %w", err)
	}
	defer mounts.Close()
	for sc := bufio.NewScanner(mounts); sc.Scan(); {
		f := strings.Fields(sc.Text()) // device, mount point, type, options
		if len(f) < 4 || !strings.HasPrefix(f[1], cgroupRoot) {
			continue
		}
		switch f[2] {
		case "cgroup2":
			v2 = f[1]
		case "cgroup":
			for _, o := range strings.Split(f[3], ",") {
				if strings.HasPrefix(o, "name=") || filepath.Base(f[1]) == o || slices.Contains(strings.Split(filepath.Base(f[1]), ","), o) {
					h.Hierarchies[o] = f[1]
				}
			}
		}
	}
	switch {
	case v2 == cgroupRoot:
		h.Mode = ModeUnified
	case v2 == unifiedRoot && len(h.Hierarchies) > 0:
		h.Mode = ModeHybrid
	case len(h.Hierarchies) > 0:
		h.Mode = ModeLegacy
	}
	if v2 != "" {
		if h.Own, err = ownCgroup(); err != nil {
			return h, err
		}
		var buf [8]byte
		n, err := unix.Getxattr(filepath.Join(v2, h.Own), "trusted.delegate", buf[:])
		h.Delegated = err == nil && string(buf[:n]) == "1"
	}
	return h, nil
}

// NeedsScope reports whether the daemon must first ask systemd for a scope with
// delegation: systemd owns the v2 tree and has handed nothing to this process.
func (h Host) NeedsScope() bool { return h.Mode == ModeUnified && h.Systemd && !h.Delegated }

// Missing names the controllers that sandboxd needs and the host does not offer.
func (h Host) Missing() []string {
	var have []string
	switch h.Mode {
	case ModeUnified:
		b, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		have = strings.Fields(string(b))
	default:
		for name := range h.Hierarchies {
			have = append(have, name)
		}
	}
	return slices.DeleteFunc(slices.Clone(needed), func(c string) bool { return slices.Contains(have, c) })
}

// roots are the mount points of the trees that sandboxes may have cgroups in.
func (h Host) roots() []string { return h.rootsOf(func(string) bool { return true }) }

// rootsOf are those of the v1 controllers that want approves of, and of the v2 tree.
func (h Host) rootsOf(want func(controller string) bool) (roots []string) {
	if h.Mode == ModeUnified {
		return []string{cgroupRoot}
	}
	for controller, root := range h.Hierarchies {
		if want(controller) && !slices.Contains(roots, root) {
			roots = append(roots, root)
		}
	}
	if h.Mode == ModeHybrid {
		roots = append(roots, unifiedRoot)
	}
	slices.Sort(roots)
	return roots
}

// uses tells whether a sandbox needs a cgroup of the v1 controller: each costs its
// creation two cgroups, made, entered and removed.
func (h Host) uses(controller string) bool {
	switch controller {
	case "devices", "cpuacct":
		return true
	case "freezer":
		return h.Mode == ModeLegacy // elsewhere the v2 tree freezes
	case "name=systemd":
		return h.Mode == ModeLegacy // systemd ends what it finds in the daemon's; elsewhere it looks at the v2 tree
	}
	return slices.Contains(needed, controller)
}

// hideUnused unmounts the v1 trees that sandboxes need no cgroup in, in the daemon's
// own mount namespace: libcontainer makes one in every tree that it sees. There, the
// sandboxes' processes stay where the daemon is.
func (h Host) hideUnused() error {
	used := h.rootsOf(h.uses)
	for _, root := range h.roots() {
		if slices.Contains(used, root) {
			continue
		}
		if shared, err := isShared(root); err != nil || shared {
			return errors.Join(err, fmt.Errorf("runc: %s is not unmounted: the host would lose it too; the daemon is in no mount namespace of its own", root))
		}
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			return &os.PathError{Op: "unmount", Path: root, Err: err}
		}
	}
	return nil
}

// isShared tells whether what is unmounted at path is unmounted elsewhere too
// (proc_pid_mountinfo(5): the optional field shared).
func isShared(path string) (bool, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("runc: %w", err)
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
		return "", fmt.Errorf("runc: own cgroup: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return p, nil
		}
	}
	return "", errors.New("runc: own cgroup: no v2 line in /proc/self/cgroup")
}

// CgroupFolder is the folder of the named daemon in the host's cgroup trees, absolute
// below their mounts. What [Reconcile] takes if that daemon was killed.
func (h Host) CgroupFolder(instance string) string {
	parent := "/"
	if h.Mode == ModeUnified && h.Delegated {
		parent = h.Own
	}
	return filepath.Join(parent, ownFolder, instance)
}

// placement is where the sandboxes of one daemon live in the cgroup trees.
type placement struct {
	host   Host
	hosted string   // the daemon's folder as the host sees it, absolute below the tree's mount
	group  string   // the same as this process sees it: "/" once the folder is mounted over /sys/fs/cgroup
	roots  []string // mount points of the trees that hold the folder

	own *foothold // see beginMove; may be nil
}

// place makes the folder of the named daemon in every tree. On a unified host it
// then mounts that folder over /sys/fs/cgroup in the daemon's private mount
// namespace: cgroup libraries write cgroup.subtree_control of every ancestor that
// they can see, and above the own folder nothing may be written.
func place(h Host, instance string) (_ *placement, err error) {
	p := &placement{host: h, roots: h.rootsOf(h.uses)}
	if h.Mode == ModeNone {
		return nil, errors.New("runc: no cgroup tree is mounted at /sys/fs/cgroup; mount cgroup2 there")
	}
	if missing := h.Missing(); len(missing) > 0 {
		return nil, fmt.Errorf("runc: the host lacks the cgroup controllers %s; enable them on the kernel's command line", strings.Join(missing, ", "))
	}
	if err := h.hideUnused(); err != nil {
		return nil, fmt.Errorf("runc: hide the cgroup trees that sandboxes do not use: %w", err)
	}
	p.hosted = h.CgroupFolder(instance)
	p.group = p.hosted
	parent := filepath.Dir(filepath.Dir(p.hosted))
	if h.Delegated && h.Mode == ModeUnified {
		if err := moveSelf(filepath.Join(cgroupRoot, parent), "daemon"); err != nil {
			return nil, err
		}
	}
	p.own = newFoothold(h)
	defer func() {
		if err != nil {
			p.own.close()
		}
	}()
	for _, root := range p.roots {
		if err := makeFolder(filepath.Join(root, p.hosted)); err != nil {
			return nil, fmt.Errorf("runc: cgroup of the daemon: %w", err)
		}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeFolder(context.Background(), p))
		}
	}()
	if h.Mode != ModeUnified {
		return p, nil
	}
	dir := filepath.Join(cgroupRoot, p.hosted)
	for _, d := range []string{parent, filepath.Dir(p.hosted), p.hosted} {
		if err := enableControllers(filepath.Join(cgroupRoot, d)); err != nil {
			return nil, err
		}
	}
	if err := unix.Mount(dir, cgroupRoot, "", unix.MS_BIND, ""); err != nil {
		return nil, fmt.Errorf("runc: show only the own cgroups: %w", err)
	}
	p.group = "/"
	return p, nil
}

// makeFolder makes dir and its parent. Another daemon that ends may remove the parent
// just before dir is in it; then it is made again.
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

// enableControllers hands the needed controllers of the cgroup dir to its children, and
// io where dir has it: sandboxes then share a disk by equal weights, not by how many
// processes ask for it. What shares by weight (BFQ, io.cost) is the host's to choose.
// Where they are enabled already, nothing is written.
func enableControllers(dir string) error {
	file := filepath.Join(dir, "cgroup.subtree_control")
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("runc: controllers of %s: %w", dir, err)
	}
	offered, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("runc: controllers of %s: %w", dir, err)
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
			return fmt.Errorf("runc: enable the controller %s in %s: %w", c, dir, err)
		}
	}
	return nil
}

func fileExists(path string) bool { _, err := os.Stat(path); return err == nil }

// moveSelf moves every process of the cgroup dir (this one, in a fresh scope) into
// a child of it, since a v2 cgroup that has controllers below may hold no process.
func moveSelf(dir, child string) error {
	sub := filepath.Join(dir, child)
	if err := os.Mkdir(sub, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("runc: cgroup for the daemon itself: %w", err)
	}
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return fmt.Errorf("runc: processes of %s: %w", dir, err)
	}
	for pid := range strings.Lines(string(procs)) {
		if err := os.WriteFile(filepath.Join(sub, "cgroup.procs"), []byte(strings.TrimSpace(pid)), 0o644); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("runc: move process %s to %s: %w", strings.TrimSpace(pid), sub, err)
		}
	}
	return nil
}
