//go:build integration

package containment

import (
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// treeHash is a hash of names, modes, owners, link targets and contents below dir.
func treeHash(t *testing.T, dir string) string {
	t.Helper()
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		fmt.Fprintln(h, path, info.Mode(), st.Uid, st.Gid)
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			fmt.Fprintln(h, target)
			return err
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			h.Write(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// canary is a folder of the host that a hostile tree points to.
func canary(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"null", "sys/kernel/core_pattern", "bootstrap", "shm/x", "hosts"} {
		harness.WriteFile(t, filepath.Join(dir, name), []byte("host's own"), 0o600)
	}
	return dir
}

// hostileNames are the places of a root that a runtime makes, mounts on or writes to.
var hostileNames = []string{"proc", "sys", "dev", "dev/shm", "tmp", "etc", "var", "var/task", "var/runtime", "opt", "usr", ".sandbox-init"}

// SEC-58: a base whose mount points are links out of it (the class of
// CVE-2019-19921, 2021-30465, 2024-21626 and 2025-52881). The start is refused, or
// what the links name lies inside the root; the host's files stay as they are.
func TestAttackHostileRootTree(t *testing.T) {
	code := harness.Function(t)
	for _, name := range hostileNames {
		t.Run(name, func(t *testing.T) {
			victim, base := canary(t), t.TempDir()
			before := treeHash(t, victim)
			link := filepath.Join(base, name)
			if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(victim, link); err != nil {
				t.Fatal(err)
			}
			f := harness.NewFolders(t)
			out := harness.SandboxdCommand(t, script.Encode(script.Event{Report: true, Steps: []script.Step{
				{Op: "write", Path: "/" + name + "/planted", Data: "x"}, {Op: "read", Path: "/" + name + "/hosts"}, {Op: "read", Path: victim + "/hosts"},
				{Op: "write", Path: "/tmp/own", Data: "x"}, {Op: "read", Path: "/proc/self/status"},
			}}), slices.Concat([]string{"run", "--event=-", "--rootfs=" + base, "--concurrency=1", "--pool=0"}, f.Flags(), []string{code})...)
			if out.Code != 0 && out.Code != 2 {
				t.Errorf("exit code %d: %s", out.Code, out.Stderr)
			}
			if strings.Contains(out.Stdout, "host's own") {
				t.Errorf("the function reads the host's file: %s", out.Stdout)
			}
			if after := treeHash(t, victim); after != before {
				t.Error("the folder that the link names has changed")
			}
			t.Logf("exit code %d %s", out.Code, strings.TrimSpace(lastLine(out.Stderr)))
		})
	}
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// The same while the tree changes: a folder and a link to the host take turns.
func TestAttackChangingRootTree(t *testing.T) {
	code, victim := harness.Function(t), canary(t)
	before := treeHash(t, victim)
	base := t.TempDir()
	a, b := filepath.Join(base, "folder"), filepath.Join(base, "link")
	if err := os.Mkdir(a, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, b); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			for _, name := range []string{"opt", "etc", "usr", "tmp"} {
				for _, from := range []string{a, b} {
					select {
					case <-stop:
						return
					default:
					}
					to := filepath.Join(base, name)
					if os.Rename(from, to) == nil {
						_ = os.Rename(to, from) // nobody else renames here
					}
				}
			}
		}
	})
	for range size(t, 10, 100) {
		f := harness.NewFolders(t)
		out := harness.SandboxdCommand(t, script.Encode(script.Event{Report: true, Steps: []script.Step{{Op: "read", Path: "/opt/hosts"}, {Op: "read", Path: "/etc/hosts"}, {Op: "write", Path: "/opt/planted", Data: "x"}}}),
			slices.Concat([]string{"run", "--event=-", "--rootfs=" + base, "--concurrency=1", "--pool=0"}, f.Flags(), []string{code})...)
		if out.Code != 0 && out.Code != 2 || strings.Contains(out.Stdout, "host's own") {
			t.Errorf("exit code %d: %s %s", out.Code, out.Stdout, out.Stderr)
		}
	}
	close(stop)
	wg.Wait()
	if after := treeHash(t, victim); after != before {
		t.Error("the folder that the link names has changed")
	}
}

// The control: mounting by path, as runtimes did once, follows such a link to the
// host's folder. It happens in a mount namespace that goes at once.
func TestAttackHostileRootTreeControl(t *testing.T) {
	victim, base := canary(t), t.TempDir()
	if err := os.Symlink(victim, filepath.Join(base, "proc")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("unshare", "-m", "sh", "-c", `mount -t tmpfs planted "$0/proc" && touch "$0/proc/planted" && ls "$1"`, base, victim).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "planted" {
		t.Errorf("%v: %s; want the mount on the link's target", err, out)
	}
}

// probe prints which of the paths on standard input its user can read or write. A
// socket is written to when somebody connects.
const localProbe = `while read -r p; do [ -r "$p" ] && [ ! -d "$p" ] && echo "reads $p"; [ -w "$p" ] && echo "writes $p"; [ -d "$p" ] && [ -r "$p" ] && ls "$p" >/dev/null 2>&1 && echo "lists $p"; done; true`

// SEC-59: an unprivileged user of the host gets at nothing of a
// running daemon's: sockets, state, code, logs, cgroups.
func TestAttackLocalUser(t *testing.T) {
	zip := harness.ZipFile(t, "bootstrap", 0o755, strings.NewReader(string(harness.ReadFile(t, filepath.Join(harness.Testbin, harness.Actor)))))
	d := harness.Start(t, harness.OneCPU, zip)
	d.Do()
	paths := d.Files()
	for _, dir := range harness.Cgroups(t) {
		if strings.Contains(dir, d.Instance) {
			paths = append(paths, dir, dir+"/cgroup.procs", dir+"/cgroup.kill", dir+"/memory.max", dir+"/tasks")
		}
	}
	probe := func(uid uint32) string {
		cmd := exec.Command("sh", "-c", localProbe)
		cmd.Dir = "/"
		cmd.Stdin = strings.NewReader(strings.Join(paths, "\n"))
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	for line := range strings.Lines(probe(65534)) {
		// What the kernel shows of a cgroup to everybody cannot be taken away; see docs/security.md.
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "writes "); ok || !strings.Contains(line, harness.CgroupRoot) {
			t.Errorf("nobody %s %s", strings.TrimSpace(line), path)
		}
	}
	control := probe(0)
	for _, want := range []string{"reads " + d.Folders.State, "writes " + d.Folders.Run, "control.sock"} {
		if !strings.Contains(control, want) {
			t.Errorf("root's probe says nothing of %s: the check above proves nothing:\n%s", want, control)
		}
	}
}
