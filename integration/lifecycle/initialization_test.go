//go:build integration

package lifecycle

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// RT-53, RT-72, LC-91, LC-93: a runtime that waits in restore/next is frozen there.
// Its first invocation restores it, with the credentials that the configuration has
// by then.
func TestSnapStart(t *testing.T) {
	config := filepath.Join(t.TempDir(), "config.yaml")
	keys := func(id string) {
		text := "access-key-id: " + id + "\nsecret-access-key: secret\nsession-token: token\nlinger: 0s\n"
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	keys("BEFORE")
	credentials := script.Step{Op: "call", Method: "GET", Path: "/2021-04-23/credentials", Headers: map[string]string{"Authorization": "{token}"}}
	restore := script.Step{Op: "call", Method: "GET", Path: "/2018-06-01/runtime/restore/next"}
	d := harness.Start(t, harness.OneCPU, "--snap-start", "--config", config, harness.Function(t, credentials, restore))

	first := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{credentials, {Op: "env"},
		{Op: "call", Method: "GET", Path: "/2021-04-23/credentials", Headers: map[string]string{"Authorization": "wrong"}}}})
	r := d.Report(<-first)
	for i, want := range []struct{ result script.Entry }{{r.Init[0]}, {r.Results[0]}} {
		var c struct{ AccessKeyId, SecretAccessKey, Token, Expiration string }
		if err := json.Unmarshal([]byte(want.result.Text), &c); err != nil || c.AccessKeyId != "BEFORE" || c.SecretAccessKey != "secret" || c.Token != "token" || c.Expiration == "" {
			t.Errorf("credentials %d: %d %s %v", i, want.result.Status, want.result.Text, err)
		}
	}
	if s := r.Init[1].Status; s != http.StatusOK {
		t.Errorf("restore/next: %d", s)
	}
	if s := r.Results[2].Status; s != http.StatusNotFound {
		t.Errorf("credentials with a wrong token: %d", s)
	}
	env := strings.Join(r.Results[1].List, "\n")
	if strings.Contains(env, "BEFORE") || !strings.Contains(env, "AWS_LAMBDA_INITIALIZATION_TYPE=snap-start") {
		t.Errorf("environment (RT-72):\n%s", env)
	}
	d.WaitFor("RESTORE_START Runtime Version: ")
	d.WaitFor("RESTORE_REPORT Restore Duration: ")
	if id := r.ID; !strings.Contains(d.WaitFor("REPORT RequestId: "+id), "Billed Restore Duration: ") {
		t.Error("the first REPORT has no restore (LOG-23)")
	}

	keys("AFTER") // a new sandbox is restored with the new ones
	d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}})
	r = d.Do(credentials)
	if !strings.Contains(r.Results[0].Text, "AFTER") {
		t.Errorf("credentials after a rotation: %s", r.Results[0].Text)
	}
}

// LC-92, RT-55: hooks that fail.
func TestRestoreErrorIsTheAnswer(t *testing.T) {
	steps := []script.Step{{Op: "call", Method: "GET", Path: "/2018-06-01/runtime/restore/next"},
		{Op: "call", Method: "POST", Path: "/2018-06-01/runtime/restore/error", Data: `{"errorType":"Runtime.AfterRestoreError","errorMessage":"no database"}`,
			Headers: map[string]string{"Lambda-Runtime-Function-Error-Type": "Runtime.AfterRestoreError"}},
		{Op: "exit", N: 65}}
	d := harness.Start(t, harness.OneCPU, "--snap-start", harness.Function(t, steps...))
	for range 2 { // each in a sandbox of its own
		a := d.Invoke(script.Event{})
		if a.Header.Get("X-Amz-Function-Error") != "Unhandled" || !strings.Contains(string(a.Body), "no database") {
			t.Errorf("%v %s", a.Header, a.Body)
		}
	}
	d.WaitFor("Error Type: Runtime.AfterRestoreError")
}

