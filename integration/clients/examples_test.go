//go:build integration

package clients

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// exampleAnswer is what the examples answer.
type exampleAnswer struct {
	RequestID string
	Event     map[string]string
}

// wantExample invokes an example and wants the event and the request id back.
func wantExample(t *testing.T, d *harness.Daemon) {
	t.Helper()
	for range 3 {
		a := d.Invoke(map[string]string{"hello": "world"}, harness.WithTail...)
		var got exampleAnswer
		if err := json.Unmarshal(a.Body, &got); err != nil || got.RequestID != a.ID() || got.Event["hello"] != "world" {
			t.Errorf("answer %s: %v; want the event and id %s", a.Body, err, a.ID())
		}
		if !strings.Contains(a.Tail(t), "handling ") {
			t.Errorf("no output of the function in the tail: %q", a.Tail(t))
		}
	}
}

// ACC-22, RIC-01.
func TestACC22Go(t *testing.T) {
	layer := t.TempDir()
	harness.Place(t, "extension-go", filepath.Join(layer, "extensions", "extension-go"))
	d := harness.Start(t, "--timeout=10s", "--layer", layer, harness.ProgramFunction(t, "go-echo"))
	wantExample(t, d)
	d.Stop()
	if log := d.Log.Text(); strings.Count(log, "extension-go: INVOKE ") != 3 || strings.Count(log, "extension-go: SHUTDOWN spindown") != 1 {
		t.Error("the extension did not print 3 INVOKE and 1 SHUTDOWN")
	}
}

// RIC-13.
func TestExampleShell(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, filepath.Join(harness.Examples, "shell"))
	a := d.Invoke(map[string]string{"hello": "world"}, harness.WithTail...)
	if string(a.Body) != `{"hello":"world"}` || !strings.Contains(a.Tail(t), "handling "+a.ID()) {
		t.Errorf("answer %s, tail %q", a.Body, a.Tail(t))
	}
}

// runIn runs a command in a folder and wants it to succeed.
func runIn(t *testing.T, dir string, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

// ACC-22, RIC-03, RIC-04: the examples in Node and Python, with clients that
// scripts/clients.sh has installed: one in a layer, the other beside the code.
func TestClientExamples(t *testing.T) {
	t.Parallel()
	flags := []string{"--memory=512", "--timeout=20s"}
	t.Run("node", func(t *testing.T) {
		d := harness.Start(t, append(flags, "--runtime=nodejs20.x", "--handler=index.handler", "--layer", clientDir(t, "node3"), filepath.Join(harness.Examples, "node"))...)
		wantExample(t, d)
	})
	t.Run("python", func(t *testing.T) {
		dir := t.TempDir()
		runIn(t, "/", "cp", "-r", clientDir(t, "python")+"/.", filepath.Join(harness.Examples, "python")+"/.", dir)
		wantExample(t, harness.Start(t, append(flags, "--runtime="+pythonRuntime(t), "--handler=app.handler", dir)...))
	})
}
