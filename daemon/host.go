package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs"
)

// scopeVariable is set in the environment of the program inside the scope, so that it does
// not enter another one.
const scopeVariable = "SANDBOXD_IN_SCOPE"

// Become prepares this process for creating sandboxes, and checks the host. The process
// must be root. Where systemd manages the cgroups, Become moves it into a scope with
// delegation. It then runs from a sealed copy of its binary. For both, Become executes the
// program again with the same arguments, so call it before anything is acquired. idBase is
// the first host id for sandboxes. If the host lacks something, the error is a
// [host.Unsupported].
func Become(ctx context.Context, idBase uint32) (runc.Host, error) {
	if uid := os.Geteuid(); uid != 0 {
		return runc.Host{}, fmt.Errorf("run needs root, not user %d: sudo sandboxd run …", uid)
	}
	syscall.Umask(0o022) // sandboxes use what is made here, whatever umask the administrator works with
	found, err := runc.DetectHost()
	if err != nil {
		return found, err
	}
	if found.NeedsScope() || !runc.IsSealed() {
		// The program that is executed next would not learn of a signal that this one has
		// caught. From here to its start a signal ends the process instead.
		signal.Reset(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
		if err := ctx.Err(); err != nil {
			return found, fmt.Errorf("interrupted: %w", err)
		}
	}
	if found.NeedsScope() {
		return found, enterScope()
	}
	if err := os.Unsetenv(scopeVariable); err != nil {
		return found, err
	}
	if err := runc.SealSelf(); err != nil {
		return found, err
	}
	missing := doctor.Missing(ctx, DoctorHost(found, idBase))
	if err := ctx.Err(); err != nil {
		return found, fmt.Errorf("interrupted: %w", err)
	}
	return found, lacking(missing)
}

// lacking returns the error for a host that fails these checks, or nil if there are none.
func lacking(missing []doctor.Finding) error {
	if len(missing) == 0 {
		return nil
	}
	var list []string
	for _, f := range missing {
		list = append(list, fmt.Sprintf("%s: %s (fix: %s)", f.Check, f.Seen, f.Fix))
	}
	return &host.Unsupported{Feature: host.Sandboxes, Need: "this host lacks what sandboxes need: " + strings.Join(list, "; "), Fix: "see 'sandboxd doctor'"}
}

// enterScope executes the program again in a transient systemd scope that owns its part of
// the cgroup tree. It returns only if that fails.
func enterScope() error {
	const fix = "start it as a systemd service with Delegate=yes"
	if os.Getenv(scopeVariable) != "" {
		return &host.Unsupported{Feature: host.SystemdScope, Need: "systemd gave a scope without delegation", Fix: fix}
	}
	systemdRun, err := exec.LookPath("systemd-run")
	if err != nil {
		return &host.Unsupported{Feature: host.SystemdScope, Need: "systemd owns the cgroup tree", Err: err, Fix: fix}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the binary of this process: %w", err)
	}
	args := append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--", self}, os.Args[1:]...)
	err = syscall.Exec(systemdRun, args, append(os.Environ(), scopeVariable+"=1"))
	return fmt.Errorf("execute %s: %w; %s", systemdRun, err, fix)
}

// DoctorHost returns what doctor examines: the host h, and the host ids from idBase on.
func DoctorHost(h runc.Host, idBase uint32) doctor.Host {
	return doctor.Host{
		IDBase: idBase,
		Cgroups: doctor.Cgroups{
			Mode: h.Mode.String(), Trees: cgroupTrees(h), Missing: h.Missing(), NeedsScope: h.NeedsScope(),
		},
		Egress:  runc.CheckEgress,
		Sysinfo: runc.CheckSysinfo,
		Locale: func() (string, bool, error) {
			name, err := rootfs.HostLocale()
			return name, name == rootfs.LambdaLocale, err
		},
	}
}

// cgroupTrees returns the mount points of the cgroup trees that sandboxes require.
func cgroupTrees(h runc.Host) []string {
	if h.Mode == runc.ModeUnified {
		return []string{"/sys/fs/cgroup"}
	}
	var trees []string
	for _, controller := range []string{"cpu", "memory", "pids", "devices"} {
		if tree, ok := h.Hierarchies[controller]; ok {
			trees = append(trees, tree)
		}
	}
	if h.Mode == runc.ModeHybrid {
		trees = append(trees, "/sys/fs/cgroup/unified")
	}
	return trees
}
