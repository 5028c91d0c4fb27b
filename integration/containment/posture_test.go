//go:build integration

package containment

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// The environment of the spec's section 6 for a function with --runtime
// provided.al2023; a value is a regular expression for the whole value.
var (
	sharedEnvironment = map[string]string{ // ENV-01, 02, 03, 07, 10, 11
		"AWS_LAMBDA_FUNCTION_NAME":        "posture",
		"AWS_LAMBDA_FUNCTION_VERSION":     `\$LATEST`,
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
		"AWS_REGION":                      "us-east-1",
		"AWS_DEFAULT_REGION":              "us-east-1",
		"AWS_ACCESS_KEY_ID":               "the key",
		"AWS_SECRET_ACCESS_KEY":           "the secret",
		"AWS_SESSION_TOKEN":               "the token",
		"AWS_LAMBDA_RUNTIME_API":          `127\.0\.0\.1:9001`,
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"LANG":                            `(en_US|C)\.UTF-8`,
		"TZ":                              ":UTC",
		"PATH":                            "/var/lang/bin:/usr/local/bin:/usr/bin/:/bin:/opt/bin",
		"LD_LIBRARY_PATH":                 "/var/lang/lib:/lib64:/usr/lib64:/var/runtime:/var/runtime/lib:/var/task:/var/task/lib:/opt/lib",
		"OWN":                             "customer value",
	}
	runtimeEnvironment = map[string]string{ // ENV-04, 05, 08
		"AWS_LAMBDA_LOG_GROUP_NAME":  "/aws/lambda/posture",
		"AWS_LAMBDA_LOG_STREAM_NAME": `\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}`,
		"_HANDLER":                   "the.handler",
		"LAMBDA_TASK_ROOT":           "/var/task",
		"LAMBDA_RUNTIME_DIR":         "/var/runtime",
		"AWS_XRAY_DAEMON_ADDRESS":    `[\d.]+:\d+`,
		"_AWS_XRAY_DAEMON_ADDRESS":   `[\d.]+`,
		"_AWS_XRAY_DAEMON_PORT":      "2000",
		"AWS_XRAY_CONTEXT_MISSING":   "LOG_ERROR",
		"_LAMBDA_TELEMETRY_LOG_FD":   "3",
	}
)

// wantEnvironment compares an environment with what it must be, exactly.
func wantEnvironment(t *testing.T, who string, got []string, want map[string]string) {
	t.Helper()
	names := make(map[string]bool)
	for _, pair := range got {
		name, value, _ := strings.Cut(pair, "=")
		names[name] = true
		pattern, ok := want[name]
		if !ok {
			t.Errorf("%s: %s is in the environment", who, pair)
		} else if !regexp.MustCompile("^(?:" + pattern + ")$").MatchString(value) {
			t.Errorf("%s: %s=%q, want %s", who, name, value, pattern)
		}
	}
	for name := range want {
		if !names[name] {
			t.Errorf("%s: %s is missing", who, name)
		}
	}
}

// wantFDs compares the inherited descriptors with ENV-31 and ENV-37: standard
// input is /dev/null, then the outputs, then the telemetry descriptor if there is one.
func wantFDs(t *testing.T, who string, got []string, telemetry bool) {
	t.Helper()
	want := []string{`0 /dev/null`, `1 (pipe|socket):.*`, `2 (pipe|socket):.*`}
	if telemetry {
		want = append(want, `3 (pipe|socket):.*`)
	}
	ok := len(got) == len(want)
	for i := range min(len(got), len(want)) {
		ok = ok && regexp.MustCompile("^"+want[i]+"$").MatchString(got[i])
	}
	if !ok {
		t.Errorf("%s: descriptors %q, want %q", who, got, want)
	}
}

// lookAround is an extension that notes what it was given before it does anything else.
func lookAround() []script.Step {
	return append([]script.Step{{Op: "env"}, {Op: "fds"}, {Op: "read", Path: "/proc/self/status"}, {Op: "ps"}}, harness.Idle()...)
}

// ACC-20, ENV-01 to ENV-21, ENV-31, ENV-37.
func TestACC20Environment(t *testing.T) {
	t.Setenv("DAEMONS_OWN_SECRET", "must not leak") // ENV-19
	d := harness.Start(t, harness.OneCPU, "--function-name=posture", "--handler=the.handler", "--layer", harness.Layer(t, harness.Extensions{"watcher": lookAround()}),
		harness.Config(t, "access-key-id: the key\nsecret-access-key: the secret\nsession-token: the token\n"), "--env=OWN=customer value",
		harness.Function(t))
	r := d.Do(script.Step{Op: "env"}, script.Step{Op: "fds"})
	watcher := d.Journal().By("watcher")

	env := r.Results[0].List
	want := maps.Clone(sharedEnvironment)
	maps.Copy(want, runtimeEnvironment)
	wantEnvironment(t, "runtime", env, want)
	wantFDs(t, "runtime", r.Results[1].List, true) // LOG-01

	wantEnvironment(t, "extension", harness.First(t, watcher, "watcher", "env").List, sharedEnvironment)
	wantFDs(t, "extension", harness.First(t, watcher, "watcher", "fds").List, false)
}

