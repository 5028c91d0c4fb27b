//go:build integration

package lifecycle

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// --event: the response alone on standard output, all else on standard error; exit
// 0, or 1 for a function error.
func TestEventOnce(t *testing.T) {
	code := harness.Function(t)
	event := filepath.Join(t.TempDir(), "event.json")
	harness.WriteFile(t, event, []byte(`{"from":"file"}`), 0o644)
	for _, c := range []struct {
		name, flag, stdin string
		code              int
		want              string
	}{
		{"standard input", "-", `{"from":"stdin"}`, 0, `{"from":"stdin"}`},
		{"file", event, "", 0, `{"from":"file"}`},
		{"nothing", "-", "", 0, `{}`},
		{"function error", "-", script.Encode(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 3}}}), 1, "exit status 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := harness.NewFolders(t)
			out := harness.SandboxdCommand(t, c.stdin, slices.Concat([]string{"run", "--event", c.flag}, f.Flags(), []string{code})...)
			if out.Code != c.code {
				t.Errorf("exit code %d, want %d: %s", out.Code, c.code, out.Stderr)
			}
			if c.code == 0 && out.Stdout != c.want || !strings.Contains(out.Stdout, c.want) {
				t.Errorf("standard output %q, want %q", out.Stdout, c.want)
			}
			for _, line := range []string{"INIT_START", "START RequestId: ", "END RequestId: ", "REPORT RequestId: "} {
				if !strings.Contains(out.Stderr, line) {
					t.Errorf("no %s in standard error: %s", line, out.Stderr)
				}
			}
		})
	}
}

