//go:build integration

package containment

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

var auditPage = flag.String("audit", "", "run the audit under other runtimes too, and write the table into this page")

// fact is one line of the audit program's report.
type fact struct{ Name, Value string }

// The audit program under sandboxd. The page docs/security.md has the same beside
// other runtimes.
func TestAudit(t *testing.T) {
	ours := auditSandboxd(t)
	want := map[string]string{
		"user and group":                          "993, 990",
		"host's root behind a user id":            "no",
		"capabilities, effective and bounding":    "0 and 0",
		"no_new_privs":                            "yes",
		"namespaces of the host's":                "none",
		"… new namespaces: unshare, setns, clone": "0 of 3", "… clone3, whose flags no filter sees": "0 of 1",
		"… mounts": "0 of 6", "… files by handle": "0 of 1", "… bpf, perf_event_open, userfaultfd": "0 of 3", "… io_uring": "0 of 1",
		"… keyrings": "0 of 3", "… ptrace, process_vm_readv, pidfd_getfd": "0 of 3", "… modules, kexec, reboot": "0 of 3",
		"… raw packets": "0 of 2", "… sockets to the hypervisor": "0 of 1", "… netlink beside routes, AF_ALG": "0 of 2",
		"… upper layer protocols of TCP": "0 of 1", "… of 32 bits": "bad system call",
		"root": "read-only", "other writable mounts": "/tmp, /dev/shm", "mounts with set-id effect": "0",
		"secrets of the host in /proc": "none", "/proc/sys can be opened for writing": "no", "/sys": "nothing of the kernel's",
		"devices": "6", "network interfaces": "lo", "inotify instances": "16",
		"open files, core size, locked memory, message queues": "1024, 0, 65536, 0",
	}
	met := 0
	for _, f := range ours {
		if expected, ok := want[f.Name]; ok && f.Value == expected {
			met++
		} else if ok {
			t.Errorf("%s: %s, want %s", f.Name, f.Value, expected)
		}
	}
	if met != len(want) {
		t.Errorf("%d of %d expected facts are in the report", met, len(want))
	}

	// The control: on the host the program finds hardly any of it.
	outside := auditHost(t)
	for _, f := range outside {
		if expected, ok := want[f.Name]; ok && f.Value == expected && f.Name != "network interfaces" {
			t.Errorf("%s is %s on the host too", f.Name, f.Value)
		}
	}
	if *auditPage == "" { // the rest only writes a page
		return
	}
	bundle := auditBundle(t)
	writeAudit(t, *auditPage, []column{
		{"no sandbox, as root", outside}, {"sandboxd", ours},
		{"runc " + version(t, "runc") + ", its default", auditRunc(t, bundle, false)},
		{"bubblewrap " + version(t, "bwrap") + ", --unshare-all", auditBubblewrap(t, bundle)},
		{"runc with Docker's defaults", auditRunc(t, bundle, true)},
	})
}

// The setting seccomp chooses the profile; debug lets two calls more of this group pass.
func TestSeccompSetting(t *testing.T) {
	for _, f := range auditSandboxd(t, harness.Config(t, "seccomp: debug\n")) {
		if f.Name == "… ptrace, process_vm_readv, pidfd_getfd" && f.Value == "2 of 3" {
			return
		}
	}
	t.Error("with seccomp: debug ptrace and process_vm_readv do not pass")
}

// hostNamespaces are the arguments of the report.
func hostNamespaces(t *testing.T) []string {
	t.Helper()
	args := []string{"report"}
	for _, kind := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
		link, err := os.Readlink("/proc/self/ns/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, link)
	}
	return args
}

func parseFacts(t *testing.T, who string, text []byte) []fact {
	t.Helper()
	var facts []fact
	if err := json.Unmarshal(text, &facts); err != nil || len(facts) == 0 {
		t.Fatalf("report under %s: %v: %s", who, err, text)
	}
	return facts
}

func auditSandboxd(t *testing.T, flags ...string) []fact {
	t.Helper()
	code := harness.Function(t)
	harness.WriteFile(t, filepath.Join(code, "audit"), harness.ReadFile(t, filepath.Join(harness.Testbin, "audit")), 0o755)
	d := harness.Start(t, append(flags, harness.OneCPU, "--timeout=60s", code)...)
	r := d.Do(script.Step{Op: "exec", Argv: append([]string{"/var/task/audit"}, hostNamespaces(t)...)}).Results[0]
	return parseFacts(t, "sandboxd", []byte(r.Text))
}

