//go:build integration

package recovery

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// memoryGroup is a cgroup that bounds the memory of whoever a test moves into it.
type memoryGroup struct {
	t    *testing.T
	dir  string
	most string // name of the file with the limit
}

func newMemoryGroup(t *testing.T) memoryGroup {
	t.Helper()
	root, most := filepath.Join(harness.CgroupRoot, "memory"), "memory.limit_in_bytes"
	if !harness.Exists(root) { // one tree for all controllers
		root, most = harness.CgroupRoot, "memory.max"
	}
	dir, err := os.MkdirTemp(root, "sandboxd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		harness.Eventually(t, harness.Patience, func() string { // a process may be leaving
			if err := unix.Rmdir(dir); err != nil {
				return fmt.Sprintf("rmdir %s: %v", dir, err)
			}
			return ""
		})
	})
	return memoryGroup{t, dir, most}
}

// take moves a process into the group. What it has is charged to others; of more it gets
// so many bytes.
func (g memoryGroup) take(pid int, bytes int) {
	g.t.Helper()
	for _, file := range [][2]string{{g.most, strconv.Itoa(bytes)}, {"cgroup.procs", strconv.Itoa(pid)}} {
		if err := os.WriteFile(filepath.Join(g.dir, file[0]), []byte(file[1]), 0); err != nil {
			g.t.Fatal(err)
		}
	}
}

// kills is how often the kernel has ended a process of the group for want of memory.
func (g memoryGroup) kills() (n int) {
	g.t.Helper()
	for _, name := range []string{"memory.oom_control", "memory.events"} {
		text, err := os.ReadFile(filepath.Join(g.dir, name))
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, "oom_kill "); ok && err == nil {
				n, _ = strconv.Atoi(strings.TrimSpace(value))
				return n
			}
		}
	}
	g.t.Fatal("the kernel does not count")
	return 0
}

// S-05: the kernel ends one of the daemon's processes because there is no memory. It is
// as any other end of that process: nothing of its sandboxes lives on or stays, and the
// next start serves.
func TestDaemonOutOfMemory(t *testing.T) {
	args := []string{"--memory=512", "--concurrency=3", "--tenant-isolation", "--timeout=60s", harness.Function(t)}
	use := func(t *testing.T, d *harness.Daemon, pid int, payload any) {
		t.Helper()
		g := newMemoryGroup(t)
		g.take(pid, 4<<20)
		deadline := time.Now().Add(harness.Patience)
		for i := 0; ; i++ {
			_, _ = d.AskTenant(fmt.Sprint("tenant ", i%9), payload) // breaks with the daemon
			select {
			case <-d.Done():
				if g.kills() == 0 {
					t.Errorf("the daemon ended, but not for want of memory: %v", d.Cmd.ProcessState)
				}
				return
			default:
			}
			if time.Now().After(deadline) {
				t.Fatalf("the daemon lives, after %d kills; its log:\n%s", g.kills(), d.Log.Text())
			}
		}
	}
	t.Run("supervisor", func(t *testing.T) {
		f := harness.NewFolders(t)
		d := harness.StartIn(t, f, args...)
		d.AskTenant("one", "x")
		use(t, d, d.Cmd.Process.Pid, "x")
		waitKilled(d)
		wantDeadSoon(t, d.Instance)
		next := harness.StartIn(t, f, args...)
		harness.WantNothingLeft(t, d.Instance)
		serves(next, t)
	})
	t.Run("worker", func(t *testing.T) {
		f := harness.NewFolders(t)
		d := harness.StartIn(t, f, args...)
		d.AskTenant("one", "x")
		use(t, d, d.Worker().PID, strings.Repeat("x", 5<<20))
		if code := d.WaitExit(); code != 2 || !strings.Contains(d.Log.Text(), "all sandboxes with it: signal: killed") {
			t.Errorf("exit code %d, want 2; its log:\n%s", code, d.Log.Text())
		}
		harness.WantNothingLeft(t, d.Instance)
		serves(harness.StartIn(t, f, args...), t)
	})
}

// serves wants an answer for a tenant.
func serves(d *harness.Daemon, t *testing.T) {
	t.Helper()
	if a, err := d.AskTenant("one", "x"); err != nil || a.Status != http.StatusOK {
		t.Errorf("%v, %d %s", err, a.Status, a.Body)
	}
}

// S-05: a process of the daemon may open no more files. Who needs one is told or waits,
// sandboxes that are there work, and all is well when there are files again.
func TestDaemonOutOfDescriptors(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--concurrency=3", "--tenant-isolation", harness.Function(t))
	serves(d, t)
	// As who the process is: root needs a capability for others', which it may not have.
	limit := func(p harness.Process, soft string) {
		t.Helper()
		id, err := strconv.Atoi(strings.Fields(p.Status("Uid"))[0])
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("prlimit", "--pid", strconv.Itoa(p.PID), "--nofile="+soft+":")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	restrict := func(p harness.Process) (restore func()) {
		_, rest, _ := strings.Cut(string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/limits", p.PID))), "Max open files")
		was := strings.Fields(rest)[0]
		limit(p, "3") // what is open stays open
		return func() { limit(p, was) }
	}
	t.Run("supervisor", func(t *testing.T) {
		restore := restrict(harness.Process{PID: d.Cmd.Process.Pid})
		a, err := d.AskTenant("two", "x")
		if err != nil || a.Status != http.StatusInternalServerError {
			t.Errorf("a sandbox that cannot be made: %v, %d %s", err, a.Status, a.Body)
		}
		d.WaitFor(syscall.EMFILE.Error())
		serves(d, t)
		restore()
		if a, err := d.AskTenant("two", "x"); err != nil || a.Status != http.StatusOK {
			t.Errorf("with files again: %v, %d %s", err, a.Status, a.Body)
		}
	})
	t.Run("worker", func(t *testing.T) {
		restore := restrict(d.Worker())
		serves(d, t) // on a connection that is there
		a, err := d.AskTenant("three", "x")
		if err != nil || a.Status != http.StatusInternalServerError {
			t.Errorf("a sandbox that cannot be made: %v, %d %s", err, a.Status, a.Body)
		}
		http.DefaultClient.CloseIdleConnections()
		late := fireTenant(d, "one", "x")
		select {
		case a := <-late:
			t.Errorf("control: there was a descriptor for another connection: %d %s", a.Status, a.Body)
		case <-time.After(100 * time.Millisecond):
		}
		restore()
		if a := <-late; a.Status != http.StatusOK {
			t.Errorf("with files again: %d %s", a.Status, a.Body)
		}
		if a, err := d.AskTenant("three", "x"); err != nil || a.Status != http.StatusOK {
			t.Errorf("with files again: %v, %d %s", err, a.Status, a.Body)
		}
	})
}
