//go:build integration

package recovery

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// kill -9 of the daemon while sandboxes run and while they are frozen: everything in
// them dies within a second, and the next start removes what is left of that
// daemon and nothing else (docs/decisions/0033, S-01, S-13).
func TestDaemonKilled(t *testing.T) {
	for _, c := range []struct {
		name  string
		reach func(*harness.Daemon, gates)
	}{
		{"running", func(d *harness.Daemon, g gates) {
			fire(d, script.Event{Report: true, Steps: []script.Step{{Op: "daemon"}, harness.Note("invoked"), gate("never")}})
			d.WaitPrinted("runtime", "invoked", 1)
		}},
		{"frozen", func(d *harness.Daemon, _ gates) {
			d.Do(script.Step{Op: "daemon"})
			d.WaitFrozen()
		}},
		{"initializing", func(d *harness.Daemon, g gates) {
			d.Do()
			d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}})
			g.shut("init")
			fire(d, script.Event{})
			d.WaitPrinted("runtime", "start", 2)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := gates{t, harness.Function(t, gate("init"))}
			g.open("init")
			folders := harness.NewFolders(t)
			args := []string{harness.OneCPU, "--timeout=60s", "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Watch()}), g.code}
			other := harness.Start(t, harness.OneCPU, harness.Function(t)) // must not notice anything
			otherBefore := other.Do()

			d := harness.StartIn(t, folders, args...)
			c.reach(d, g)
			inside := d.Descendants()
			if len(inside) < 5 { // the worker, two PID 1, runtime, extension
				t.Fatalf("%d processes of the daemon", len(inside))
			}
			begin := time.Now()
			d.Crash()
			harness.Eventually(t, harness.Patience, func() string {
				for _, p := range inside {
					if p.Alive() {
						return "alive: " + harness.Command(p.PID)
					}
				}
				return ""
			})
			wantWithin(t, "the death of everything inside", time.Since(begin), time.Second)

			foreign := plantForeign(t, folders, d.Instance)
			g.open("init")
			next := harness.StartIn(t, folders, args...)
			harness.WantNothingLeft(t, d.Instance)
			for _, path := range foreign {
				if _, err := os.Stat(path); err != nil {
					t.Errorf("not ours, and gone: %v", err)
				}
			}
			next.Do()
			if after := other.Do(); after.Started != otherBefore.Started {
				t.Error("the other daemon's sandbox was replaced")
			}
		})
	}
}

// fire invokes and does not wait for the answer: the daemon will be killed.
func fire(d *harness.Daemon, payload any) { go d.Request(payload) }

// plantForeign makes folders that look like an instance's but are not: in every
// cgroup tree beside that of the dead instance and at the top, and in the run folder.
func plantForeign(t *testing.T, f harness.Folders, instance string) []string {
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
	for _, root := range harness.CgroupTrees(t) {
		plant(filepath.Join(root, "sandboxd-"+similar))
		if own := filepath.Join(root, "sandboxd"); harness.Exists(own) {
			plant(filepath.Join(own, similar))
		}
	}
	plant(filepath.Join(f.Run, "mine"))
	plant(filepath.Join(f.Run, instance+"-mine"))
	return planted
}

// Two daemons never share a host id (SEC-20, S-11).
func TestDaemonsShareNoIDs(t *testing.T) {
	uids := func(d *harness.Daemon) (list []string) {
		for _, p := range append(d.Guests(), d.Inits()...) {
			list = append(list, strings.Fields(p.Status("Uid"))[0])
		}
		return list
	}
	shared := harness.NewFolders(t)
	var all []string
	for i := range 4 {
		f := shared
		if i >= 2 {
			f = harness.NewFolders(t)
		}
		d := harness.StartIn(t, f, harness.OneCPU, harness.Function(t))
		d.Do()
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
	f := harness.NewFolders(t)
	d := harness.StartIn(t, f, harness.OneCPU, harness.Function(t))
	d.Do()
	found := strings.Join(harness.Leftovers(t, d.Instance, f.State, f.Run), "\n")
	for _, kind := range []string{"cgroup ", "process ", "loop device ", "file ", "lease "} {
		if !strings.Contains(found, kind) {
			t.Errorf("a live daemon leaves no trace of the kind %q: the check is blind to it; found\n%s", kind, found)
		}
	}
}
