//go:build integration

package integration

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// census counts what a daemon holds, and what the host holds of it, by kind: the
// invariants of REQUIREMENTS section 5 that are exact.
type census map[string]int

// census takes stock of a daemon. Everything is what the kernel says; of the host's
// things only those count that carry the daemon's marks, so that other daemons on the
// host do not matter.
func (d *daemon) census() census {
	d.t.Helper()
	pid := d.Cmd.Process.Pid
	c := census{}
	for kind, n := range d.fds() {
		c["descriptors "+kind] = n
	}
	c["mounts of the daemon"] = bytes.Count(readFile(d.t, fmt.Sprintf("/proc/%d/mountinfo", pid)), []byte("\n"))
	marked := func(text string) bool {
		return strings.Contains(text, d.Instance) || strings.Contains(text, d.folders.Run)
	}
	for line := range strings.Lines(string(readFile(d.t, "/proc/1/mountinfo"))) {
		if marked(line) {
			c["mounts of process 1"]++
		}
	}
	err := d.folders.host.in(func() (err error) {
		c["network interfaces"], c["packet filter tables and sets"], err = networkParts(marked)
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
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
	c["loop devices"] = len(loopDevices(d.t, func(image string) bool { return strings.Contains(image, d.folders.State) }))
	c["leased id ranges"] = len(leases(d.t, marked))
	c["entries of the state and run folders"] = len(d.files())
	c["threads in namespaces of sandboxes"] = d.strayThreads()
	return c
}

// networkParts counts what is marked where the calling thread is: network interfaces, and
// tables of the packet filter with their sets, and the elements of these.
func networkParts(marked func(string) bool) (links, filter int, err error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return 0, 0, err
	}
	for _, i := range interfaces {
		if marked(i.Name) {
			links++
		}
	}
	c, err := nftables.New()
	if err != nil {
		return 0, 0, err
	}
	tables, err := c.ListTables()
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT) {
		return links, 0, nil // a kernel without
	}
	if err != nil {
		return 0, 0, err
	}
	for _, table := range tables {
		if !marked(table.Name) {
			continue
		}
		filter++
		sets, err := c.GetSets(table)
		if err != nil {
			return 0, 0, err
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return 0, 0, err
			}
			filter += 1 + len(elements)
		}
	}
	return links, filter, nil
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
	dir := fmt.Sprintf("/proc/%d", d.Cmd.Process.Pid)
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
		if id := filepath.Base(dir); filepath.Base(filepath.Dir(dir)) == d.Instance && !slices.Contains(ids, id) {
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
		name   string
		points []failpoint.Point // left out
		egress bool              // the sandbox has some
		found  string            // part of what the check says
	}{
		{"nothing", nil, false, ""},
		{"cgroup", []failpoint.Point{failpoint.RemoveCgroup}, false, "cgroup folders"},
		{"mount", []failpoint.Point{failpoint.UnmountRoot}, false, "mounts of the daemon"},
		{"descriptor", []failpoint.Point{failpoint.CloseNetNS}, false, "descriptors supervisor: net:[N]"},
		{"process", []failpoint.Point{failpoint.ReapInit}, false, "zombies"},
		{"lease of ids and addresses", []failpoint.Point{failpoint.ReleaseIDs}, false, "leased id ranges"},
		{"nothing with egress", nil, true, ""},
		{"interface", []failpoint.Point{failpoint.RemoveLink, failpoint.CloseNetNS}, true, "network interfaces"}, // else it goes with its namespace
		{"packet filter", []failpoint.Point{failpoint.RemoveFilter}, true, "packet filter tables and sets"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			f := newFolders(t)
			args := []string{"--memory=512", config(t, "idle-timeout: 1ms\n"), function(t)}
			if plant.egress {
				f.host = newInternet(t)
				args = append([]string{"--network=egress", "--allow", public4}, args...)
			}
			t.Setenv("GOGC", "off") // a collection closes files that were forgotten
			d := startFaulty(t, f, args...)
			d.do()
			before := d.rest(0)
			limit := patience
			if plant.points != nil {
				f.faults().skip(t, plant.points...)
				limit = time.Second
			}
			if _, err := d.request("x"); err != nil {
				t.Fatal(err)
			}
			leaks := strings.Join(d.settle(before, limit).grown(before), "\n")
			if (leaks != "") != (plant.points != nil) || !strings.Contains(leaks, plant.found) {
				t.Errorf("found %q, want %q", leaks, plant.found)
			}
			if plant.points != nil { // what was planted is for the next start
				d.crash()
				f.faults().clear(t)
				next := startIn(t, f, args...)
				if f.host != nil {
					f.host.wantNothingOnNetwork(d.Instance)
				}
				next.do()
			}
		})
	}
}
