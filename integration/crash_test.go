//go:build integration

package integration

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// kill -9 of the daemon while sandboxes run and while they are frozen: everything in
// them dies within a second, and the next start removes what is left of that
// daemon and nothing else (ARCHITECTURE decision 7, REQUIREMENTS S-01, S-13).
func TestDaemonKilled(t *testing.T) {
	for _, c := range []struct {
		name  string
		reach func(*daemon, gates)
	}{
		{"running", func(d *daemon, g gates) {
			d.fire(script.Event{Report: true, Steps: []script.Step{{Op: "daemon"}, note("invoked"), gate("never")}})
			d.waitPrinted("runtime", "invoked", 1)
		}},
		{"frozen", func(d *daemon, _ gates) {
			d.do(script.Step{Op: "daemon"})
			d.waitFrozen()
		}},
		{"initializing", func(d *daemon, g gates) {
			d.do()
			d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}})
			g.shut("init")
			d.fire(script.Event{})
			d.waitPrinted("runtime", "start", 2)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := gates{t, function(t, gate("init"))}
			g.open("init")
			folders := newFolders(t)
			args := []string{oneCPU, "--timeout=60s", "--layer", layer(t, extensions{"watcher": watch()}), g.code}
			other := start(t, oneCPU, function(t)) // must not notice anything
			otherBefore := other.do()

			d := startIn(t, folders, args...)
			c.reach(d, g)
			inside := d.descendants()
			if len(inside) < 5 { // the worker, two PID 1, runtime, extension
				t.Fatalf("%d processes of the daemon", len(inside))
			}
			limit := scaled(t, time.Second)
			begin := time.Now()
			d.crash()
			eventually(t, patience, func() string {
				for _, p := range inside {
					if p.alive() {
						return "alive: " + command(p.pid)
					}
				}
				return ""
			})
			if took := time.Since(begin); took > limit {
				t.Errorf("everything inside was dead after %v; want %v at most", took, limit)
			}

			foreign := plantForeign(t, folders, d.Instance)
			g.open("init")
			next := startIn(t, folders, args...)
			wantNothingLeft(t, d.Instance)
			for _, path := range foreign {
				if _, err := os.Stat(path); err != nil {
					t.Errorf("not ours, and gone: %v", err)
				}
			}
			next.do()
			if after := other.do(); after.Started != otherBefore.Started {
				t.Error("the other daemon's sandbox was replaced")
			}
		})
	}
}

// fire invokes and does not wait for the answer: the daemon will be killed.
func (d *daemon) fire(payload any) { go d.request(payload) }

// plantForeign makes folders that look like an instance's but are not: in every
// cgroup tree beside that of the dead instance and at the top, and in the run folder.
func plantForeign(t *testing.T, f folders, instance string) []string {
	t.Helper()
	similar := instance[:7] + "0"
	if similar == instance {
		similar = instance[:7] + "1"
	}
	var planted []string
	plant := func(dir string) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		planted = append(planted, dir)
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
	}
	for _, root := range cgroupTrees(t) {
		plant(filepath.Join(root, "sandboxd-"+similar))
		if own := filepath.Join(root, "sandboxd"); exists(own) {
			plant(filepath.Join(own, similar))
		}
	}
	plant(filepath.Join(f.Run, "mine"))
	plant(filepath.Join(f.Run, instance+"-mine"))
	return planted
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Two daemons never share a host id (ARCHITECTURE, settled questions).
func TestDaemonsShareNoIDs(t *testing.T) {
	uids := func(d *daemon) (list []string) {
		for _, p := range append(d.guests(), d.inits()...) {
			list = append(list, strings.Fields(p.status("Uid"))[0])
		}
		return list
	}
	shared := newFolders(t)
	var all []string
	for i := range 4 {
		f := shared
		if i >= 2 {
			f = newFolders(t)
		}
		d := startIn(t, f, oneCPU, function(t))
		d.do()
		own := uids(d)
		if len(own) != 2 {
			t.Fatalf("%d processes, want 2", len(own))
		}
		for _, uid := range own {
			if slices.Contains(all, uid) {
				t.Errorf("host id %s is used by two daemons", uid)
			}
		}
		all = append(all, own...)
	}
}

// The suite's own eyes: what wantNothingLeft looks for, it finds.
func TestPlantedLeaksAreFound(t *testing.T) {
	f := newFolders(t)
	d := startIn(t, f, oneCPU, function(t))
	d.do()
	found := strings.Join(leftovers(t, d.Instance, f.State, f.Run), "\n")
	for _, kind := range []string{"cgroup ", "process ", "loop device ", "file ", "lease "} {
		if !strings.Contains(found, kind) {
			t.Errorf("a live daemon leaves no trace of the kind %q: the check is blind to it; found\n%s", kind, found)
		}
	}
}
