//go:build integration

package containment

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// finding is one line of `inspect --posture --output json`.
type finding struct{ Check, Domain, Role, Want, Got string }

// posture runs inspect --posture on the daemon's one sandbox. It returns what is
// not met and the number of findings.
func postureOf(d *harness.Daemon) (unmet []finding, all int) {
	d.T.Helper()
	var list []struct{ ID string }
	d.Ask(&list, "ps")
	if len(list) != 1 {
		d.T.Fatalf("%d sandboxes, want 1", len(list))
	}
	out := harness.SandboxdCommand(d.T, "", "inspect", "--posture", "--output=json", "--run-dir", d.Folders.Run, list[0].ID)
	var report struct {
		Met     bool
		Posture []struct {
			finding
			Met bool
		}
	}
	if err := json.Unmarshal([]byte(out.Stdout), &report); err != nil {
		d.T.Fatalf("inspect --posture: %v: %+v", err, out)
	}
	for _, f := range report.Posture {
		if !f.Met {
			unmet = append(unmet, f.finding)
		}
	}
	if met := len(unmet) == 0; met != report.Met || met != (out.Code == 0) || !met && out.Code != 1 {
		d.T.Errorf("exit code %d, met %v; %d expectations are not met", out.Code, report.Met, len(unmet))
	}
	return unmet, len(report.Posture)
}

// SEC-40: the posture, from the kernel, for both domains, frozen or running.
func TestPostureFromTheKernel(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t))
	d.Do()
	d.WaitFrozen()
	unmet, all := postureOf(d)
	for _, f := range unmet {
		t.Errorf("%s of %s in %s: %q, want %q", f.Check, f.Role, f.Domain, f.Got, f.Want)
	}
	if all < 4*20 { // two init handlers, the runtime, the extension
		t.Errorf("%d findings for 4 processes", all)
	}

	// The control: what is changed under a live sandbox is seen, and nothing else.
	guests := d.Guests()
	for _, p := range guests {
		less := unix.Rlimit{Cur: 512, Max: 512}
		if err := unix.Prlimit(p.PID, unix.RLIMIT_NOFILE, &less, nil); err != nil {
			t.Fatal(err)
		}
	}
	mount := exec.Command("nsenter", fmt.Sprintf("--mount=/proc/%d/ns/mnt", guests[0].PID), "mount", "-t", "tmpfs", "planted", "/opt")
	mount.Env = append(os.Environ(), "LIBMOUNT_FORCE_MOUNT2=always") // fsmount takes a mount namespace, and the domain may have none
	if out, err := mount.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	unmet, _ = postureOf(d)
	var checks []string
	for _, f := range unmet {
		checks = append(checks, f.Check)
	}
	slices.Sort(checks)
	if checks = slices.Compact(checks); !slices.Equal(checks, []string{"limits of the process", "mounts with devices", "mounts with set-id effect", "writable mounts"}) {
		t.Errorf("after changes to limits and mounts these are not met: %q", checks)
	}
}

// memoryFile is what inspect says of a memfd.
type memoryFile struct {
	FD   int
	Name string
	Own  bool
}

// inspect tells which filter is in force, as the kernel has it, whether the sandbox is
// frozen or not, and which files in memory are open; the sandbox does not notice.
func TestInspectProfile(t *testing.T) {
	for _, profile := range []string{"default", "debug"} {
		t.Run(profile, func(t *testing.T) {
			d := harness.Start(t, harness.OneCPU, harness.Config(t, "seccomp: "+profile+"\n"), "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t))
			first := d.Do(script.Step{Op: "memfd", Data: "planted\x1b[2J"})
			d.WaitFrozen()
			for range 3 {
				var got struct {
					Processes []struct {
						Domain, Role string
						Profile      string       `json:"seccomp_profile"`
						MemoryFiles  []memoryFile `json:"memory_files"`
					}
				}
				d.Ask(&got, "inspect", d.PS()[0].ID)
				if len(got.Processes) != 4 {
					t.Fatalf("%d processes, want 4", len(got.Processes))
				}
				var files []memoryFile
				for _, p := range got.Processes {
					if p.Profile != profile {
						t.Errorf("%s of %s has profile %q", p.Role, p.Domain, p.Profile)
					}
					files = append(files, p.MemoryFiles...)
				}
				if len(files) != 1 || !files[0].Own || !strings.HasPrefix(files[0].Name, "planted") {
					t.Errorf("files in memory: %+v", files)
				}
			}
			out := harness.SandboxdCommand(t, "", "inspect", "--run-dir", d.Folders.Run, d.PS()[0].ID)
			if out.Code != 0 || !strings.Contains(out.Stdout, "filter, profile "+profile) || !strings.Contains(out.Stdout, "planted") || strings.Contains(out.Stdout, "\x1b") {
				t.Errorf("exit code %d: %s%s", out.Code, out.Stdout, out.Stderr)
			}
			if unmet, _ := postureOf(d); len(unmet) > 0 {
				t.Errorf("%+v", unmet)
			}
			if again := d.Do(); again.Started != first.Started {
				t.Error("the runtime was replaced")
			}
		})
	}
}

// The same of several sandboxes while they are at work.
func TestPostureUnderLoad(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=60s", "--concurrency=3", "--pool=1", harness.Function(t))
	done, n := make(chan struct{}), harness.Rounds(t, 300)
	go func() {
		defer close(done)
		d.InvokeMany(n, 3)
	}()
	looks := 0
	for working := true; working; {
		select {
		case <-done:
			working = false // and one more look
		default:
		}
		var list []struct{ ID string }
		d.Ask(&list, "ps")
		for _, s := range list {
			out := harness.SandboxdCommand(t, "", "inspect", "--posture", "--run-dir", d.Folders.Run, s.ID)
			if out.Code != 0 && !strings.Contains(out.Stderr, "has ended") {
				t.Errorf("%s: exit code %d: %s%s", s.ID, out.Code, out.Stdout, out.Stderr)
			}
			looks++
		}
	}
	if looks < 3 {
		t.Errorf("%d looks at sandboxes, want one at each of three at least", looks)
	}
}

// setIDProgram puts the audit program into a folder with root's set-id bits.
func setIDProgram(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "set-id")
	harness.WriteFile(t, path, harness.ReadFile(t, filepath.Join(harness.Testbin, "audit")), 0o755)
	if err := os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	return path
}

