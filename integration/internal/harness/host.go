package harness

import (
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

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/testtime"
)

// Exists reports whether there is something at a path.
func Exists(path string) bool { _, err := os.Stat(path); return err == nil }

// CgroupRoot is where every cgroup tree of a host is mounted, or below.
const CgroupRoot = "/sys/fs/cgroup"

// WantNothingLeft fails the test if the host still has something that carries one
// of the marks, which are instance ids and folders of daemons that have ended. What
// the kernel removes by itself gets a moment for it.
func WantNothingLeft(t *testing.T, marks ...string) {
	t.Helper()
	var left []string
	deadline := time.Now().Add(testtime.Limit(5 * time.Second))
	for {
		left = Leftovers(t, marks...)
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

// Leftovers lists the processes, cgroups, mounts, loop devices, instance folders
// and id leases of the host that carry one of the marks. Each is found by what the
// kernel says, not by any record of the daemon's.
func Leftovers(t *testing.T, marks ...string) []string {
	t.Helper()
	marked := func(text string) bool {
		return slices.ContainsFunc(marks, func(m string) bool { return strings.Contains(text, m) })
	}
	var left []string
	for _, dir := range Cgroups(t) {
		if marked(dir) {
			left = append(left, "cgroup "+dir)
		}
	}
	left = append(left, MarkedProcesses(t, marked)...)
	left = append(left, LoopDevices(t, marked)...)
	for _, m := range marks {
		if filepath.IsAbs(m) {
			left = append(left, ownedEntries(t, m)...)
		}
	}
	return append(left, Leases(t, marked)...)
}

// LoopDevices lists the loop devices whose image is, or was, a marked file.
func LoopDevices(t *testing.T, marked func(string) bool) (list []string) {
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

// Leases lists the leases of host ids that a marked instance holds. They lie in a
// folder that all daemons of the host share, and are links to their owners.
func Leases(t *testing.T, marked func(string) bool) []string {
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

// Cgroups lists every cgroup directory of every tree.
func Cgroups(t *testing.T) []string {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(CgroupRoot, func(path string, e fs.DirEntry, err error) error {
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

// CgroupTrees are the mount points of the host's cgroup trees.
func CgroupTrees(t *testing.T) []string {
	t.Helper()
	var roots []string
	for _, m := range strings.Split(string(ReadFile(t, "/proc/self/mounts")), "\n") {
		f := strings.Fields(m)
		if len(f) > 2 && (f[2] == "cgroup" || f[2] == "cgroup2") {
			roots = append(roots, f[1])
		}
	}
	return roots
}

// MarkedProcesses lists processes that are in a marked cgroup or have a marked
// mount in sight. Test programs of this suite are not looked at.
func MarkedProcesses(t *testing.T, marked func(string) bool) []string {
	t.Helper()
	var left []string
	for _, pid := range PIDs(t) {
		if pid == os.Getpid() {
			continue
		}
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		for _, file := range []string{"cgroup", "mountinfo"} {
			text, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil { // gone, or a zombie without mounts
				continue
			}
			for line := range strings.Lines(string(text)) {
				if marked(line) {
					left = append(left, fmt.Sprintf("process %d (%s): %s", pid, Command(pid), strings.TrimSpace(line)))
					break
				}
			}
		}
	}
	return left
}

// Files lists what lies in the daemon's folders.
func (d *Daemon) Files() []string {
	d.T.Helper()
	var list []string
	for _, dir := range []string{d.Folders.State, d.Folders.Run} {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			list = append(list, path)
			return err
		})
		if err != nil {
			d.T.Fatal(err)
		}
	}
	return list
}
