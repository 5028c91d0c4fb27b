//go:build integration

package serve

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// root returns the process id of the root side.
func (d *takeover) root() int { return d.Cmd.Process.Pid }

// load asks both processes all the time until the function that it returns is called, which
// returns how often each answered, and what they said otherwise.
func (d *takeover) load() (stop func() (worker, control int64, refused []string)) {
	var (
		wg      sync.WaitGroup
		over    atomic.Bool
		answers [2]atomic.Int64
		mu      sync.Mutex
		refused []string
	)
	for i, path := range []string{"worker/pid", "control/pid"} {
		for range 3 {
			wg.Go(func() {
				for !over.Load() {
					s, err := d.ask(path, nil)
					switch {
					case err == nil:
						answers[i].Add(1)
					case strings.HasPrefix(err.Error(), "503") && s.retryAfter == "1" && i == 1:
					default:
						mu.Lock()
						refused = append(refused, path+": "+err.Error())
						mu.Unlock()
					}
				}
			})
		}
	}
	return func() (int64, int64, []string) {
		over.Store(true)
		wg.Wait()
		return answers[0].Load(), answers[1].Load(), refused
	}
}

// When the control process dies, the worker and its sandboxes go on; requests for the control
// process get 503 with Retry-After until there is another one.
func TestControlDies(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	d.register(revision(1, d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))))
	d.succeed("worker/create?n=1", nil)
	worker, first := d.workerPID(), d.ready()
	inside := d.Inits()
	stop := d.load()
	for range 3 {
		pid := d.ready()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		harness.Eventually(t, harness.Patience, func() string {
			if d.ready() == pid {
				return "it is still there"
			}
			return ""
		})
		t.Logf("another control process after %v", time.Since(begin))
	}
	fromWorker, fromControl, refused := stop()
	if fromWorker == 0 || fromControl == 0 || len(refused) > 0 {
		t.Errorf("%d answers of the worker, %d of the control process; others: %q", fromWorker, fromControl, refused)
	}
	if d.workerPID() != worker || len(inside) != 1 || !inside[0].Alive() || d.ready() == first {
		t.Errorf("the worker was replaced: %v; %d sandboxes", d.workerPID() != worker, len(inside))
	}
	d.succeed("worker/create?n=1", nil) // what it had registered stays
}

// When the worker dies, its sandboxes end and all that was theirs is removed; the control
// process lives, connections to the endpoint wait for the next worker, and what was
// registered stays.
func TestWorkerDies(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	d.register(revision(1, d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))))
	control := d.ready()
	for range 3 {
		d.succeed("worker/create?n=1", nil)
		d.succeed("worker/create?n=1", nil)
		inside := d.Inits()
		leases := len(d.leases())
		worker := d.workerPID()
		if len(inside) != 2 {
			t.Fatalf("%d sandboxes", len(inside))
		}
		if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		harness.Eventually(t, harness.Patience, func() string { // a connection is never refused
			s, err := d.ask("worker/pid", nil)
			if errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
			if err != nil || s.PID == worker {
				return fmt.Sprint("the worker answers no more: ", err)
			}
			return ""
		})
		t.Logf("another worker after %v", time.Since(begin))
		for _, p := range inside {
			if p.Alive() {
				t.Errorf("process %d of a sandbox is alive", p.PID)
			}
		}
		if now := d.leases(); len(now) != leases-2 {
			t.Errorf("%d ranges of ids are leased, %d were, with two sandboxes", len(now), leases)
		}
		for _, dir := range harness.Cgroups(t) {
			if _, sandbox, ok := strings.Cut(dir, d.Instance+"/"); ok {
				t.Errorf("the cgroup of sandbox %s is left", sandbox)
			}
		}
	}
	if d.ready() != control {
		t.Error("the control process was replaced")
	}
	d.succeed("worker/create?n=1", nil)
}

// leases returns the ranges of ids that the daemon has.
func (d *takeover) leases() []string {
	return harness.Leases(d.T, func(owner string) bool { return strings.Contains(owner, d.Instance) })
}

// When the supervisor dies everything ends, and the next daemon removes what is left and has
// the control folder as it was.
func TestSupervisorDies(t *testing.T) {
	f := harness.NewFolders(t)
	d := start(t, f)
	code := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	d.register(revision(1, code))
	d.succeed("worker/create?n=1", nil)
	inside := d.Descendants()
	before := owner(t, f)
	if len(inside) < 3 { // worker, control process, PID 1
		t.Fatalf("%d processes", len(inside))
	}
	d.Crash()
	harness.Eventually(t, harness.Patience, func() string {
		for _, p := range inside {
			if p.Alive() {
				return "alive: " + harness.Command(p.PID)
			}
		}
		return ""
	})
	next := start(t, f)
	harness.WantNothingLeft(t, d.Instance)
	if after := owner(t, f); after != before {
		t.Errorf("the control folder belongs to %d, it belonged to %d", after, before)
	}
	if r := next.register(revision(2, code)); r.Sent != 0 {
		t.Error("the tree is gone")
	}
}

