//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/failpoint"
)

// census counts what a daemon holds, and what the host holds of it, by kind: the
// invariants of REQUIREMENTS section 5 that are exact.
type census map[string]int

// census takes stock of a daemon. Everything is what the kernel says; of the host's
// things only those count that carry the daemon's marks, so that other daemons on the
// host do not matter.
func (d *daemon) census() census {
	d.t.Helper()
	pid := d.cmd.Process.Pid
	c := census{}
	for kind, n := range d.fds() {
		c["descriptors "+kind] = n
	}
	c["mounts of the daemon"] = bytes.Count(readFile(d.t, fmt.Sprintf("/proc/%d/mountinfo", pid)), []byte("\n"))
	marked := func(text string) bool {
		return strings.Contains(text, d.instance) || strings.Contains(text, d.folders.run)
	}
	for line := range strings.Lines(string(readFile(d.t, "/proc/1/mountinfo"))) {
		if marked(line) {
			c["mounts of process 1"]++
		}
	}
	for _, name := range links(d.t) {
		if marked(name) {
			c["network interfaces"]++
		}
	}
	c["packet filter tables and sets"] = filterParts(d.t, marked)
	for _, child := range d.descendants() {
		switch {
		case child.state == "Z":
			c["zombies"]++
		case child.parent == pid:
			c["children"]++
		default:
			c["processes in sandboxes"]++
		}
	}
	for _, dir := range cgroups(d.t) {
		if marked(dir) {
			c["cgroup folders"]++
		}
	}
	for _, s := range d.ps() {
		if s.State == "Quarantined" {
			c["sandboxes in quarantine"]++
		}
	}
	c["loop devices"] = len(loopDevices(d.t, func(image string) bool { return strings.Contains(image, d.folders.state) }))
	c["leased id ranges"] = len(leases(d.t, marked))
	c["entries of the state and run folders"] = len(d.files())
	c["threads in namespaces of sandboxes"] = d.strayThreads()
	return c
}

// links are the network interfaces of the host.
func links(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// filterParts counts the marked tables of the host's packet filter, with their sets,
// and the elements of these.
func filterParts(t *testing.T, marked func(string) bool) (n int) {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	tables, err := c.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return 0 // a kernel without
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if !marked(table.Name) {
			continue
		}
		n++
		sets, err := c.GetSets(table)
		if err != nil {
			t.Fatal(err)
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				t.Fatal(err)
			}
			n += 1 + len(elements)
		}
	}
	return n
}

// ps is what `sandboxd ps` lists.
func (d *daemon) ps() (list []listed) {
	d.t.Helper()
	d.ask(&list, "ps")
	return list
}

// strayThreads counts the daemon's threads that are not in its own namespaces.
func (d *daemon) strayThreads() (n int) {
	d.t.Helper()
	dir := fmt.Sprintf("/proc/%d", d.cmd.Process.Pid)
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		d.t.Fatal(err)
	}
	for _, task := range tasks {
		for _, kind := range []string{"net", "mnt"} {
			own, err := os.Readlink(filepath.Join(dir, "ns", kind))
			if err != nil {
				d.t.Fatal(err)
			}
			if now, err := os.Readlink(filepath.Join(dir, "task", task.Name(), "ns", kind)); err == nil && now != own {
				n++
				break
			}
		}
	}
	return n
}

// grown lists the kinds of which there are more than before.
func (c census) grown(before census) (list []string) {
	for _, kind := range slices.Sorted(maps.Keys(c)) {
		if c[kind] > before[kind] {
			list = append(list, fmt.Sprintf("%s: %d, before %d", kind, c[kind], before[kind]))
		}
	}
	return list
}

// sandboxes are those that have a cgroup, ready ones of the pool too.
func (d *daemon) sandboxes() (ids []string) {
	d.t.Helper()
	for _, dir := range cgroups(d.t) {
		if id := filepath.Base(dir); filepath.Base(filepath.Dir(dir)) == d.instance && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// rest waits until the daemon has no sandbox but the ready ones of its pool, and takes
// its census when that no longer changes.
func (d *daemon) rest(ready int) census {
	d.t.Helper()
	var now census
	eventually(d.t, patience, func() string {
		http.DefaultClient.CloseIdleConnections()
		if ids := d.sandboxes(); len(ids) != ready {
			return fmt.Sprintf("sandboxes %q, want %d", ids, ready)
		}
		before := now
		if now = d.census(); !maps.Equal(now, before) {
			return fmt.Sprintf("the census still changes: %v after %v", now, before)
		}
		return ""
	})
	return now
}

// settle waits until the daemon has no sandbox but those of its pool and of its
// quarantine, which the census counts, and returns the first census that shows no more
// than before of anything; at the end of limit whatever there is.
func (d *daemon) settle(before census, limit time.Duration) census {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		for _, s := range d.ps() {
			if s.State != "Quarantined" {
				return fmt.Sprintf("a sandbox is left: %+v", s)
			}
		}
		return ""
	})
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(limit)
	for {
		now := d.census()
		if len(now.grown(before)) == 0 || time.Now().After(deadline) {
			return now
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// The leak check sees what it is for: each kind of leak, planted once, is found, and
// without a plant nothing is (REQUIREMENTS section 5).
func TestPlantedLeaks(t *testing.T) {
	for _, plant := range []struct {
		point failpoint.Point // left out; "" nothing
		found string          // part of what the check says
	}{
		{"", ""},
		{failpoint.RemoveCgroup, "cgroup folders"},
		{failpoint.UnmountRoot, "mounts of the daemon"},
		{failpoint.CloseNetNS, "descriptors supervisor: net:[N]"},
		{failpoint.ReapInit, "zombies"},
	} {
		t.Run("skip "+string(plant.point), func(t *testing.T) {
			f := newFolders(t)
			t.Setenv("GOGC", "off") // a collection closes files that were forgotten
			d := startFaulty(t, f, "--memory=512", config(t, "idle-timeout: 1ms\n"), function(t, "testruntime"))
			d.do()
			before := d.rest(0)
			limit := patience
			if plant.point != "" {
				f.faults().set(t, plant.point, "skip")
				limit = time.Second
			}
			if _, err := d.request("x"); err != nil {
				t.Fatal(err)
			}
			leaks := strings.Join(d.settle(before, limit).grown(before), "\n")
			if (leaks != "") != (plant.point != "") || !strings.Contains(leaks, plant.found) {
				t.Errorf("found %q, want %q", leaks, plant.found)
			}
			if plant.point != "" { // what was planted is for the next start
				d.crash()
				f.faults().clear(t)
				startIn(t, f, function(t, "testruntime"))
			}
		})
	}
}
