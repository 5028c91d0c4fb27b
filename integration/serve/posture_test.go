//go:build integration

package serve

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/host/hosttest"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/confine"
)

// allowedFDs are what the control process may have open while nothing is asked of it.
var allowedFDs = regexp.MustCompile(`^(/dev/null|(pipe|socket):\[\d+\]|anon_inode:\[event(poll|fd)\])$`)

// SEC-11, SEC-15: the control process has a user of its own, no privilege, and nothing open
// but what it was given.
func TestControlPosture(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	pid := d.ready()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil || len(tasks) < 2 {
		t.Fatalf("threads %q, %v", tasks, err)
	}
	p, _ := harness.ReadProcess(pid)
	uid := strings.Fields(p.Status("Uid"))[0]
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
			t.Errorf("%s: the control process is in other groups:\n%s", task, text)
		}
	}
	for _, other := range harness.PIDs(t) { // its user is nobody else's
		if q, ok := harness.ReadProcess(other); ok && other != pid && strings.HasPrefix(q.Status("Uid"), uid+"\t") {
			t.Errorf("process %d (%s) has the user of the control process", other, harness.Command(other))
		}
	}
	for _, target := range harness.Descriptors(t, pid) {
		if !allowedFDs.MatchString(target) {
			t.Errorf("the control process has %s open", target)
		}
	}
	if env := string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/environ", pid))); !regexp.MustCompile(`^GOMAXPROCS=\d+\x00(GOTRACEBACK|GODEBUG|TZ|\x00|=|.)*$`).MatchString(env) || strings.Contains(env, "HOME=") || strings.Contains(env, "PATH=") {
		t.Errorf("its environment is %q", env)
	}

	var st syscall.Stat_t
	folder := filepath.Join(d.Folders.State, "control")
	if err := syscall.Stat(folder, &st); err != nil || fmt.Sprint(st.Uid) != uid || st.Mode&0o7777 != 0o700 {
		t.Errorf("the folder belongs to %d and has mode %o, %v; want %s and 700", st.Uid, st.Mode&0o7777, err, uid)
	}
}

// What a control process that was taken over cannot do.
func TestControlAttempts(t *testing.T) {
	hosttest.Need(t, confine.NeedLandlock(1))
	d := start(t, harness.NewFolders(t))
	root := filepath.Dir(d.Folders.State)
	harness.WriteFile(t, filepath.Join(root, "public"), []byte("for all"), 0o644)
	if err := os.Mkdir(filepath.Join(root, "writable"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(root, "writable"), 0o777); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(d.Folders.State, "control")
	if err := os.Symlink(filepath.Join(root, "public"), filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
	for what, of := range map[string][]string{
		"open": {"/etc/passwd", filepath.Join(root, "public"), filepath.Join(folder, "link"), filepath.Join(folder, "../../public"),
			"/proc/self/status", "/dev/null", "/", d.Folders.Run, "/sys/fs/cgroup"},
		"create":    {filepath.Join(root, "writable", "x"), "/tmp/control-was-here", filepath.Join(d.Folders.State, "x")},
		"connect":   {d.Addr},
		"socket":    {""},
		"exec":      {"/bin/true"},
		"replace":   {"/bin/true"},
		"fork":      {""},
		"kill":      {fmt.Sprint(d.Cmd.Process.Pid), fmt.Sprint(os.Getpid())},
		"ptrace":    {fmt.Sprint(d.workerPID())},
		"namespace": {""},
		"setuid":    {""},
	} {
		for _, of := range of {
			if s := d.do("control/try?what="+what+"&of="+of, nil); !slices.Contains(s.Kinds, "permission") {
				t.Errorf("%s %s: %+v, want it to be refused", what, of, s)
			}
		}
	}
	d.succeed("control/try?what=create&of="+filepath.Join(folder, "own"), nil) // so the attempts are real
	d.succeed("control/try?what=open&of="+filepath.Join(folder, "own"), nil)
	if err := os.Remove(filepath.Join(folder, "link")); err != nil {
		t.Fatal(err)
	}
}

// A control process that violates the protocol is killed and started again; what it has
// registered stays.
func TestControlViolates(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	d.register(revision(1, d.put(zipOf(t, map[string]string{"bootstrap": "#!/bin/sh\n"}))))
	first := d.ready()
	_, _ = d.ask("control/try?what=violate", nil) // may be answered before it is killed
	d.WaitFor("the control process violates the protocol: request of 14 bytes instead of 256")
	harness.Eventually(t, harness.Patience, func() string {
		if d.ready() == first {
			return "the control process was not killed"
		}
		return ""
	})
	d.succeed("worker/create?n=1", nil)
}

// A worker that was taken over and opens connections without end stops nobody: others get
// theirs when it closes some, at the latest with its end.
func TestWorkerFloodsControl(t *testing.T) {
	d := start(t, harness.NewFolders(t))
	control, worker := d.ready(), d.workerPID()
	s := d.do("worker/flood?n=2000", nil)
	t.Logf("%s", s.Said)
	p, alive := harness.ReadProcess(control)
	if files := len(harness.Descriptors(t, control)); !alive || !p.Alive() || files > 600 {
		t.Errorf("the control process has %d files open; it is alive: %v", files, alive)
	}
	if files := len(harness.Descriptors(t, d.root())); files > 100 {
		t.Errorf("root has %d files open", files)
	}
	if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Patience, func() string {
		if d.ready() != control {
			return "another control process answers"
		}
		if n := len(harness.Descriptors(t, control)); n > 100 {
			return fmt.Sprintf("the control process has %d files open", n)
		}
		return ""
	})
}