// A function runs whatever umask the administrator works with, and has Lambda's.
func TestUmask(t *testing.T) {
	zip := harness.ZipFile(t, "bootstrap", 0o755, strings.NewReader(`#!/bin/sh
api="http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation"
while id=$(curl -s -D - -o /dev/null "$api/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //ip'); do
  curl -s -o /dev/null -d "\"$(umask)\"" "$api/$id/response"
done
`))
	dir := t.TempDir() // its folders are made by sandboxd
	for _, open := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(open, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args := []string{"run", "--event", "-", "--state-dir", filepath.Join(dir, "state"), "--run-dir", filepath.Join(dir, "run"), zip}
	cmd := exec.Command("/bin/sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, harness.Sandboxd}, args...)...)
	if out := harness.Finish(t, "{}", cmd); out.Code != 0 || out.Stdout != `"0022"` {
		t.Errorf("%+v", out)
	}
}

// The endpoint as the SDKs see it (INV-01, INV-02, INV-03, INV-19); the front's own
// tests have the rest.
func TestEndpoint(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--function-name=mine", harness.Function(t))
	a := d.Invoke(map[string]int{"n": 1}, harness.WithTail...)
	if string(a.Body) != `{"n":1}` {
		t.Errorf("body %s", a.Body)
	}
	tail := a.Tail(t)
	for _, line := range []string{"START RequestId: " + a.ID() + " Version: $LATEST\n", "END RequestId: " + a.ID() + "\n", "REPORT RequestId: " + a.ID() + "\t"} {
		if !strings.Contains(tail, line) {
			t.Errorf("no %q in the tail %q", line, tail)
		}
	}
	if r, err := harness.ParseReport(tail, a.ID()); err != nil || r.InitDuration <= 0 {
		t.Errorf("REPORT of the first invocation: %+v, %v; want an Init Duration", r, err)
	}
	if a, err := d.Request("x", "X-Amz-Invocation-Type", "DryRun"); err != nil || a.Status != http.StatusNoContent || len(a.Body) != 0 {
		t.Errorf("DryRun: %d %q, %v", a.Status, a.Body, err)
	}
	background, err := d.Request(script.Event{Report: true, Steps: []script.Step{harness.Note("background")}}, "X-Amz-Invocation-Type", "Event")
	if err != nil || background.Status != http.StatusAccepted || len(background.Body) != 0 {
		t.Errorf("Event: %d %q, %v", background.Status, background.Body, err)
	}
	d.WaitPrinted("runtime", "background", 1)
	d.ReportOf(background.ID()) // until then the one sandbox is taken
	for name, status := range map[string]int{"mine": 200, "function": 200, "other": 404} {
		resp, err := http.Post("http://"+d.Addr+"/2015-03-31/functions/"+name+"/invocations", "application/json", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != status {
			t.Errorf("function %s: status %d, want %d", name, resp.StatusCode, status)
		}
	}
}

// inspected is `inspect --output json`, as far as the tests look at it.
type inspected struct {
	harness.Listed
	Processes []struct {
		Domain, Role string
		PIDInside    int `json:"pid_inside"`
		UID          struct{ Host, Inside uint32 }
		NoNewPrivs   bool `json:"no_new_privs"`
		Seccomp      string
		RootReadOnly bool `json:"root_read_only"`
		Namespaces   []struct {
			Kind string
			Own  bool
		}
		Cgroup struct {
			MemoryBytes        int64 `json:"memory_bytes"`
			MemoryAndSwapBytes int64 `json:"memory_and_swap_bytes"`
			CPUs               float64
			PIDs               int64
			Frozen             bool
		}
	}
}

// ps and inspect tell what is so.
func TestPsAndInspect(t *testing.T) {
	d := harness.Start(t, "--memory=885", "--function-name=seen", "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t))
	d.Do()
	d.WaitFrozen()
	var list []harness.Listed
	d.Ask(&list, "ps")
	if len(list) != 1 || list[0].Instance != d.Instance || list[0].Function != "seen" || list[0].Invocations != 1 {
		t.Fatalf("ps: %+v", list)
	}
	var in inspected
	d.Ask(&in, "inspect", list[0].ID)
	if len(in.Processes) != 4 {
		t.Fatalf("inspect: %d processes, want 4", len(in.Processes))
	}
	var roles []string
	for _, p := range in.Processes {
		roles = append(roles, p.Domain+" "+p.Role)
		inside := uint32(993)
		if p.PIDInside == 1 {
			inside = 0
		}
		if p.UID.Inside != inside || p.UID.Host == inside || !p.NoNewPrivs || p.Seccomp != "filter" || !p.RootReadOnly {
			t.Errorf("%+v", p)
		}
		for _, n := range p.Namespaces {
			if !n.Own {
				t.Errorf("%s shares the host's %s namespace", p.Role, n.Kind)
			}
		}
		const memory = 885 << 20
		if c := p.Cgroup; c.MemoryBytes != memory || c.MemoryAndSwapBytes != memory || c.CPUs < 0.49 || c.CPUs > 0.51 || c.PIDs < 1024 || c.PIDs > 1100 || !c.Frozen {
			t.Errorf("%s: %+v", p.Role, c)
		}
	}
	slices.Sort(roles)
	if want := []string{"extension extension", "extension init handler", "runtime init handler", "runtime runtime"}; !slices.Equal(roles, want) {
		t.Errorf("processes %q, want %q", roles, want)
	}
	if out := harness.SandboxdCommand(t, "", "inspect", "--run-dir", d.Folders.Run, "no-such-sandbox"); out.Code != 2 || !strings.Contains(out.Stderr, "no-such-sandbox") {
		t.Errorf("inspect of no sandbox: %+v", out)
	}
	for _, args := range [][]string{{"ps"}, {"inspect", list[0].ID}} {
		out := harness.SandboxdCommand(t, "", append(args, "--run-dir", d.Folders.Run)...)
		if out.Code != 0 || !strings.Contains(out.Stdout, list[0].ID) {
			t.Errorf("%v: %+v", args, out)
		}
	}
}

// doctor finds nothing missing on a host on which these tests pass, and finds what
// is missing where cgroups are hidden; each line that is not OK has a fix.
func TestDoctor(t *testing.T) {
	type finding struct{ Check, Status, Seen, Fix string }
	check := func(out harness.Outcome) (failed []string) {
		t.Helper()
		var findings []finding
		if err := json.Unmarshal([]byte(out.Stdout), &findings); err != nil || len(findings) < 5 {
			t.Fatalf("%v: %+v", err, out)
		}
		for _, f := range findings {
			if f.Check == "" || f.Seen == "" || (f.Status == "OK") != (f.Fix == "") {
				t.Errorf("finding %+v", f)
			}
			if f.Status == "FAIL" {
				failed = append(failed, f.Check)
			}
		}
		return failed
	}
	out := harness.SandboxdCommand(t, "", "doctor", "--output=json")
	if failed := check(out); out.Code != 0 || len(failed) != 0 {
		t.Errorf("exit code %d, missing %q", out.Code, failed)
	}
	out = harness.Finish(t, "", withoutCgroups("doctor", "--output=json"))
	if failed := check(out); out.Code != 1 || !slices.Contains(failed, "cgroups") {
		t.Errorf("without cgroups: exit code %d, missing %q", out.Code, failed)
	}
}
