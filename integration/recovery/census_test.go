//go:build integration

package recovery

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

	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// census counts what a daemon holds, and what the host holds of it, by kind: the
// invariants of SEC-70 that are exact.
type census map[string]int

// census takes stock of a daemon. Everything is what the kernel says; of the host's
// things only those count that carry the daemon's marks, so that other daemons on the
// host do not matter.
func takeCensus(d *harness.Daemon) census {
	d.T.Helper()
	pid := d.Cmd.Process.Pid
	c := census{}
	for kind, n := range d.FDs() {
		c["descriptors "+kind] = n
	}
	c["mounts of the daemon"] = bytes.Count(harness.ReadFile(d.T, fmt.Sprintf("/proc/%d/mountinfo", pid)), []byte("\n"))
	marked := func(text string) bool {
		return strings.Contains(text, d.Instance) || strings.Contains(text, d.Folders.Run)
	}
	for line := range strings.Lines(string(harness.ReadFile(d.T, "/proc/1/mountinfo"))) {
		if marked(line) {
			c["mounts of process 1"]++
		}
	}
	err := d.Folders.Host.In(func() (err error) {
		c["network interfaces"], c["packet filter tables and sets"], err = networkParts(marked)
		return err
	})
	if err != nil {
		d.T.Fatal(err)
	}
	for _, child := range d.Descendants() {
		switch {
		case child.State == "Z":
			c["zombies"]++
		case child.Parent == pid:
			c["children"]++
		default:
			c["processes in sandboxes"]++
		}
	}
	for _, dir := range harness.Cgroups(d.T) {
		if marked(dir) {
			c["cgroup folders"]++
		}
	}
	for _, s := range d.PS() {
		if s.State == "Quarantined" {
			c["sandboxes in quarantine"]++
		}
	}
	c["loop devices"] = len(harness.LoopDevices(d.T, func(image string) bool { return strings.Contains(image, d.Folders.State) }))
	c["leased id ranges"] = len(harness.Leases(d.T, marked))
	c["entries of the state and run folders"] = len(d.Files())
	c["threads in namespaces of sandboxes"] = strayThreads(d)
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

// strayThreads counts the daemon's threads that are not in its own namespaces.
func strayThreads(d *harness.Daemon) (n int) {
	d.T.Helper()
	dir := fmt.Sprintf("/proc/%d", d.Cmd.Process.Pid)
	tasks, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		d.T.Fatal(err)
	}
	for _, task := range tasks {
		for _, kind := range []string{"net", "mnt"} {
			own, err := os.Readlink(filepath.Join(dir, "ns", kind))
			if err != nil {
				d.T.Fatal(err)
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
func sandboxes(d *harness.Daemon) (ids []string) {
	d.T.Helper()
	for _, dir := range harness.Cgroups(d.T) {
		if id := filepath.Base(dir); filepath.Base(filepath.Dir(dir)) == d.Instance && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// rest waits until the daemon has no sandbox but the ready ones of its pool, and takes
// its census when that no longer changes.
func atRest(d *harness.Daemon, ready int) census {
	d.T.Helper()
	var now census
	harness.Eventually(d.T, harness.Patience, func() string {
		http.DefaultClient.CloseIdleConnections()
		if ids := sandboxes(d); len(ids) != ready {
			return fmt.Sprintf("sandboxes %q, want %d", ids, ready)
		}
		// One that is being made has a name, but not yet all that it will have.
		if n := len(d.Inits()); n < ready || ready > 0 && n%ready != 0 {
			return fmt.Sprintf("%d init handlers in %d sandboxes", n, ready)
		}
		before := now
		if now = takeCensus(d); !maps.Equal(now, before) {
			return fmt.Sprintf("the census still changes: %v after %v", now, before)
		}
		return ""
	})
	return now
}

// settle waits until the daemon has no sandbox but those of its pool and of its
// quarantine, which the census counts, and returns the first census that shows no more
// than before of anything; at the end of limit whatever there is.
func settle(d *harness.Daemon, before census, limit time.Duration) census {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		for _, s := range d.PS() {
			if s.State != "Quarantined" {
				return fmt.Sprintf("a sandbox is left: %+v", s)
			}
		}
		return ""
	})
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(limit)
	for {
		now := takeCensus(d)
		if len(now.grown(before)) == 0 || time.Now().After(deadline) {
			return now
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// The leak check sees what it is for: each kind of leak, planted once, is found, and
// without a plant nothing is (SEC-72).
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
			f := harness.NewFolders(t)
			args := []string{"--memory=512", harness.Config(t, "idle-timeout: 1ms\n"), harness.Function(t)}
			if plant.egress {
				f.Host = harness.NewInternet(t)
				args = append([]string{"--network=egress", "--allow", harness.Public4}, args...)
			}
			t.Setenv("GOGC", "off") // a collection closes files that were forgotten
			d := startFaulty(t, f, args...)
			d.Do()
			before := atRest(d, 0)
			limit := harness.Patience
			if plant.points != nil {
				skip(f.Faults(), t, plant.points...)
				limit = time.Second
			}
			if _, err := d.Request("x"); err != nil {
				t.Fatal(err)
			}
			leaks := strings.Join(settle(d, before, limit).grown(before), "\n")
			if (leaks != "") != (plant.points != nil) || !strings.Contains(leaks, plant.found) {
				t.Errorf("found %q, want %q", leaks, plant.found)
			}
			if plant.points != nil { // what was planted is for the next start
				d.Crash()
				clear(f.Faults(), t)
				next := harness.StartIn(t, f, args...)
				if f.Host != nil {
					f.Host.WantNothingOnNetwork(d.Instance)
				}
				next.Do()
			}
		})
	}
}
