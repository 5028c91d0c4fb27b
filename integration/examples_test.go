//go:build integration

package integration

import (
	"encoding/json"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// exampleAnswer is what the examples answer.
type exampleAnswer struct {
	RequestID string
	Event     map[string]string
}

// wantExample invokes an example and wants the event and the request id back.
func wantExample(t *testing.T, d *daemon) {
	t.Helper()
	for range 3 {
		a := d.invoke(map[string]string{"hello": "world"}, withTail...)
		var got exampleAnswer
		if err := json.Unmarshal(a.body, &got); err != nil || got.RequestID != a.id() || got.Event["hello"] != "world" {
			t.Errorf("answer %s: %v; want the event and id %s", a.body, err, a.id())
		}
		if !strings.Contains(a.tail(t), "handling ") {
			t.Errorf("no output of the function in the tail: %q", a.tail(t))
		}
	}
}

// ACC-22, RIC-01.
func TestACC22Go(t *testing.T) {
	layer := t.TempDir()
	place(t, "extension-go", filepath.Join(layer, "extensions", "extension-go"))
	d := start(t, "--timeout=10s", "--layer", layer, programFunction(t, "go-echo"))
	wantExample(t, d)
	d.stop()
	if log := d.Log.Text(); strings.Count(log, "extension-go: INVOKE ") != 3 || strings.Count(log, "extension-go: SHUTDOWN spindown") != 1 {
		t.Error("the extension did not print 3 INVOKE and 1 SHUTDOWN")
	}
}

// RIC-13.
func TestExampleShell(t *testing.T) {
	d := start(t, oneCPU, filepath.Join(examples, "shell"))
	a := d.invoke(map[string]string{"hello": "world"}, withTail...)
	if string(a.body) != `{"hello":"world"}` || !strings.Contains(a.tail(t), "handling "+a.id()) {
		t.Errorf("answer %s, tail %q", a.body, a.tail(t))
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
		d := start(t, append(flags, "--runtime=nodejs20.x", "--handler=index.handler", "--layer", clientDir(t, "node3"), filepath.Join(examples, "node"))...)
		wantExample(t, d)
	})
	t.Run("python", func(t *testing.T) {
		dir := t.TempDir()
		runIn(t, "/", "cp", "-r", clientDir(t, "python")+"/.", filepath.Join(examples, "python")+"/.", dir)
		wantExample(t, start(t, append(flags, "--runtime="+pythonRuntime(t), "--handler=app.handler", dir)...))
	})
}