// Five deaths within a minute end the daemon with the reason.
func TestFiveDeaths(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	for n := range 5 {
		pid := d.workerPID()
		if n%2 == 0 {
			pid = d.ready()
		}
		if n == 4 { // the process tells why it ends
			_, _ = d.ask("control/exit", nil)
			break
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, harness.Patience, func() string {
			if p, ok := harness.ReadProcess(pid); ok && p.Alive() {
				return "the process lives"
			}
			return ""
		})
	}
	if code := d.WaitExit(); code != 2 {
		t.Errorf("exit code %d, want 2", code)
	}
	const want = "the processes of this daemon have ended 5 times within 1m0s, the control process last: exit status 3"
	if !strings.Contains(d.Log.Text(), want) {
		t.Errorf("the log does not say %q:\n%s", want, d.Log.Text())
	}
}

// Deaths at any moment, of both at once too, leave a daemon that works and ends in order.
func TestDeathsAtRandom(t *testing.T) {
	f := harness.NewFolders(t)
	for range harness.Rounds(t, 4) {
		d := start(t, f)
		d.register(revision(1, d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))))
		stop := d.load()
		for _, victims := range [][]int{{d.ready()}, {d.workerPID()}, {d.workerPID(), d.ready()}} {
			time.Sleep(rand.N(50 * time.Millisecond)) // whatever they do then
			for _, pid := range victims {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Fatal(err)
				}
			}
			harness.Eventually(t, harness.Patience, func() string {
				for _, pid := range victims {
					if p, ok := harness.ReadProcess(pid); ok && p.Alive() {
						return "it lives"
					}
				}
				return ""
			})
			d.workerPID()
			d.ready()
		}
		stop()
		d.succeed("worker/create?n=1", nil)
		d.Stop()
	}
}

// owner returns the owner of the control folder.
func owner(t *testing.T, f harness.Folders) uint32 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(f.State, "control"), &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

// The control folder keeps its owner from one daemon to the next. Where the id is in use, what
// is in the folder gets another owner, and nothing else does.
func TestControlFolder(t *testing.T) {
	f := harness.NewFolders(t)
	d := start(t, f)
	code := d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))
	first := owner(t, f)
	second := launch(t, f)
	if code := second.WaitExit(); code != 2 || !strings.Contains(second.Log.Text(), "another 'sandboxd serve' uses --state-dir "+f.State) {
		t.Errorf("a second daemon: exit code %d:\n%s", code, second.Log.Text())
	}
	d.Stop()
	d = start(t, f)
	if again := owner(t, f); again != first {
		t.Errorf("the owner is %d, it was %d", again, first)
	}
	d.Stop()

	lease := filepath.Join(subid.DefaultLeaseDir, fmt.Sprint(first))
	if err := os.Symlink(t.TempDir(), lease); err != nil { // somebody else's now
		t.Fatal(err)
	}
	defer os.Remove(lease)
	d = start(t, f)
	other := owner(t, f)
	if other == first {
		t.Fatalf("the owner %d is leased to somebody else", other)
	}
	if r := d.register(revision(1, code)); r.Sent != 1 {
		t.Error("the tree was there: the test shows nothing")
	}
	d.Stop()

	folder := filepath.Join(f.State, "control")
	outside := filepath.Join(filepath.Dir(f.State), "outside")
	harness.WriteFile(t, outside, nil, 0o600)
	for name, plant := range map[string]func(path string) error{
		"a link":      func(path string) error { return os.Symlink(outside, path) },
		"a hard link": func(path string) error { return os.Link(outside, path) },
		"a pipe":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		path := filepath.Join(folder, "blobs", "planted")
		if err := errors.Join(os.Chown(folder, 0, 0), plant(path)); err != nil {
			t.Fatal(err)
		}
		d := launch(t, f)
		if code := d.WaitExit(); code != 2 || !strings.Contains(d.Log.Text(), path+" is neither a folder nor a file with one name") {
			t.Errorf("%s: exit code %d:\n%s", name, code, d.Log.Text())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	var st syscall.Stat_t
	if err := syscall.Stat(outside, &st); err != nil || st.Uid != 0 {
		t.Errorf("a file outside belongs to %d, %v", st.Uid, err)
	}
	start(t, f) // what was begun is completed
}
