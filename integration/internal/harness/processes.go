package harness

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// PIDs lists the processes of the host.
func PIDs(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var list []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			list = append(list, pid)
		}
	}
	return list
}

func Command(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(strings.TrimRight(string(text), "\x00"), "\x00", " ")
}

// Process is one process of the host, told apart from a later one with the same pid.
type Process struct {
	PID, Parent int
	started     string // kernel ticks since boot
	State       string
}

// ReadProcess reads a process; false if there is none.
func ReadProcess(pid int) (Process, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Process{}, false
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // after the command: state, ppid, …
	if len(f) < 20 {
		return Process{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	return Process{PID: pid, Parent: parent, started: f[19], State: f[0]}, true
}

// Alive reports whether the process still runs; a zombie does not.
func (p Process) Alive() bool {
	now, ok := ReadProcess(p.PID)
	return ok && now.started == p.started && now.State != "Z" && now.State != "X"
}

// Status returns one line of /proc/PID/status.
func (p Process) Status(key string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Inside reports the pid that the process has in its own pid namespace.
func (p Process) Inside() string {
	f := strings.Fields(p.Status("NSpid"))
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1]
}

// Worker is the daemon's process without privilege.
func (d *Daemon) Worker() Process {
	d.T.Helper()
	for _, p := range d.Descendants() {
		if p.Parent == d.Cmd.Process.Pid && Command(p.PID) == "sandboxd-worker" {
			return p
		}
	}
	d.T.Fatal("the daemon has no worker")
	return Process{}
}

// Sum is a number of /proc/PID/status, of the daemon's two processes together.
func (d *Daemon) Sum(key string) (sum int64) {
	d.T.Helper()
	for _, p := range []Process{{PID: d.Cmd.Process.Pid}, d.Worker()} {
		var n int64
		if _, err := fmt.Sscan(p.Status(key), &n); err != nil {
			d.T.Fatalf("%s of process %d: %v", key, p.PID, err)
		}
		sum += n
	}
	return sum
}

// Descendants are the processes that the daemon has started, theirs too: its worker,
// and those in sandboxes.
func (d *Daemon) Descendants() []Process {
	d.T.Helper()
	children := make(map[int][]Process)
	for _, pid := range PIDs(d.T) {
		if p, ok := ReadProcess(pid); ok {
			children[p.Parent] = append(children[p.Parent], p)
		}
	}
	var list []Process
	for next := []int{d.Cmd.Process.Pid}; len(next) > 0; next = next[1:] {
		for _, p := range children[next[0]] {
			list = append(list, p)
			next = append(next, p.PID)
		}
	}
	return list
}

// Inits are the init handlers of the daemon's sandboxes, one a domain.
func (d *Daemon) Inits() []Process {
	d.T.Helper()
	return slices.DeleteFunc(d.Descendants(), func(p Process) bool {
		return p.Inside() != "1" || len(strings.Fields(p.Status("NSpid"))) < 2
	})
}

// Guests are the processes in the sandboxes, init handlers left out.
func (d *Daemon) Guests() []Process {
	d.T.Helper()
	return slices.DeleteFunc(d.Descendants(), func(p Process) bool {
		return p.Inside() == "1" || len(strings.Fields(p.Status("NSpid"))) < 2
	})
}

// WaitFrozen waits until every process of the daemon's sandboxes is frozen, as the
// kernel says, and there is at least one.
func (d *Daemon) WaitFrozen() {
	d.T.Helper()
	Eventually(d.T, Patience, func() string {
		guests := d.Guests()
		if len(guests) == 0 {
			return "no process in a sandbox"
		}
		for _, p := range guests {
			if !frozen(d.T, p) {
				return fmt.Sprintf("process %d (%s) is not frozen", p.PID, Command(p.PID))
			}
		}
		return ""
	})
}

// frozen reports whether a process's cgroup, or one above it, is frozen: in the v2
// tree, or with the v1 freezer.
func frozen(t *testing.T, p Process) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, root := range CgroupTrees(t) {
			dir := filepath.Join(root, f[2])
			if events, err := os.ReadFile(filepath.Join(dir, "cgroup.events")); f[1] == "" && err == nil && bytes.Contains(events, []byte("frozen 1")) {
				return true
			}
			if state, err := os.ReadFile(filepath.Join(dir, "freezer.state")); f[1] == "freezer" && err == nil && bytes.HasPrefix(state, []byte("FROZEN")) {
				return true
			}
		}
	}
	return false
}

