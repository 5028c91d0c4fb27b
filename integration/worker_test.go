//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// allowedFDs are what the worker may have open while it serves: no file of the host but
// those by which its sandboxes are frozen and measured.
var allowedFDs = regexp.MustCompile(`^(/dev/null|/proc/meminfo|(pipe|socket):\[\d+\]|anon_inode:\[event(poll|fd)\]|/memfd:oom-seen \(deleted\)|` +
	`\S*/run/[^/]+/fs/cgroup(/\w+|/cpu,cpuacct)?/.*/(cgroup\.(freeze|events)|freezer\.state|(memory|pids|cpuacct)\.\w+|cpu\.stat))$`)

// REQUIREMENTS section 1, sandbox/daemon and client/front: whoever reads what strangers
// say has no privilege (ARCHITECTURE decision 13).
func TestWorkerPosture(t *testing.T) {
	d := start(t, oneCPU, "--layer", layer(t, extensions{"watcher": idle()}), function(t))
	d.do()
	w := d.worker()

	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", w.pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %q, %v", tasks, err)
	}
	uid := strings.Fields(w.status("Uid"))[0]
	four := strings.Join([]string{uid, uid, uid, uid}, "\t")
	for _, task := range tasks {
		text := string(readFile(t, task))
		for _, want := range []string{
			"\nUid:\t" + four + "\n", "\nGid:\t" + four + "\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n",
			"\nCapInh:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nCapEff:\t0000000000000000\n",
			"\nCapBnd:\t0000000000000000\n", "\nCapAmb:\t0000000000000000\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s has no %q:\n%s", task, want, text)
			}
		}
		if !regexp.MustCompile(`(?m)^Groups:\s*$`).MatchString(text) {
			t.Errorf("%s: the worker is in other groups:\n%s", task, text)
		}
	}

	// Its user is nobody else's: neither the host's nor one of a sandbox.
	id, err := strconv.Atoi(uid)
	if err != nil || id < 65536 {
		t.Errorf("the worker is user %s", uid)
	}
	for _, pid := range pids(t) {
		p, ok := readProcess(pid)
		if !ok || p.pid == w.pid {
			continue
		}
		for _, other := range strings.Fields(p.status("Uid")) {
			if n, _ := strconv.Atoi(other); n/65536 == id/65536 && p.alive() {
				t.Errorf("process %d (%s) is user %s, in the range of the worker", pid, command(pid), other)
			}
		}
	}

	fds := descriptors(t, w.pid)
	for _, target := range fds {
		if !allowedFDs.MatchString(target) {
			t.Errorf("the worker has %s open", target)
		}
	}
	env := string(readFile(t, fmt.Sprintf("/proc/%d/environ", w.pid)))
	for _, pair := range strings.Split(strings.TrimRight(env, "\x00"), "\x00") {
		switch name, _, _ := strings.Cut(pair, "="); name {
		case "GOMAXPROCS", "GOTRACEBACK", "GODEBUG", "TZ":
		default:
			t.Errorf("%s is in the worker's environment", pair)
		}
	}

	// The endpoint is the worker's alone: the supervisor reads nothing that a client sends.
	endpoint := "socket:[" + listeningInode(t, w.pid, d.Addr) + "]"
	if !slices.Contains(fds, endpoint) {
		t.Errorf("the worker does not listen on %s", d.Addr)
	}
	if slices.Contains(descriptors(t, d.Cmd.Process.Pid), endpoint) {
		t.Errorf("the supervisor has the socket of %s too", d.Addr)
	}
}

// descriptors lists what a process has open.
func descriptors(t *testing.T, pid int) (targets []string) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // else closed since
			targets = append(targets, target)
		}
	}
	return targets
}

// listeningInode is the inode of the socket that listens on an IPv4 address where the
// process is.
func listeningInode(t *testing.T, pid int, addr string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	// Of that process, as the test's own may have been in another network namespace.
	for line := range bytes.Lines(readFile(t, fmt.Sprintf("/proc/%d/net/tcp", pid))) {
		f := strings.Fields(string(line))
		if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) && f[3] == "0A" { // TCP_LISTEN
			return f[9]
		}
	}
	t.Fatalf("nothing listens on %s", addr)
	return ""
}

// A worker that is killed, at whatever moment, takes its sandboxes with it, frozen ones
// too; the supervisor removes all that is left of them and says so.
func TestWorkerKilled(t *testing.T) {
	code, watched := function(t), layer(t, extensions{"watcher": idle()})
	kill := func(t *testing.T, d *daemon) {
		t.Helper()
		inside := d.descendants()
		if err := syscall.Kill(d.worker().pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := d.waitExit(); code != 2 {
			t.Errorf("exit code %d, want 2", code)
		}
		if !strings.Contains(d.Log.Text(), "the worker has ended, and all sandboxes with it: signal: killed") {
			t.Errorf("the log does not tell:\n%s", d.Log.Text())
		}
		for _, p := range inside {
			if p.alive() {
				t.Errorf("process %d (%s) is alive", p.pid, command(p.pid))
			}
		}
		wantNothingLeft(t, d.Instance)
	}
	t.Run("frozen", func(t *testing.T) {
		d := start(t, oneCPU, "--layer", watched, code)
		d.do()
		d.waitFrozen()
		kill(t, d)
	})
	t.Run("invoking", func(t *testing.T) {
		g := gates{t, code}
		g.shut("invoke")
		d := start(t, oneCPU, "--timeout=60s", code)
		d.fire(script.Event{Report: true, Steps: []script.Step{note("invoked"), gate("invoke")}})
		d.waitPrinted("runtime", "invoked", 1)
		kill(t, d)
		g.open("invoke")
	})
	t.Run("random", func(t *testing.T) {
		folders := newFolders(t)
		for range rounds(t, 10) {
			d := startIn(t, folders, oneCPU, "--concurrency=3", "--pool=1", "--layer", watched, code)
			for range 3 {
				d.fire("x")
			}
			time.Sleep(rand.N(150 * time.Millisecond)) // whatever it does then
			kill(t, d)
		}
	})
}

// A worker that does not come to its end is ended: nobody who has taken it over can keep
// the supervisor.
func TestWorkerHangs(t *testing.T) {
	d := start(t, oneCPU, "--drain-timeout=1s", function(t))
	d.do()
	w, supervisor := d.worker(), process{pid: d.Cmd.Process.Pid}
	if err := syscall.Kill(w.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d.signal(syscall.SIGTERM)
		eventually(t, patience, func() string { // two at once count as one
			if pending, err := strconv.ParseUint(supervisor.status("ShdPnd"), 16, 64); err != nil || pending>>(uint(syscall.SIGTERM)-1)&1 != 0 {
				return fmt.Sprintf("the signal is pending: %x, %v", pending, err)
			}
			return ""
		})
	}
	if code := d.waitExit(); code != 2 || w.alive() {
		t.Errorf("exit code %d, want 2; the worker is alive: %v", code, w.alive())
	}
}
