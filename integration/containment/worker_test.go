//go:build integration

package containment

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// allowedFDs are what the worker may have open while it serves: no file of the host but
// those by which its sandboxes are frozen and measured.
var allowedFDs = regexp.MustCompile(`^(/dev/null|/proc/meminfo|(pipe|socket):\[\d+\]|anon_inode:\[event(poll|fd)\]|/memfd:oom-seen \(deleted\)|` +
	`\S*/run/[^/]+/fs/cgroup(/\w+|/cpu,cpuacct)?/.*/(cgroup\.(freeze|events)|freezer\.state|(memory|pids|cpuacct)\.\w+|cpu\.stat))$`)

// SEC-11, SEC-15: the process that reads what strangers say has no privilege
// (docs/decisions/0015).
func TestWorkerPosture(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t))
	d.Do()
	w := d.Worker()

	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", w.PID))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %q, %v", tasks, err)
	}
	uid := strings.Fields(w.Status("Uid"))[0]
	four := strings.Join([]string{uid, uid, uid, uid}, "\t")
	for _, task := range tasks {
		text := string(harness.ReadFile(t, task))
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
	for _, pid := range harness.PIDs(t) {
		p, ok := harness.ReadProcess(pid)
		if !ok || p.PID == w.PID {
			continue
		}
		for _, other := range strings.Fields(p.Status("Uid")) {
			if n, _ := strconv.Atoi(other); n/65536 == id/65536 && p.Alive() {
				t.Errorf("process %d (%s) is user %s, in the range of the worker", pid, harness.Command(pid), other)
			}
		}
	}

	fds := harness.Descriptors(t, w.PID)
	for _, target := range fds {
		if !allowedFDs.MatchString(target) {
			t.Errorf("the worker has %s open", target)
		}
	}
	env := string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/environ", w.PID)))
	for _, pair := range strings.Split(strings.TrimRight(env, "\x00"), "\x00") {
		switch name, _, _ := strings.Cut(pair, "="); name {
		case "GOMAXPROCS", "GOTRACEBACK", "GODEBUG", "TZ":
		default:
			t.Errorf("%s is in the worker's environment", pair)
		}
	}

	// The endpoint is the worker's alone: the supervisor reads nothing that a client sends.
	endpoint := "socket:[" + listeningInode(t, w.PID, d.Addr) + "]"
	if !slices.Contains(fds, endpoint) {
		t.Errorf("the worker does not listen on %s", d.Addr)
	}
	if slices.Contains(harness.Descriptors(t, d.Cmd.Process.Pid), endpoint) {
		t.Errorf("the supervisor has the socket of %s too", d.Addr)
	}
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
	for line := range bytes.Lines(harness.ReadFile(t, fmt.Sprintf("/proc/%d/net/tcp", pid))) {
		f := strings.Fields(string(line))
		if len(f) > 9 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) && f[3] == "0A" { // TCP_LISTEN
			return f[9]
		}
	}
	t.Fatalf("nothing listens on %s", addr)
	return ""
}
