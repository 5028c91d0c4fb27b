package daemon

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/sandboxd/sandboxd/host/doctor"
	"github.com/sandboxd/sandboxd/isolation/runc"
)

// scopeVariable tells the process inside the scope that it is there.
const scopeVariable = "SANDBOXD_IN_SCOPE"

// Become makes this process one that can make sandboxes: root, in a cgroup of its own where
// systemd rules, a sealed copy of its binary, on a host that has what is needed. idBase is
// the first host id for sandboxes. Become executes the program anew up to twice, with the
// same arguments; call it before anything is acquired.
func Become(ctx context.Context, idBase uint32) (runc.Host, error) {
	if uid := os.Geteuid(); uid != 0 {
		return runc.Host{}, fmt.Errorf("run needs root, not user %d: sudo sandboxd run …", uid)
	}
	host, err := runc.DetectHost()
	if err != nil {
		return host, err
	}
	if host.NeedsScope() {
		return host, enterScope()
	}
	if err := os.Unsetenv(scopeVariable); err != nil {
		return host, err
	}
	if err := runc.SealSelf(); err != nil {
		return host, err
	}
	missing := doctor.Missing(ctx, DoctorHost(host, idBase))
	if err := ctx.Err(); err != nil {
		return host, fmt.Errorf("interrupted: %w", err)
	}
	if len(missing) > 0 {
		var list []string
		for _, f := range missing {
			list = append(list, fmt.Sprintf("%s: %s (fix: %s)", f.Check, f.Seen, f.Fix))
		}
		return host, fmt.Errorf("this host lacks what sandboxes need: %s; see 'sandboxd doctor'", strings.Join(list, "; "))
	}
	return host, nil
}

// enterScope executes the program anew in a transient scope of systemd that owns its
// part of the cgroup tree. It returns only when that fails.
func enterScope() error {
	const fix = "start it as a systemd service with Delegate=yes"
	if os.Getenv(scopeVariable) != "" {
		return fmt.Errorf("systemd gave a scope without delegation; %s", fix)
	}
	systemdRun, err := exec.LookPath("systemd-run")
	if err != nil {
		return fmt.Errorf("systemd owns the cgroup tree: %w; %s", err, fix)
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
