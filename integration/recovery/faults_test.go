//go:build integration

package recovery

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// S-03: a daemon that was stopped goes on where it was. An invocation whose time has
// passed meanwhile is told so, and no state is taken for what it is not.
func TestDaemonStopped(t *testing.T) {
	pause := 3 * time.Second            // longer than the function has
	if os.Getenv("SOAK_REPORT") != "" { // as in make soak
		pause = 30 * time.Second
	}
	d := harness.Start(t, harness.OneCPU, "--timeout=2s", harness.Function(t))
	before := d.Do()
	d.WaitFrozen()

	seen := len(d.Printed("runtime", "invoked"))
	answers := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{harness.Note("invoked"), {Op: "sleep", MS: 60_000}}})
	d.WaitPrinted("runtime", "invoked", seen+1)
	d.Signal(syscall.SIGSTOP)
	time.Sleep(pause)
	d.Signal(syscall.SIGCONT)
	if a := <-answers; !strings.Contains(string(a.Body), "Sandbox.Timedout") {
		t.Errorf("the invocation that was late: %d %s", a.Status, a.Body)
	}
	if after := d.Do(); after.Started == before.Started {
		t.Error("the runtime that took too long was not replaced")
	}
	d.WaitFrozen()
}

// S-04: no room, in bytes or in files, where packages are staged and the image of /tmp
// is made: the start says so, leaves nothing half made, and works once there is room.
func TestDiskFullAtStart(t *testing.T) {
	for _, c := range []struct {
		name string
		fill func(t *testing.T, dir string) (empty func())
	}{
		{"bytes", func(t *testing.T, dir string) func() {
			full := filepath.Join(dir, "full")
			if err := fillUp(full); err != nil {
				t.Fatal(err)
			}
			return func() { remove(t, full) }
		}},
		{"files", func(t *testing.T, dir string) func() {
			many := filepath.Join(dir, "many")
			for i := 0; ; i++ {
				err := os.MkdirAll(filepath.Join(many, fmt.Sprint(i)), 0o755)
				if errors.Is(err, syscall.ENOSPC) {
					return func() { remove(t, many) }
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := harness.NewFolders(t)
			disk := mountImage(t, "64m", "-N", "256")
			f.State = filepath.Join(disk, "state")
			args := []string{"--memory=512", zippedRuntime(t)}
			empty := c.fill(t, disk)
			d := harness.Launch(t, f, args...)
			if code := d.WaitExit(); code != 2 || !strings.Contains(d.Log.Text(), "no space left on device") {
				t.Errorf("exit code %d, want 2; %s", code, d.Log.Text())
			}
			harness.WantNothingLeft(t, f.State, f.Run)
			empty()
			harness.StartIn(t, f, args...).Do()
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

// S-04: no room for the /tmp of a sandbox: the caller is told, running sandboxes do not
// mind, and the next caller is served once there is room.
func TestDiskFullAtCreation(t *testing.T) {
	f := harness.NewFolders(t)
	disk := mountImage(t, "64m")
	f.State = filepath.Join(disk, "state")
	d := harness.StartIn(t, f, "--memory=512", "--concurrency=2", "--tenant-isolation", harness.Function(t))
	ask := func(tenant string) harness.Answer {
		a, err := d.Request("x", "X-Amz-Tenant-Id", tenant)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask("one"); a.Status != http.StatusOK {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	full := filepath.Join(disk, "full")
	if err := fillUp(full); err != nil {
		t.Fatal(err)
	}
	if a := ask("two"); a.Status != http.StatusInternalServerError {
		t.Errorf("without room: %d %s", a.Status, a.Body)
	}
	d.WaitFor("no space left on device") // the caller does not wait for the log
	if a := ask("one"); a.Status != http.StatusOK {
		t.Errorf("a sandbox that was there before: %d %s", a.Status, a.Body)
	}
	remove(t, full)
	if a := ask("two"); a.Status != http.StatusOK {
		t.Errorf("with room again: %d %s", a.Status, a.Body)
	}
}

// S-04: a log that cannot be written costs lines, not invocations.
func TestLogDiskFull(t *testing.T) {
	disk := mountImage(t, "16m")
	log, err := os.Create(filepath.Join(disk, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	f := harness.NewFolders(t)
	d := launchLogging(t, f, log, "--memory=512", "--timeout=60s", harness.Function(t))
	full := filepath.Join(disk, "full")
	if err := fillUp(full); err != nil {
		t.Fatal(err)
	}
	first := d.Do(script.Step{Op: "print", N: 5000, Data: strings.Repeat("x", 1000) + "\n"})
	remove(t, full)
	if second := d.Do(script.Step{Op: "print", Data: "there is room again\n"}); second.Started != first.Started {
		t.Error("the runtime was replaced")
	}
	harness.Eventually(t, harness.Patience, func() string {
		if !bytes.Contains(harness.ReadFile(t, log.Name()), []byte("there is room again")) {
			return "nothing is logged although there is room again"
		}
		return ""
	})
	log.Close()
	d.Stop()
}

// launchLogging starts a daemon that writes its log to a file.
func launchLogging(t *testing.T, f harness.Folders, log *os.File, args ...string) *harness.Daemon {
	t.Helper()
	d := harness.NewDaemon(t, harness.Sandboxd, f, args...)
	d.Cmd.Stdout, d.Cmd.Stderr = log, log
	d.Run()
	harness.Eventually(t, harness.Patience, func() string {
		for line := range strings.Lines(string(harness.ReadFile(t, log.Name()))) {
			if d.Hear(line) {
				return ""
			}
		}
		return "it does not listen"
	})
	return d
}

// S-09: a process that waits for a disk cannot be killed. Its sandbox is quarantined,
// and told of; others work, its ids stay its own, and it is removed when the disk is
// back.
func TestProcessThatCannotBeKilled(t *testing.T) {
	g := gates{t, harness.Function(t)}
	d := harness.Start(t, harness.OneCPU, "--timeout=10s", "--concurrency=2", "--tenant-isolation", g.code)
	caller := fireTenant(d, "stuck", script.Event{Report: true, Steps: []script.Step{
		harness.Note("ready"), gate("frozen"), {Op: "fill", Path: "/tmp/file", N: 64 << 20}}})
	d.WaitPrinted("runtime", "ready", 1)
	stuck := d.PS()
	guests := d.Guests()
	if len(stuck) != 1 || len(guests) != 1 {
		t.Fatalf("ps %+v, guests %v", stuck, guests)
	}
	tmp, err := os.Open(fmt.Sprintf("/proc/%d/root/tmp", guests[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Close()
	held := harness.Leases(t, func(owner string) bool { return strings.Contains(owner, d.Instance) })
	if err := unix.IoctlSetInt(int(tmp.Fd()), fiFreeze, 0); err != nil {
		t.Fatal(err)
	}
	thawed := false
	thaw := func() {
		if !thawed {
			thawed = true
			if err := unix.IoctlSetInt(int(tmp.Fd()), fiThaw, 0); err != nil {
				t.Errorf("thaw: %v", err)
			}
			tmp.Close() // it holds the file system
		}
	}
	defer thaw()
	g.open("frozen")
	if a := <-caller; !strings.Contains(string(a.Body), "Sandbox.Timedout") {
		t.Errorf("its caller: %d %s", a.Status, a.Body)
	}
	quarantined := func() bool {
		for _, s := range d.PS() {
			if s.ID == stuck[0].ID && s.State == "Quarantined" {
				return true
			}
		}
		return false
	}
	harness.Eventually(t, harness.Patience, func() string {
		if a := <-fireTenant(d, "other", script.Event{Report: true}); a.Status != http.StatusOK {
			t.Errorf("another tenant: %d %s", a.Status, a.Body)
		}
		if !quarantined() {
			return fmt.Sprintf("not in quarantine: %+v", d.PS())
		}
		return ""
	})
	d.WaitFor("sandbox " + stuck[0].ID + " is quarantined")
	now := harness.Leases(t, func(owner string) bool { return strings.Contains(owner, d.Instance) })
	if !strings.Contains(strings.Join(now, "\n"), held[0]) {
		t.Errorf("leases %q: the lease of the sandbox in quarantine, %s, is gone", now, held)
	}
	thaw()
	harness.Eventually(t, harness.Patience, func() string {
		if quarantined() {
			return "still in quarantine"
		}
		return ""
	})
	d.WaitFor("removed a sandbox that was quarantined")
}

// FIFREEZE and FITHAW of linux/fs.h: what fsfreeze(8) does.
const (
	fiFreeze = 0xC0045877
	fiThaw   = 0xC0045878
)

// fireTenant invokes for a tenant without waiting for the answer.
func fireTenant(d *harness.Daemon, tenant string, payload any) <-chan harness.Answer {
	answers := make(chan harness.Answer, 1)
	go func() {
		a, err := d.Request(payload, "X-Amz-Tenant-Id", tenant)
		if err != nil {
			d.T.Errorf("invoke: %v", err)
		}
		answers <- a
	}()
	return answers
}

// S-09: rmdir or umount says EBUSY for good: the sandbox is quarantined and told of,
// and gone once the kernel lets go; a failed creation is no different.
func TestBusy(t *testing.T) {
	for _, p := range []failpoint.Point{failpoint.RemoveCgroup, failpoint.UnmountRoot} {
		t.Run(string(p), func(t *testing.T) {
			f := harness.NewFolders(t)
			d := startFaulty(t, f, harness.OneCPU, harness.Config(t, "idle-timeout: 1ms\n"), harness.Function(t))
			set(f.Faults(), t, p, "EBUSY")
			if _, err := d.Request("x"); err != nil { // where the root is let go before the start, this fails
				t.Fatal(err)
			}
			var id string
			harness.Eventually(t, harness.Patience, func() string {
				for _, s := range d.PS() {
					if s.State == "Quarantined" {
						id = s.ID
						if s.Function == "" {
							return "ps does not say of which function the quarantined sandbox is"
						}
						return ""
					}
				}
				return "nothing is quarantined"
			})
			d.WaitFor("sandbox " + id + " is quarantined")
			clear(f.Faults(), t)
			d.Do()
			d.WaitFor("removed a sandbox that was quarantined")
			atRest(d, 0)
		})
	}
}

// S-11: what a dead daemon left is damaged: the record of its cgroups, its folder, its
// leases; so are the store's entries. The start goes on, and sets it right.
func TestDamagedState(t *testing.T) {
	t.Parallel() // it mostly waits
	code := zippedRuntime(t)
	for _, c := range []struct {
		name   string
		damage func(t *testing.T, f harness.Folders, d *harness.Daemon)
	}{
		{"record cut short", func(t *testing.T, f harness.Folders, d *harness.Daemon) {
			damage(t, filepath.Join(f.Run, d.Instance, "cgroup"), truncate)
		}},
		{"record with a flipped bit", func(t *testing.T, f harness.Folders, d *harness.Daemon) {
			damage(t, filepath.Join(f.Run, d.Instance, "cgroup"), flip)
		}},
		{"package's record cut short", func(t *testing.T, f harness.Folders, _ *harness.Daemon) {
			damage(t, packageRecord(t, f), truncate)
		}},
		{"package's record with a flipped bit", func(t *testing.T, f harness.Folders, _ *harness.Daemon) {
			damage(t, packageRecord(t, f), flip)
		}},
		{"package's file cut short", func(t *testing.T, f harness.Folders, _ *harness.Daemon) {
			damage(t, only(t, f.State, "packages/sha256/*/tree/bootstrap"), truncate)
		}},
		{"image of /tmp cut short", func(t *testing.T, f harness.Folders, _ *harness.Daemon) {
			damage(t, only(t, f.State, "packages/sha256/*/tree/tmp.ext4"), truncate)
		}},
		{"image of /tmp with a flipped bit", func(t *testing.T, f harness.Folders, _ *harness.Daemon) {
			damage(t, only(t, f.State, "packages/sha256/*/tree/tmp.ext4"), flip)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := harness.NewFolders(t)
			d := harness.StartIn(t, f, "--memory=512", code)
			d.Do()
			d.Crash()
			c.damage(t, f, d)
			next := harness.StartIn(t, f, "--memory=512", code)
			harness.WantNothingLeft(t, d.Instance)
			r := next.Do(script.Step{Op: "fill", Path: "/tmp/x", N: 1 << 20})
			if r.Results[0].Error != "" {
				t.Errorf("/tmp: %+v", r.Results[0])
			}
		})
	}
}

// packageRecord is the description of the package in the store.
func packageRecord(t *testing.T, f harness.Folders) string {
	t.Helper()
	bootstrap := only(t, f.State, "packages/sha256/*/tree/bootstrap")
	return filepath.Join(filepath.Dir(filepath.Dir(bootstrap)), "entry.json")
}

// only is the one file that the pattern names.
func only(t *testing.T, dir, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v; want one", pattern, found, err)
	}
	return found[0]
}

// damage changes the content of a file, as soon as no process runs it.
func damage(t *testing.T, path string, how func(*os.File) error) {
	t.Helper()
	harness.Eventually(t, harness.Patience, func() string {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err == nil {
			err = errors.Join(how(f), f.Close())
		}
		if err != nil {
			return err.Error()
		}
		return ""
	})
}

func truncate(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return f.Truncate(info.Size() / 2)
}

// flip flips a bit of the first byte that says something.
func flip(f *os.File) error {
	b := make([]byte, 4096)
	n, err := f.ReadAt(b, 0)
	if n == 0 {
		return err
	}
	at := bytes.IndexFunc(b[:n], func(r rune) bool { return r != 0 })
	_, err = f.WriteAt([]byte{b[at] ^ 4}, int64(at))
	return err
}
