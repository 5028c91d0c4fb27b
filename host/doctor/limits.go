package doctor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds below which the checks of limits speak up.
const (
	minOpenFiles = 1024  // ENV-34: what one process of a sandbox may open
	minPIDMax    = 32768 // 10 sandboxes of 1,024 processes (ENV-34), and the host's own
	minInotify   = 128   // the kernel's default
)

func lookCgroups(_ context.Context, h Host) outcome {
	if h.Cgroups.Mode == "none" {
		return lacks("no cgroup tree at /sys/fs/cgroup", "mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	}
	if len(h.Cgroups.Missing) > 0 {
		return lacks(fmt.Sprintf("%s, without the controllers %s", h.Cgroups.Mode, strings.Join(h.Cgroups.Missing, ", ")),
			"boot with cgroup_enable=memory, and without cgroup_disable")
	}
	for _, tree := range h.Cgroups.Trees {
		if !isCgroup(tree) {
			return lacks(tree+" is hidden by another mount", "umount what covers /sys/fs/cgroup, or run sandboxd outside of the container that hides it")
		}
	}
	return has(h.Cgroups.Mode + ", with cpu, memory and pids")
}

// isCgroup says whether a directory is in a cgroup file system. The list of mounts
// alone does not tell: one may lie over another.
func isCgroup(dir string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(dir, &st)
	return err == nil && (st.Type == unix.CGROUP2_SUPER_MAGIC || st.Type == unix.CGROUP_SUPER_MAGIC)
}

func lookScope(_ context.Context, h Host) outcome {
	if !h.Cgroups.NeedsScope {
		return has("not needed here")
	}
	path, err := exec.LookPath("systemd-run")
	if err != nil {
		return lacks("systemd owns the cgroup tree, and systemd-run is not found", "apt-get install systemd, or run it as a service with Delegate=yes")
	}
	return has("by " + path)
}

func lookV2Core(_ context.Context, h Host) outcome {
	if h.Cgroups.Mode == "legacy" {
		return lacks("v1 freezer", "slower and less sure; mount a cgroup2 tree at /sys/fs/cgroup/unified, or boot with systemd.unified_cgroup_hierarchy=1")
	}
	return has("cgroup.freeze and cgroup.kill")
}

// lookSwap finds the file that bounds swap, in whichever cgroup has it.
func lookSwap(_ context.Context, h Host) outcome {
	for _, pattern := range []string{"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes", "sys/fs/cgroup/*/memory.swap.max"} {
		if found, err := filepath.Glob(h.path(pattern)); err == nil && len(found) > 0 {
			return has("on")
		}
	}
	if swaps, err := h.read("proc/swaps"); err == nil && strings.Count(swaps, "\n") <= 1 {
		return has("off, and the host has no swap")
	}
	return lacks("off", "a sandbox may swap beyond its memory limit: boot with swapaccount=1, or turn swap off")
}

func lookPIDMax(_ context.Context, h Host) outcome {
	return atLeast(h, "proc/sys/kernel/pid_max", minPIDMax, "sysctl -w kernel.pid_max=4194304")
}

func lookInotify(_ context.Context, h Host) outcome {
	return atLeast(h, "proc/sys/fs/inotify/max_user_instances", minInotify, "sysctl -w fs.inotify.max_user_instances=1024")
}

// atLeast compares the number in a file with what it should be.
func atLeast(h Host, file string, want int, fix string) outcome {
	s, err := h.read(file)
	if err != nil {
		return lacks(err.Error(), fix)
	}
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		return lacks(fmt.Sprintf("%s: %v", file, err), fix)
	}
	if n < want {
		return lacks(fmt.Sprintf("%d, want %d", n, want), fix)
	}
	return has(strconv.Itoa(n))
}

func lookOpenFiles(context.Context, Host) outcome {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return lacks(err.Error(), "")
	}
	if l.Max < minOpenFiles {
		return lacks(fmt.Sprintf("at most %d", l.Max), fmt.Sprintf("raise the hard limit to %d or more: ulimit -Hn, or LimitNOFILE= of the service", minOpenFiles))
	}
	return has(fmt.Sprintf("at most %d", l.Max))
}

// lookOOMScore tries to make this process a less likely victim, and undoes it.
func lookOOMScore(_ context.Context, h Host) outcome {
	const file = "proc/self/oom_score_adj"
	before, err := h.read(file)
	if err != nil {
		return lacks(err.Error(), "")
	}
	n, err := strconv.Atoi(strings.TrimSpace(before))
	if err != nil {
		return lacks(err.Error(), "")
	}
	if err := os.WriteFile(h.path(file), []byte(strconv.Itoa(n-1)), 0); err != nil {
		return lacks("oom_score_adj cannot be lowered: "+err.Error(), "when the host runs out of memory the daemon may go first: give it CAP_SYS_RESOURCE")
	}
	if err := os.WriteFile(h.path(file), []byte(strings.TrimSpace(before)), 0); err != nil {
		return lacks(err.Error(), "")
	}
	return has("oom_score_adj can be lowered")
}

func lookPressure(_ context.Context, h Host) outcome {
	if _, err := h.read("proc/pressure/memory"); err != nil {
		if missingFile(err) {
			return lacks("off", "boot with psi=1 to see memory pressure")
		}
		return lacks(err.Error(), "boot with psi=1 to see memory pressure")
	}
	return has("on")
}

func lookEgress(_ context.Context, h Host) outcome {
	if err := h.Egress(); err != nil {
		return lacks("--network egress is not possible, all else is", err.Error())
	}
	return has("interfaces, packet filter, forwarding")
}

func lookSysinfo(_ context.Context, h Host) outcome {
	if err := h.Sysinfo(); err != nil {
		return lacks("functions get the memory of the host from sysinfo(2)", err.Error())
	}
	return has("functions get their own memory from sysinfo(2)")
}

// plural joins a number with the fitting noun.
func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
