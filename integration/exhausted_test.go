//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// memoryGroup is a cgroup that bounds the memory of whoever a test moves into it.
type memoryGroup struct {
	t    *testing.T
	dir  string
	most string // name of the file with the limit
}

func newMemoryGroup(t *testing.T) memoryGroup {
	t.Helper()
	root, most := filepath.Join(cgroupRoot, "memory"), "memory.limit_in_bytes"
	if !exists(root) { // one tree for all controllers
		root, most = cgroupRoot, "memory.max"
	}
	dir, err := os.MkdirTemp(root, "sandboxd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		eventually(t, patience, func() string { // a process may be leaving
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

// askTenant invokes for a tenant, whose sandbox is its own.
func (d *daemon) askTenant(tenant string, payload any) (answer, error) {
	return d.request(payload, "X-Amz-Tenant-Id", tenant)
}

// S-05: the kernel ends one of the daemon's processes because there is no memory. It is
// as any other end of that process: nothing of its sandboxes lives on or stays, and the
// next start serves.
func TestDaemonOutOfMemory(t *testing.T) {
	args := []string{"--memory=512", "--concurrency=3", "--tenant-isolation", "--timeout=60s", function(t)}
	use := func(t *testing.T, d *daemon, pid int, payload any) {
		t.Helper()
		g := newMemoryGroup(t)
		g.take(pid, 4<<20)
		deadline := time.Now().Add(patience)
		for i := 0; ; i++ {
			_, _ = d.askTenant(fmt.Sprint("tenant ", i%9), payload) // breaks with the daemon
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
		f := newFolders(t)
		d := startIn(t, f, args...)
		d.askTenant("one", "x")
		use(t, d, d.Cmd.Process.Pid, "x")
		d.waitKilled()
		wantDeadSoon(t, d.Instance)
		next := startIn(t, f, args...)
		wantNothingLeft(t, d.Instance)
		next.serves(t)
	})
	t.Run("worker", func(t *testing.T) {
		f := newFolders(t)
		d := startIn(t, f, args...)
		d.askTenant("one", "x")
		use(t, d, d.worker().pid, strings.Repeat("x", 5<<20))
		if code := d.waitExit(); code != 2 || !strings.Contains(d.Log.Text(), "all sandboxes with it: signal: killed") {
			t.Errorf("exit code %d, want 2; its log:\n%s", code, d.Log.Text())
		}
		wantNothingLeft(t, d.Instance)
		startIn(t, f, args...).serves(t)
	})
}

// serves wants an answer for a tenant.
func (d *daemon) serves(t *testing.T) {
	t.Helper()
	if a, err := d.askTenant("one", "x"); err != nil || a.status != http.StatusOK {
		t.Errorf("%v, %d %s", err, a.status, a.body)
	}
}

// S-05: memory that a sandbox uses up is not the daemon's: none of its processes is in a
// cgroup of a sandbox.
func TestDaemonIsInNoSandbox(t *testing.T) {
	d := start(t, oneCPU, function(t))
	d.do()
	for _, p := range []process{{pid: d.Cmd.Process.Pid}, d.worker()} {
		if in := readFile(t, fmt.Sprintf("/proc/%d/cgroup", p.pid)); strings.Contains(string(in), d.Instance+"/") {
			t.Errorf("%s is in the cgroup of a sandbox:\n%s", command(p.pid), in)
		}
	}
	if guests := d.guests(); !slices.ContainsFunc(guests, func(p process) bool {
		return strings.Contains(string(readFile(t, fmt.Sprintf("/proc/%d/cgroup", p.pid))), d.Instance+"/")
	}) {
		t.Errorf("control: %v are in no cgroup of a sandbox either", guests)
	}
}

// S-05: a process of the daemon may open no more files. Who needs one is told or waits,
// sandboxes that are there work, and all is well when there are files again.
func TestDaemonOutOfDescriptors(t *testing.T) {
	d := start(t, "--memory=512", "--concurrency=3", "--tenant-isolation", function(t))
	d.serves(t)
	// As who the process is: root needs a capability for others', which it may not have.
	limit := func(p process, soft string) {
		t.Helper()
		id, err := strconv.Atoi(strings.Fields(p.status("Uid"))[0])
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("prlimit", "--pid", strconv.Itoa(p.pid), "--nofile="+soft+":")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	restrict := func(p process) (restore func()) {
		_, rest, _ := strings.Cut(string(readFile(t, fmt.Sprintf("/proc/%d/limits", p.pid))), "Max open files")
		was := strings.Fields(rest)[0]
		limit(p, "3") // what is open stays open
		return func() { limit(p, was) }
	}
	t.Run("supervisor", func(t *testing.T) {
		restore := restrict(process{pid: d.Cmd.Process.Pid})
		a, err := d.askTenant("two", "x")
		if err != nil || a.status != http.StatusInternalServerError {
			t.Errorf("a sandbox that cannot be made: %v, %d %s", err, a.status, a.body)
		}
		d.waitFor(syscall.EMFILE.Error())
		d.serves(t)
		restore()
		if a, err := d.askTenant("two", "x"); err != nil || a.status != http.StatusOK {
			t.Errorf("with files again: %v, %d %s", err, a.status, a.body)
		}
	})
	t.Run("worker", func(t *testing.T) {
		restore := restrict(d.worker())
		d.serves(t) // on a connection that is there
		a, err := d.askTenant("three", "x")
		if err != nil || a.status != http.StatusInternalServerError {
			t.Errorf("a sandbox that cannot be made: %v, %d %s", err, a.status, a.body)
		}
		http.DefaultClient.CloseIdleConnections()
		late := d.fireTenant("one", "x")
		select {
		case a := <-late:
			t.Errorf("control: there was a descriptor for another connection: %d %s", a.status, a.body)
		case <-time.After(100 * time.Millisecond):
		}
		restore()
		if a := <-late; a.status != http.StatusOK {
			t.Errorf("with files again: %d %s", a.status, a.body)
		}
		if a, err := d.askTenant("three", "x"); err != nil || a.status != http.StatusOK {
			t.Errorf("with files again: %v, %d %s", err, a.status, a.body)
		}
	})
}