// LC-09: provisioned sandboxes have initialized when the endpoint answers, one that
// dies is replaced, and further requests get sandboxes on demand.
func TestProvisioned(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--provisioned=2", "--concurrency=3", harness.Function(t))
	guests := d.Guests()
	if len(guests) != 2 {
		t.Fatalf("%d runtimes before the first request, want 2", len(guests))
	}
	sleep := script.Event{Report: true, Steps: []script.Step{{Op: "env"}, {Op: "sleep", MS: 300}}}
	var kinds []string
	var running []<-chan harness.Answer
	for range 3 {
		running = append(running, d.InvokeLater(sleep))
	}
	for _, a := range running {
		for _, v := range d.Report(<-a).Results[0].List {
			if kind, ok := strings.CutPrefix(v, "AWS_LAMBDA_INITIALIZATION_TYPE="); ok {
				kinds = append(kinds, kind)
			}
		}
	}
	if got := strings.Count(strings.Join(kinds, " "), "provisioned-concurrency"); got != 2 || len(kinds) != 3 {
		t.Errorf("initialization types %q, want two provisioned and one on demand", kinds)
	}
	if err := syscall.Kill(guests[0].Parent, syscall.SIGKILL); err != nil { // the init handler: nothing else of a frozen sandbox is seen to die
		t.Fatal(err)
	}
	harness.Eventually(t, harness.Patience, func() string {
		if now := d.Guests(); len(now) != 3 || contains(now, guests[0].PID) {
			return "the dead one is not replaced"
		}
		return ""
	})
}

// ps and inspect know the function and the state of a sandbox before its daemon serves.
func TestProvisioningIsListed(t *testing.T) {
	d := harness.Launch(t, harness.NewFolders(t), harness.OneCPU, "--provisioned=1", "--function-name=slow", harness.Function(t, script.Step{Op: "sleep", MS: harness.Patience.Milliseconds()}))
	harness.Eventually(t, harness.Patience, func() string {
		list := d.PS()
		if len(list) == 1 && list[0].Function == "slow" && list[0].State == "Initializing" {
			return ""
		}
		return fmt.Sprintf("ps lists %+v", list)
	})
	d.Stop()
}

func contains(list []harness.Process, pid int) bool {
	for _, p := range list {
		if p.PID == pid {
			return true
		}
	}
	return false
}

// LC-09: a function that cannot initialize does not come to serve.
func TestProvisionedInitFails(t *testing.T) {
	code := harness.Function(t, script.Step{Op: "print", Data: "no database\n"}, script.Step{Op: "exit", N: 3})
	out := harness.SandboxdCommand(t, "", append(append([]string{"run", "--listen=127.0.0.1:0", "--pool=0"}, harness.NewFolders(t).Flags()...), "--provisioned=2", code)...)
	if out.Code != 2 || !strings.Contains(out.Stderr, "the initialization failed") || !strings.Contains(out.Stderr, "Error Type: Runtime.ExitError") {
		t.Errorf("exit code %d, stderr:\n%s", out.Code, out.Stderr)
	}
}

// INV-05, RT-19: tenants share no sandbox, one after the other and at the limit.
func TestTenantIsolation(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--tenant-isolation", "--concurrency=2", harness.Function(t))
	if a, err := d.Request(script.Event{}); err != nil || a.Status != http.StatusBadRequest {
		t.Errorf("without a tenant: %d %s %v", a.Status, a.Body, err)
	}
	owner := map[string]string{} // by sandbox
	for _, tenant := range []string{"red", "blue", "red", "green", "blue", "red"} {
		r := d.Report(d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "env"}}}, "X-Amz-Tenant-Id", tenant))
		if was, ok := owner[r.LogStream]; ok && was != tenant {
			t.Errorf("%s ran in a sandbox of %s", tenant, was)
		}
		owner[r.LogStream] = tenant
		d.WaitFor("REPORT RequestId: " + r.ID)
	}
	if len(owner) < 3 {
		t.Errorf("%d sandboxes for three tenants", len(owner))
	}
}
