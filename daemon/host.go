package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// scopeVariable tells the process inside the scope that it is there.
const scopeVariable = "SANDBOXD_IN_SCOPE"

// Become makes this process one that can make sandboxes: root, in a cgroup of its own where
// systemd rules, a sealed copy of its binary, on a host that has what is needed. idBase is
// the first host id for sandboxes. Become executes the program anew up to twice, with the
// same arguments; call it before anything is acquired. A host that lacks something is a
// [host.Unsupported].
func Become(ctx context.Context, idBase uint32) (runc.Host, error) {
	if uid := os.Geteuid(); uid != 0 {
		return runc.Host{}, fmt.Errorf("run needs root, not user %d: sudo sandboxd run …", uid)
	}
	found, err := runc.DetectHost()
	if err != nil {
		return found, err
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

// lacking is the error of a host without these must-haves, nil if there are none.
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

// enterScope executes the program anew in a transient scope of systemd that owns its
// part of the cgroup tree. It returns only when that fails.
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
		return fmt.Errorf("find own binary: %w", err)
	}
	args := append([]string{"systemd-run", "--scope", "--quiet", "--collect", "-p", "Delegate=yes", "--", self}, os.Args[1:]...)
	err = syscall.Exec(systemdRun, args, append(os.Environ(), scopeVariable+"=1"))
	return fmt.Errorf("execute %s: %w; %s", systemdRun, err, fix)
}

// DoctorHost says what doctor is to examine: the host h, and the ids from idBase on.
func DoctorHost(h runc.Host, idBase uint32) doctor.Host {
	return doctor.Host{
		IDBase: idBase,
		Cgroups: doctor.Cgroups{
			Mode: h.Mode.String(), Trees: cgroupTrees(h), Missing: h.Missing(), NeedsScope: h.NeedsScope(),
		},
		Egress: runc.CheckEgress,
	}
}

// cgroupTrees are the mount points of the trees that sandboxes cannot do without.
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