// setIDFolder makes a folder that everybody may enter and where set-id bits have effect.
// A systemd host mounts /tmp nosuid, so /var/tmp is tried too.
func setIDFolder(t *testing.T) string {
	t.Helper()
	parents := []string{os.TempDir(), "/var/tmp"}
	for _, parent := range parents {
		var fs unix.Statfs_t
		if err := unix.Statfs(parent, &fs); err != nil {
			t.Fatalf("statfs %s: %v", parent, err)
		}
		if fs.Flags&unix.ST_NOSUID != 0 {
			continue
		}
		dir, err := os.MkdirTemp(parent, "set-id")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	t.Fatalf("%q are all mounted nosuid: set TMPDIR to a folder that is not", parents)
	return ""
}

// What only a process inside can tell of SEC-21 and SEC-30 to SEC-35.
func TestPostureFromInside(t *testing.T) {
	code := harness.Function(t)
	setID := setIDProgram(t, code)
	d := harness.Start(t, harness.OneCPU, code)

	// No set-id effect. Outside, the same file has it.
	const none = "0000000000000000"
	if r := d.Do(script.Step{Op: "exec", Argv: []string{"/var/task/" + filepath.Base(setID), "ids"}}).Results[0]; r.Text != "993 993 993 990 990 990 "+none+"\n" {
		t.Errorf("a set-id program has the ids %q, %s", r.Text, r.Error)
	}
	outside := exec.Command(setIDProgram(t, setIDFolder(t)), "ids")
	outside.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := outside.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "65534 0 0 65534 0 0 ") {
		t.Errorf("outside, as nobody: %q, %v; want root's ids", out, err)
	}

	// The quotas that a user namespace would take from the host's root.
	for name, want := range map[string]string{
		"max_user_namespaces": "0", "max_pid_namespaces": "0", "max_net_namespaces": "0", "max_mnt_namespaces": "0",
		"max_ipc_namespaces": "0", "max_uts_namespaces": "0", "max_cgroup_namespaces": "0",
		"max_inotify_instances": "16", "max_inotify_watches": "8192",
	} {
		if r := d.Do(script.Step{Op: "read", Path: "/proc/sys/user/" + name}).Results[0]; strings.TrimSpace(r.Text) != want {
			t.Errorf("%s is %q, %s; want %s", name, r.Text, r.Error, want)
		}
		if outside := strings.TrimSpace(string(harness.ReadFile(t, "/proc/sys/user/"+name))); outside == want {
			t.Errorf("%s is %s outside too", name, outside)
		}
	}

	for _, path := range []string{"/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/1/fd/0", "/proc/1/ns/mnt", "/proc/kcore", "/proc/kmsg", "/proc/keys",
		"/proc/kallsyms", "/proc/timer_list", "/proc/slabinfo", "/proc/kpagecount", "/proc/interrupts", "/proc/cmdline"} {
		if r := d.Do(script.Step{Op: "read", Path: path}).Results[0]; r.Text != "" {
			t.Errorf("%s can be read: %.60q", path, r.Text)
		}
	}
	if len(harness.ReadFile(t, "/proc/interrupts")) == 0 || len(harness.ReadFile(t, "/proc/timer_list")) == 0 {
		t.Error("the host's own files are empty: the check above proves nothing")
	}

	// The init handler's program: not "text file busy", which would pass with its end.
	r := d.Do(script.Step{Op: "write", Path: "/.sandbox-init", Data: "x"}, script.Step{Op: "write", Path: "/proc/1/exe", Data: "x"}).Results
	for _, w := range r {
		if e := syscall.Errno(w.Errno); e != syscall.EROFS && e != syscall.EACCES {
			t.Errorf("writing to the init handler's program: %+v, want EROFS or EACCES", w)
		}
	}
}
