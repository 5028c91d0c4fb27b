//go:build integration

package integration

import (
	"encoding/json"
	"os"
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
	d := start(t, "--timeout=10s", "--layer", layer, function(t, "go-echo"))
	wantExample(t, d)
	d.stop()
	if log := d.log.text(); strings.Count(log, "extension-go: INVOKE ") != 3 || strings.Count(log, "extension-go: SHUTDOWN spindown") != 1 {
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

// clientFolder is a folder for what a client's installation brings, kept between
// runs because it takes long. fresh tells that it has to be filled; done is called
// when it is.
func clientFolder(t *testing.T, name string) (dir string, fresh bool, done func()) {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	dir = filepath.Join(cache, "sandboxd-integration", name)
	mark := filepath.Join(dir, ".complete")
	if exists(mark) {
		return dir, false, func() {}
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir, true, func() { writeFile(t, mark, nil, 0o644) }
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

// copyInto copies the files of an example into a folder.
func copyInto(t *testing.T, dir, example string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(examples, example))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Type().IsRegular() {
			writeFile(t, filepath.Join(dir, e.Name()), readFile(t, filepath.Join(examples, example, e.Name())), 0o644)
		}
	}
}

// ACC-22, RIC-03: aws-lambda-ric from npm. Its installation compiles: cmake,
// autoconf, automake, libtool, make, g++, python3 and xz are needed.
func TestClientNode(t *testing.T) {
	dir, fresh, done := clientFolder(t, "node")
	copyInto(t, dir, "node")
	if fresh {
		runIn(t, dir, "npm", "install", "--no-audit", "--no-fund")
		done()
	}
	d := start(t, "--memory=512", "--timeout=20s", "--runtime=nodejs20.x", "--handler=index.handler", dir)
	wantExample(t, d)
}

// ACC-22, RIC-04: awslambdaric from PyPI, for Debian's Python: an interpreter
// outside /usr is not seen in the sandbox.
func TestClientPython(t *testing.T) {
	version := strings.TrimSpace(runIn(t, "/", "/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"))
	dir, fresh, done := clientFolder(t, "python"+version)
	copyInto(t, dir, "python")
	if fresh {
		runIn(t, dir, "/usr/bin/python3", "-m", "pip", "install", "--quiet", "-t", ".", "-r", "requirements.txt")
		done()
	}
	d := start(t, "--memory=512", "--timeout=20s", "--runtime=python"+version, "--handler=app.handler", dir)
	wantExample(t, d)
}

// RIC-11: boto3 as the caller, and through it what the AWS command line does.
func TestClientAWS(t *testing.T) {
	dir, fresh, done := clientFolder(t, "boto3")
	python := filepath.Join(dir, "bin", "python3")
	if fresh {
		runIn(t, dir, "/usr/bin/python3", "-m", "venv", dir)
		runIn(t, dir, python, "-m", "pip", "install", "--quiet", "boto3", "awscli")
		done()
	}
	for name, value := range map[string]string{"AWS_ACCESS_KEY_ID": "dummy", "AWS_SECRET_ACCESS_KEY": "dummy", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"} {
		t.Setenv(name, value)
	}
	d := start(t, oneCPU, function(t, "testruntime"))

	t.Run("boto3", func(t *testing.T) {
		out := runIn(t, dir, python, "-c", `
import base64, boto3, json, sys
client = boto3.client("lambda", endpoint_url=sys.argv[1])
r = client.invoke(FunctionName="function", Payload=b'{"a": 1}', LogType="Tail")
assert r["StatusCode"] == 200 and "FunctionError" not in r, r
assert json.loads(r["Payload"].read()) == {"a": 1}
assert r["ExecutedVersion"] == "$LATEST", r
assert "REPORT RequestId: " + r["ResponseMetadata"]["RequestId"] in base64.b64decode(r["LogResult"]).decode()
r = client.invoke(FunctionName="function", Payload=b'{"steps": [{"op": "exit", "n": 1}]}')
assert r["FunctionError"] == "Unhandled" and json.loads(r["Payload"].read())["errorType"] == "Runtime.ExitError", r
assert client.invoke(FunctionName="function", InvocationType="DryRun")["StatusCode"] == 204
try:
    client.invoke(FunctionName="nobody")
    raise SystemExit("no error for an unknown function")
except client.exceptions.ResourceNotFoundException:
    print("all good")
`, "http://"+d.addr)
		if !strings.Contains(out, "all good") {
			t.Error(out)
		}
	})
	t.Run("aws", func(t *testing.T) {
		answer := filepath.Join(t.TempDir(), "answer.json")
		runIn(t, dir, filepath.Join(dir, "bin", "aws"), "lambda", "invoke", "--endpoint-url", "http://"+d.addr,
			"--function-name", "function", "--payload", `{"from":"aws"}`, answer)
		if got := string(readFile(t, answer)); got != `{"from":"aws"}` {
			t.Errorf("answer %s", got)
		}
	})
}