// SEC-30 to SEC-37, what a process can see of them from inside; ENV-28, ENV-29.
func TestPosture(t *testing.T) {
	f := harness.Function(t)
	d := harness.Start(t, harness.OneCPU, "--layer", harness.Layer(t, harness.Extensions{"watcher": lookAround()}), f)
	r := d.Do(
		script.Step{Op: "read", Path: "/proc/self/status"},
		script.Step{Op: "ps"},
		script.Step{Op: "read", Path: "/proc/self/mountinfo"},
		script.Step{Op: "read", Path: "/proc/self/limits"},
		script.Step{Op: "read", Path: "/proc/self/cgroup"},
		script.Step{Op: "list", Path: "/sys"},
		script.Step{Op: "list", Path: "/sys/fs/cgroup"},
		script.Step{Op: "clone", N: syscall.CLONE_NEWUSER},
		script.Step{Op: "clone", N: syscall.CLONE_NEWNET},
		script.Step{Op: "kill", N: 1},
		script.Step{Op: "stat", Path: "/tmp"},
		script.Step{Op: "read", Path: "/etc/shadow"},
		script.Step{Op: "read", Path: "/proc/1/environ"},
		script.Step{Op: "read", Path: "/etc/passwd"},
	)
	got := r.Results
	watcher := d.Journal().By("watcher")
	wantStatus(t, "runtime", got[0].Text)
	wantStatus(t, "extension", harness.First(t, watcher, "watcher", "read").Text)
	wantOnlyOwn(t, "runtime", got[1].List, "bootstrap", "watcher")
	wantOnlyOwn(t, "extension", harness.First(t, watcher, "watcher", "ps").List, "watcher", "bootstrap")
	wantMounts(t, got[2].Text)
	wantLimits(t, got[3].Text)
	for line := range strings.Lines(got[4].Text) {
		if !strings.HasSuffix(strings.TrimSpace(line), ":/") {
			t.Errorf("cgroup %q, want /", line)
		}
	}
	own := []string{"cgroup.controllers", "cpu.max", "memory.high", "memory.max", "memory.swap.max", "pids.max"}
	if !slices.Equal(got[5].List, []string{"devices", "fs"}) || slices.ContainsFunc(own, func(name string) bool { return !slices.Contains(got[6].List, name) }) {
		t.Errorf("/sys holds %q, /sys/fs/cgroup %+v", got[5].List, got[6])
	}
	for _, i := range []int{7, 8, 9} {
		if syscall.Errno(got[i].Errno) != syscall.EPERM {
			t.Errorf("%s (%d): %+v, want EPERM", got[i].Name, i, got[i])
		}
	}
	if got[10].Text != "dtrwxrwxrwx" {
		t.Errorf("/tmp has mode %s", got[10].Text)
	}
	if got[11].Error == "" || got[12].Error == "" {
		t.Errorf("/etc/shadow: %q, /proc/1/environ: %q; want errors", got[11].Error, got[12].Error)
	}
	if !strings.Contains(got[13].Text, ":993:990:") {
		t.Errorf("/etc/passwd has no sandbox user: %q", got[13].Text)
	}
	wantReadOnly(t, d)
	wantOwnNamespaces(t, d)
}

