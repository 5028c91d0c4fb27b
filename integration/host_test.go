//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/host/subid"

	"golang.org/x/sys/unix"
)

// cgroupRoot is where every cgroup tree of a host is mounted, or below.
const cgroupRoot = "/sys/fs/cgroup"

// wantNothingLeft fails the test if the host still has something that carries one
// of the marks, which are instance ids and folders of daemons that have ended. What
// the kernel removes by itself gets a moment for it.
func wantNothingLeft(t *testing.T, marks ...string) {
	t.Helper()
	var left []string
	deadline := time.Now().Add(5 * time.Second)
	for {
		left = leftovers(t, marks...)
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("left behind:\n\t%s", strings.Join(left, "\n\t"))
}

// leftovers lists the processes, cgroups, mounts, loop devices, instance folders
// and id leases of the host that carry one of the marks. Each is found by what the
// kernel says, not by any record of the daemon's.
func leftovers(t *testing.T, marks ...string) []string {
	t.Helper()
	marked := func(text string) bool {
		return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) })
	}
	var left []string
	for _, dir := range cgroups(t) {
		if marked(dir) {
			left = append(left, "cgroup "+dir)
		}
	}
	left = append(left, markedProcesses(t, marked)...)
	left = append(left, loopDevices(t, marked)...)
	for _, m := range marks {
		if filepath.IsAbs(m) {
			left = append(left, ownedEntries(t, m)...)
		}
	}
	return append(left, leases(t, marked)...)
}

// loopDevices lists the loop devices whose image is, or was, a marked file.
func loopDevices(t *testing.T, marked func(string) bool) (list []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if backing, err := os.ReadFile(file); err == nil && marked(string(backing)) {
			list = append(list, fmt.Sprintf("loop device %s: %s", file, backing))
		}
	}
	return list
}