// auditCommand is a command that prints a report.
func auditCommand(t *testing.T, who string, argv ...string) []fact {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", who, err, stderr.String())
	}
	return parseFacts(t, who, out)
}

func auditHost(t *testing.T) []fact {
	t.Helper()
	return auditCommand(t, "the host", append([]string{filepath.Join(harness.Testbin, "audit")}, hostNamespaces(t)...)...)
}

// auditBundle is a folder with a root file system that holds the audit program.
func auditBundle(t *testing.T) string {
	t.Helper()
	bundle := t.TempDir()
	for _, dir := range []string{"proc", "dev", "tmp", "sys"} {
		if err := os.MkdirAll(filepath.Join(bundle, "rootfs", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	harness.WriteFile(t, filepath.Join(bundle, "rootfs", "audit"), harness.ReadFile(t, filepath.Join(harness.Testbin, "audit")), 0o755)
	return bundle
}

// auditRunc runs the program with the configuration that `runc spec` writes, or with
// what Docker makes of it.
func auditRunc(t *testing.T, bundle string, docker bool) []fact {
	t.Helper()
	file := filepath.Join(bundle, "config.json")
	_ = os.Remove(file) // of the run before, if there was one
	if out, err := exec.Command("runc", "spec", "--bundle", bundle).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v: %s", err, out)
	}
	var spec map[string]any
	if err := json.Unmarshal(harness.ReadFile(t, file), &spec); err != nil {
		t.Fatal(err)
	}
	process := spec["process"].(map[string]any)
	process["terminal"] = false
	process["args"] = append([]string{"/audit"}, hostNamespaces(t)...)
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if docker {
		cmd := exec.Command("go", "run", "../dockerspec")
		cmd.Stdin = bytes.NewReader(text)
		if text, err = cmd.Output(); err != nil {
			t.Fatalf("dockerspec: %v", err)
		}
	}
	harness.WriteFile(t, file, text, 0o644)
	return auditCommand(t, "runc", "runc", "run", "--bundle", bundle, fmt.Sprintf("audit-%d", os.Getpid()))
}

func auditBubblewrap(t *testing.T, bundle string) []fact {
	t.Helper()
	return auditCommand(t, "bubblewrap", append([]string{
		"bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", filepath.Join(bundle, "rootfs"), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "/audit",
	}, hostNamespaces(t)...)...)
}

// version is the version that a command prints.
func version(t *testing.T, command string) string {
	t.Helper()
	out, err := exec.Command(command, "--version").Output()
	if err != nil {
		t.Fatalf("%s: %v: scripts/setup.sh audit installs it", command, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	f := strings.Fields(first)
	return strings.SplitN(f[len(f)-1], "+", 2)[0]
}

type column struct {
	name  string
	facts []fact
}

const auditBegin, auditEnd = "<!-- what make audit writes begins here -->\n", "<!-- and ends here -->\n"

// writeAudit puts the table between its marks on the page.
func writeAudit(t *testing.T, page string, columns []column) {
	t.Helper()
	before, rest, ok := strings.Cut(string(harness.ReadFile(t, page)), auditBegin)
	_, after, ok2 := strings.Cut(rest, auditEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no marks for the table", page)
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Kernel %s.\n\n|", unix.ByteSliceToString(u.Release[:]))
	for _, c := range columns {
		fmt.Fprintf(&b, " | %s", c.name)
	}
	b.WriteString(" |\n|---" + strings.Repeat("|---", len(columns)) + "|\n")
	for i, f := range columns[0].facts {
		fmt.Fprintf(&b, "| %s", f.Name)
		for _, c := range columns {
			if c.facts[i].Name != f.Name {
				t.Fatalf("the reports of %s and %s differ in form", columns[0].name, c.name)
			}
			fmt.Fprintf(&b, " | %s", c.facts[i].Value)
		}
		b.WriteString(" |\n")
	}
	if err := os.WriteFile(page, []byte(before+auditBegin+"\n"+b.String()+"\n"+auditEnd+after), 0o644); err != nil {
		t.Fatal(err)
	}
}