// FDs counts the descriptors of the daemon's two processes by what they are, numbers
// left out.
func (d *Daemon) FDs() map[string]int {
	d.T.Helper()
	digits := regexp.MustCompile(`\b[0-9a-f]{8}\b|[0-9]+`) // ids too
	count := make(map[string]int)
	for who, pid := range map[string]int{"supervisor": d.Cmd.Process.Pid, "worker": d.Worker().PID} {
		for _, target := range Descriptors(d.T, pid) {
			count[who+": "+digits.ReplaceAllString(target, "N")]++
		}
	}
	return count
}

// KillSandboxes kills PID 1 of every domain and waits until the sandboxes' cgroups
// are gone. The daemon lives on.
func (d *Daemon) KillSandboxes() {
	d.T.Helper()
	inits := d.Inits()
	if len(inits) == 0 {
		d.T.Fatal("no sandbox to kill")
	}
	var dirs []string
	for _, p := range inits {
		dirs = append(dirs, sandboxCgroups(d.T, d.Instance, p)...)
	}
	for _, p := range inits {
		if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			d.T.Fatal(err)
		}
	}
	Eventually(d.T, Patience, func() string {
		for _, dir := range dirs {
			if _, err := os.Stat(dir); err == nil {
				return "still there: " + dir
			}
		}
		return ""
	})
}

// SandboxCgroups are the cgroup folders of the daemon's only sandbox, in all trees.
func (d *Daemon) SandboxCgroups() []string {
	d.T.Helper()
	inits := d.Inits()
	if len(inits) == 0 {
		d.T.Fatal("there is no sandbox")
	}
	return sandboxCgroups(d.T, d.Instance, inits[0])
}

// sandboxCgroups are the existing cgroup folders of the sandbox that a process is in.
func sandboxCgroups(t *testing.T, instance string, p Process) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.PID))
	if err != nil {
		return nil // gone
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]
		at := strings.Index(path, instance+"/")
		if at < 0 {
			continue
		}
		name, _, _ := strings.Cut(path[at+len(instance)+1:], "/")
		for _, root := range CgroupTrees(t) {
			dir := filepath.Join(root, path[:at], instance, name)
			if _, err := os.Stat(dir); err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	if len(dirs) == 0 {
		t.Fatalf("process %d is in no cgroup of instance %s:\n%s", p.PID, instance, text)
	}
	return dirs
}

// WaitEmpty waits until the daemon has no sandbox.
func (d *Daemon) WaitEmpty() {
	d.T.Helper()
	Eventually(d.T, Patience, func() string {
		if n := len(d.Inits()) + len(d.Guests()); n > 0 {
			return fmt.Sprintf("%d processes in sandboxes", n)
		}
		return ""
	})
}

// WantFDsBack waits until the daemon has no more descriptors of any kind than before.
func (d *Daemon) WantFDsBack(before map[string]int) {
	d.T.Helper()
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(Scaled(d.T, 5*time.Second))
	for {
		more := d.FDs()
		maps.DeleteFunc(more, func(kind string, n int) bool { return n <= before[kind] })
		if len(more) == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.T.Errorf("descriptors leaked: now %v, before %v", more, before)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// Descriptors lists what a process has open.
func Descriptors(t *testing.T, pid int) (targets []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else closed since
			targets = append(targets, target)
		}
	}
	return targets
}