// ownedEntries lists what lies in a run folder and belongs to an instance: folders
// named by an id, and half-made things.
func ownedEntries(t *testing.T, folder string) []string {
	t.Helper()
	id := regexp.MustCompile(`^[0-9a-f]{8}$`)
	var left []string
	err := filepath.WalkDir(folder, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		partial := filepath.Base(filepath.Dir(path)) == "staging"
		if partial || e.IsDir() && id.MatchString(e.Name()) {
			left = append(left, "file "+path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// leases lists the leases of host ids that a marked instance holds. They lie in a
// folder that all daemons of the host share, and are links to their owners.
func leases(t *testing.T, marked func(string) bool) []string {
	t.Helper()
	entries, err := os.ReadDir(subid.DefaultLeaseDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		path := filepath.Join(subid.DefaultLeaseDir, e.Name())
		if owner, err := os.Readlink(path); err == nil && marked(owner) {
			left = append(left, "lease "+path+" of "+owner)
		}
	}
	return left
}

// cgroups lists every cgroup directory of every tree.
func cgroups(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(cgroupRoot, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err == nil && e.IsDir() {
			dirs = append(dirs, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// cgroupTrees are the mount points of the host's cgroup trees.
func cgroupTrees(t *testing.T) []string {
	t.Helper()
	var roots []string
	for _, m := range strings.Split(string(readFile(t, "/proc/self/mounts")), "\n") {
		f := strings.Fields(m)
		if len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			roots = append(roots, f[1])
		}
	}
	return roots
}

// markedProcesses lists processes that are in a marked cgroup or have a marked
// mount in sight. Test programs of this suite are not looked at.
func markedProcesses(t *testing.T, marked func(string) bool) []string {
	t.Helper()
	var left []string
	for _, pid := range pids(t) {
		if pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		for _, file := range []string{"cgroup", "mountinfo"} {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil { // gone, or a zombie without mounts
				continue
			}
			for sc := bufio.NewScanner(bytes.NewReader(text)); sc.Scan(); {
				if marked(sc.Text()) {
					left = append(left, fmt.Sprintf("process %d (%s): %s", pid, command(pid), sc.Text()))
					break
				}
			}
		}
	}
	return left
}

// pids lists the processes of the host.
func pids(t *testing.T) []int {
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

func command(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(strings.TrimRight(string(text), "\x00"), "\x00", " ")
}

// process is one process of the host, told apart from a later one with the same pid.
type process struct {
	pid, parent int
	started     string // kernel ticks since boot
	state       string
}

// readProcess reads a process; false if there is none.
func readProcess(pid int) (process, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, false
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) // after the command: state, ppid, …
	if len(f) < 20 {
		return process{}, false
	}
	parent, _ := strconv.Atoi(f[1])
	return process{pid: pid, parent: parent, started: f[19], state: f[0]}, true
}

// alive reports whether the process still runs; a zombie does not.
func (p process) alive() bool {
	now, ok := readProcess(p.pid)
	return ok && now.started == p.started && now.state != "Z" && now.state != "X"
}

// status returns one line of /proc/PID/status.
func (p process) status(key string) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// inside reports the pid that the process has in its own pid namespace.
func (p process) inside() string {
	f := strings.Fields(p.status("NSpid"))
	if len(f) == 0 {
		return ""
	}
	return f[len(f)-1]
}

// worker is the daemon's process without privilege.
func (d *daemon) worker() process {
	d.t.Helper()
	for _, p := range d.descendants() {
		if p.parent == d.Cmd.Process.Pid && command(p.pid) == "sandboxd-worker" {
			return p
		}
	}
	d.t.Fatal("the daemon has no worker")
	return process{}
}

// sum is a number of /proc/PID/status, of the daemon's two processes together.
func (d *daemon) sum(key string) (sum int64) {
	d.t.Helper()
	for _, p := range []process{{pid: d.Cmd.Process.Pid}, d.worker()} {
		var n int64
		if _, err := fmt.Sscan(p.status(key), &n); err != nil {
			d.t.Fatalf("%s of process %d: %v", key, p.pid, err)
		}
		sum += n
	}
	return sum
}

// descendants are the processes that the daemon has started, theirs too: its worker,
// and those in sandboxes.
func (d *daemon) descendants() []process {
	d.t.Helper()
	children := make(map[int][]process)
	for _, pid := range pids(d.t) {
		if p, ok := readProcess(pid); ok {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	var list []process
	for next := []int{d.Cmd.Process.Pid}; len(next) > 0; next = next[1:] {
		for _, p := range children[next[0]] {
			list = append(list, p)
			next = append(next, p.pid)
		}
	}
	return list
}

// inits are the init handlers of the daemon's sandboxes, one a domain.
func (d *daemon) inits() []process {
	d.t.Helper()
	return slices.DeleteFunc(d.descendants(), func(p process) bool {
		return p.inside() != "1" || len(strings.Fields(p.status("NSpid"))) < 2
	})
}

// guests are the processes in the sandboxes, init handlers left out.
func (d *daemon) guests() []process {
	d.t.Helper()
	return slices.DeleteFunc(d.descendants(), func(p process) bool {
		return p.inside() == "1" || len(strings.Fields(p.status("NSpid"))) < 2
	})
}

// waitFrozen waits until every process of the daemon's sandboxes is frozen, as the
// kernel says, and there is at least one.
func (d *daemon) waitFrozen() {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		guests := d.guests()
		if len(guests) == 0 {
			return "no process in a sandbox"
		}
		for _, p := range guests {
			if !frozen(d.t, p) {
				return fmt.Sprintf("process %d (%s) is not frozen", p.pid, command(p.pid))
			}
		}
		return ""
	})
}

// frozen reports whether a process's cgroup, or one above it, is frozen: in the v2
// tree, or with the v1 freezer.
func frozen(t *testing.T, p process) bool {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		for _, root := range cgroupTrees(t) {
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

// fds counts the descriptors of the daemon's two processes by what they are, numbers
// left out.
func (d *daemon) fds() map[string]int {
	d.t.Helper()
	digits := regexp.MustCompile(`\b[0-9a-f]{8}\b|[0-9]+`) // ids too
	count := make(map[string]int)
	for who, pid := range map[string]int{"supervisor": d.Cmd.Process.Pid, "worker": d.worker().pid} {
		for _, target := range descriptors(d.t, pid) {
			count[who+": "+digits.ReplaceAllString(target, "N")]++
		}
	}
	return count
}