// wantStatus checks ids, capabilities and filters in a /proc/PID/status.
func wantStatus(t *testing.T, who, status string) {
	t.Helper()
	want := map[string]string{
		"Uid": "993 993 993 993", "Gid": "990 990 990 990", "Groups": "",
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000",
		"CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	}
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		expected, ok := want[key]
		if value = strings.Join(strings.Fields(value), " "); ok && value != expected {
			t.Errorf("%s: %s is %q, want %q", who, key, value, expected)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		t.Errorf("%s: %v not in /proc/self/status", who, want)
	}
}

// wantOnlyOwn checks that a process list holds PID 1 and own, and not other.
func wantOnlyOwn(t *testing.T, who string, list []string, own, other string) {
	t.Helper()
	text := strings.Join(list, "\n")
	if !strings.Contains(text, own) || strings.Contains(text, other) || !strings.HasPrefix(text, "1 ") || len(list) != 2 {
		t.Errorf("%s sees the processes %q; want PID 1 and %s alone", who, list, own)
	}
}

// writable are the mounts that may be written to.
var writable = map[string]bool{"/tmp": true, "/dev/shm": true}

// wantMounts checks the flags of every mount in a mountinfo.
func wantMounts(t *testing.T, mountinfo string) {
	t.Helper()
	devices := regexp.MustCompile(`^/dev/(null|zero|full|random|urandom|tty)$`)
	points := make(map[string]bool)
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(line, " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		point, options := f[4], strings.Split(f[5]+","+g[2], ",")
		points[point] = true
		has := func(o string) bool { return slices.Contains(options, o) }
		masked := strings.HasPrefix(point, "/proc/") && (f[3] == "/null" || has("ro"))
		switch {
		case devices.MatchString(point): // character devices are written to, whatever the mount says
		case masked: // by /dev/null or by an empty folder
		case point == "/proc": // what is writable of it belongs to the process; /proc/sys is a mount of its own
		case writable[point]:
			if !has("nosuid") || !has("nodev") {
				t.Errorf("mount %s lacks nosuid or nodev: %s", point, line)
			}
		case !has("ro"):
			t.Errorf("mount %s is writable: %s", point, line)
		case point != "/dev" && !has("nodev"), !has("nosuid"):
			t.Errorf("mount %s lacks nosuid or nodev: %s", point, line)
		}
	}
	for _, point := range []string{"/", "/proc", "/proc/sys", "/dev", "/tmp", "/var/task", "/opt"} {
		if !points[point] {
			t.Errorf("no mount at %s", point)
		}
	}
	for point := range points {
		if strings.HasPrefix(point, "/sys") && !strings.HasPrefix(point, "/sys/fs/cgroup") {
			t.Errorf("mount at %s", point)
		}
	}
}

// wantLimits checks the rlimits of SEC-37 in a /proc/PID/limits.
func wantLimits(t *testing.T, limits string) {
	t.Helper()
	want := map[string]string{
		"Max open files": "1024", "Max locked memory": "65536", "Max msgqueue size": "0",
		"Max realtime priority": "0", "Max nice priority": "0",
	}
	for line := range strings.Lines(limits) {
		for name, value := range want {
			if rest, ok := strings.CutPrefix(line, name); ok {
				if f := strings.Fields(rest); f[1] != value {
					t.Errorf("%s: hard limit %s, want %s", name, f[1], value)
				}
				delete(want, name)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("%v not in /proc/self/limits", want)
	}
}

// wantReadOnly tries to write where the sandbox user must not.
func wantReadOnly(t *testing.T, d *harness.Daemon) {
	t.Helper()
	for _, path := range []string{"/f", "/var/task/f", "/opt/f", "/var/runtime/f", "/usr/f", "/etc/f", "/dev/f", "/var/f", "/proc/sys/kernel/core_pattern"} {
		if r := d.Do(script.Step{Op: "write", Path: path, Data: "x"}).Results[0]; r.Error == "" {
			t.Errorf("%s could be written", path)
		}
	}
	for _, path := range []string{"/tmp/f", "/dev/shm/f"} {
		if r := d.Do(script.Step{Op: "write", Path: path, Data: "x"}).Results[0]; r.Error != "" {
			t.Errorf("write %s: %s", path, r.Error)
		}
	}
}

// wantOwnNamespaces compares namespaces and ids as the host sees them.
func wantOwnNamespaces(t *testing.T, d *harness.Daemon) {
	t.Helper()
	guests := append(d.Guests(), d.Inits()...)
	if len(guests) != 4 {
		t.Fatalf("%d processes in the sandbox, want 4", len(guests))
	}
	for _, p := range guests {
		for _, kind := range []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"} {
			link := func(pid int) string {
				target, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
				if err != nil {
					t.Fatal(err)
				}
				return target
			}
			if own, host := link(p.PID), link(os.Getpid()); own == host {
				t.Errorf("%s shares the host's %s namespace", harness.Command(p.PID), kind)
			}
		}
		if uid := strings.Fields(p.Status("Uid"))[0]; len(uid) < 5 {
			t.Errorf("%s runs as host user %s", harness.Command(p.PID), uid)
		}
		if p.Inside() != "1" {
			continue
		}
		// The init handler: SETUID, SETGID and KILL alone (SEC-31). Its
		// bounding set is what its children inherit.
		const three, none = "00000000000000e0", "0000000000000000"
		if eff, bnd := p.Status("CapEff"), p.Status("CapBnd"); eff != three || bnd != none || p.Status("NoNewPrivs") != "1" || p.Status("Seccomp") != "2" {
			t.Errorf("init handler: CapEff %s, CapBnd %s, NoNewPrivs %s, Seccomp %s", eff, bnd, p.Status("NoNewPrivs"), p.Status("Seccomp"))
		}
	}
}
