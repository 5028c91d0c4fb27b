//go:build integration

package serve

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/message"
)

// speaker is the bootstrap of a function that writes what the shell script say makes of an
// event, $event, and answers "done".
func speaker(say string) map[string]string {
	return map[string]string{"bootstrap": "#!/bin/sh\nwhile :; do\n" +
		`id=$(curl -sS -D - -o /tmp/e "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/next" | tr -d '\r' | sed -n 's/^Lambda-Runtime-Aws-Request-Id: //Ip')` + "\n" +
		"event=$(tr -d '\"' </tmp/e)\n" + say + "\n" +
		`curl -sS -o /dev/null -d '"done"' "http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation/$id/response"` + "\ndone\n"}
}

// sandboxd runs a command for the daemon and returns what it prints, and its error.
func (d *keyed) sandboxd(args ...string) (string, error) {
	out, err := exec.CommandContext(d.T.Context(), harness.Sandboxd, append(args, "--run-dir", d.Folders.Run)...).CombinedOutput()
	return string(out), err
}

// run is sandboxd for what must succeed.
func (d *keyed) run(args ...string) string {
	d.T.Helper()
	out, err := d.sandboxd(args...)
	if err != nil {
		d.T.Fatalf("%q: %v: %s", args, err, out)
	}
	return out
}

// deploy deploys the files of a function.
func (d *keyed) deploy(name string, files map[string]string, args ...string) string {
	d.T.Helper()
	dir := d.T.TempDir()
	for file, text := range files {
		harness.WriteFile(d.T, filepath.Join(dir, file), []byte(text), 0o755)
	}
	return d.run(append([]string{"deploy", "--name", name, "--runtime", "provided.al2023", "--timeout", "60", dir}, args...)...)
}

// say invokes a function with a text.
func (d *keyed) say(c *lambda.Client, name, text string) {
	d.T.Helper()
	out, err := c.Invoke(d.T.Context(), &lambda.InvokeInput{FunctionName: &name, Payload: []byte(strconv.Quote(text))})
	if err != nil || string(out.Payload) != `"done"` {
		d.T.Fatalf("%s answers %+v, %v", name, out, err)
	}
}

// follower is a running `sandboxd logs --follow`.
type follower struct {
	t     *testing.T
	lines chan string
	seen  []string
	cmd   *exec.Cmd
}

func (d *keyed) follow(name string) *follower {
	d.T.Helper()
	ctx, cancel := context.WithCancel(d.T.Context())
	cmd := exec.CommandContext(ctx, harness.Sandboxd, "logs", "-f", name, "--run-dir", d.Folders.Run)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		d.T.Fatal(err)
	}
	f := &follower{t: d.T, lines: make(chan string, 1<<16), cmd: cmd}
	go func() {
		defer close(f.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			f.lines <- lines.Text()
		}
	}()
	d.T.Cleanup(func() {
		cancel()
		for range f.lines {
		}
		_ = cmd.Wait()
	})
	return f
}

// await waits for a line with that text.
func (f *follower) await(text string) {
	f.t.Helper()
	for line := range f.lines {
		f.seen = append(f.seen, line)
		if strings.Contains(line, text) {
			return
		}
	}
	f.t.Fatalf("no line has %q: %q", text, f.seen)
}

var lineForm = regexp.MustCompile(`^20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}(Z|[+-][0-9]{2}:[0-9]{2}) `)

// Two functions have logs of their own, which can be followed across an update of the function and the deaths
// of the processes, and are there after a restart of the daemon.
func TestLogs(t *testing.T) {
	f := harness.NewFolders(t)
	d := serveKeyed(t, f)
	c := d.client(d.first())
	d.deploy("one", speaker(`echo "one says $event"`))
	d.deploy("two", speaker(`echo "two says $event"`))
	one, two := d.follow("one"), d.follow("two")
	d.say(c, "one", "hello")
	d.say(c, "two", "hi")
	one.await("one says hello")
	two.await("two says hi")
	one.await("REPORT RequestId: ")
	if text := strings.Join(one.seen, "\n"); strings.Contains(text, "two says") || strings.Count(text, "START RequestId: ") != 1 {
		t.Errorf("the log of one:\n%s", text)
	}
	for _, line := range one.seen {
		if !lineForm.MatchString(line) {
			t.Errorf("a line without a time: %q", line)
		}
	}
	limits := string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/limits", d.process(message.WorkerCommand, 0))))
	if !regexp.MustCompile(fmt.Sprintf(`(?m)^Max file size +%d +%[1]d +bytes`, message.LogSegmentBytes)).MatchString(limits) {
		t.Errorf("a worker that was taken over may fill the disk:\n%s", limits)
	}
	d.deploy("one", speaker(`printf 'new one says %s\033[31m\n' "$event"`))
	d.say(c, "one", "after the update")
	one.await("new one says after the update?[31m")

	for i, name := range []string{message.WorkerCommand, message.ControlCommand} {
		if err := syscall.Kill(d.process(name, 0), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprint("after death ", i)
		for { // the next worker or control process takes a moment
			out, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: new("one"), Payload: []byte(strconv.Quote(text))})
			if err == nil && string(out.Payload) == `"done"` {
				break
			}
			if t.Context().Err() != nil {
				t.Fatal(err)
			}
		}
		one.await("new one says " + text)
	}
	if n := strings.Count(strings.Join(one.seen, "\n"), "one says hello"); n != 1 {
		t.Errorf("a line came %d times", n)
	}
	out, err := d.sandboxd("logs", "nobody")
	if err == nil || !strings.Contains(out, "there is no function nobody") {
		t.Errorf("an unknown function: %v, %s", err, out)
	}
	d.WaitFor("action=read-logs function=one")
	d.Stop()
	for range one.lines { // ends with the daemon
	}
	if err := one.cmd.Wait(); err != nil {
		t.Errorf("who follows: %v", err)
	}
	if strings.Contains(d.Log.Text(), "one says") {
		t.Error("lines of functions are in the log of the daemon too")
	}

	d = serveKeyed(t, f)
	text := d.run("logs", "one")
	for _, want := range []string{"one says hello", "after the update", "after death 0", "after death 1"} {
		if strings.Count(text, want) != 1 {
			t.Errorf("after a restart, %q is not there once:\n%s", want, text)
		}
	}
	if text := d.run("logs", "--since", "1s", "one"); strings.Contains(text, "says hello") {
		t.Errorf("since a second:\n%s", text)
	}
}

// logBytes is how large the logs below a state folder are.
func logBytes(t *testing.T, state string) (size int64) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(state, "logs"), func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			size += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// A function that floods its log stays within its bound, and takes no room of another.
func TestLogFlood(t *testing.T) {
	f := harness.NewFolders(t)
	config := filepath.Join(t.TempDir(), "config")
	harness.WriteFile(t, config, []byte("log-size: 4\nlog-function-size: 1\n"), 0o600)
	d := serveKeyed(t, f, "--config", config)
	c := d.client(d.first())
	d.deploy("quiet", speaker(`echo "quiet says $event"`))
	d.deploy("flood", speaker(`head -c 5000000 /dev/zero | tr '\0' x | fold -w 1000; echo; echo "$event"`))
	d.say(c, "quiet", "before")
	for i := range 3 {
		d.say(c, "flood", fmt.Sprint("flood ", i))
	}
	d.follow("flood").await("flood 2")
	if size := logBytes(t, f.State); size > 2<<20 || size < 1<<19 {
		t.Errorf("the logs have %d bytes", size)
	}
	if text := d.run("logs", "quiet"); !strings.Contains(text, "quiet says before") {
		t.Errorf("the quiet function has\n%s", text)
	}
}

// Where the disk is full, lines are dropped and counted, and invocations go on. When there is
// room again, lines are written again.
func TestLogDiskFull(t *testing.T) {
	f := harness.NewFolders(t)
	logs := filepath.Join(f.State, "logs")
	if err := os.MkdirAll(logs, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("logs", logs, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(logs, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := serveKeyed(t, f)
	c := d.client(d.first())
	d.deploy("talker", speaker(`head -c 200000 /dev/zero | tr '\0' x | fold -w 1000; echo; echo "said $event"`))
	for i := range 3 {
		d.say(c, "talker", fmt.Sprint(i))
	}
	d.WaitFor("no space left on device")
	if n := d.metric("sandboxd_log_dropped_lines_total"); n < 100 {
		t.Errorf("%d lines were dropped", n)
	}
	if err := unix.Mount("logs", logs, "tmpfs", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	follower := d.follow("talker")
	d.say(c, "talker", "at last")
	follower.await("lines were dropped because they could not be written")
	follower.await("said at last")
	d.Stop()
}

// metric returns the value of a metric without labels.
func (d *keyed) metric(name string) int {
	d.T.Helper()
	list, err := instance.Candidates(d.Folders.Run)
	if err != nil || len(list) != 1 {
		d.T.Fatalf("%v, %v", list, err)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", list[0].AdminSocket())
	}}
	res, err := (&http.Client{Transport: transport}).Get("http://x/metrics")
	if err != nil {
		d.T.Fatal(err)
	}
	defer res.Body.Close()
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if key, value, _ := strings.Cut(lines.Text(), " "); key == name {
			n, err := strconv.ParseFloat(value, 64)
			if err != nil {
				d.T.Fatal(err)
			}
			return int(n)
		}
	}
	d.T.Fatal(errors.New("there is no metric " + name))
	return 0
}

// A folder becomes a function, and another one its next version, with the settings that were
// given. ps knows whose the sandboxes are.
func TestDeploy(t *testing.T) {
	d := serveKeyed(t, harness.NewFolders(t))
	c := d.client(d.first())
	out, err := d.sandboxd("deploy", "--name", "new", t.TempDir())
	if err == nil || !strings.Contains(out, "the folder is empty") {
		t.Errorf("an empty folder: %v, %s", err, out)
	}
	out = d.deploy("hello", speaker(`echo "$GREETING $event"`), "--memory", "256", "--env", "GREETING=hi")
	if !strings.HasPrefix(out, "arn:aws:lambda:us-east-1:123456789012:function:hello\n\ncurl --aws-sigv4 aws:amz:us-east-1:lambda ") || !strings.Contains(out, "http://"+d.Addr) {
		t.Errorf("%s", out)
	}
	d.say(c, "hello", "first")
	d.deploy("hello", speaker(`echo "$GREETING again, $event"`))
	d.say(c, "hello", "second")
	text := d.run("logs", "hello")
	if !strings.Contains(text, " hi first\n") || !strings.Contains(text, " hi again, second\n") || !strings.Contains(text, "Memory Size: 256 MB") {
		t.Errorf("%s", text)
	}
	if _, err := d.sandboxd("deploy", "--name", "fresh", "/etc/hostname"); err == nil {
		t.Error("a new function without a runtime")
	}
	d.WaitFor(`key="uid:0"`)
	ps := d.run("ps")
	if !strings.Contains(ps, "hello") || !strings.Contains(ps, "$LATEST") {
		t.Errorf("ps:\n%s", ps)
	}
}

// pythonClient is a client of the Runtime API, in place of awslambdaric.
const pythonClient = `
import importlib, json, os, sys, urllib.request
from types import SimpleNamespace

module, _, name = os.environ["_HANDLER"].rpartition(".")
sys.path.insert(0, os.environ["LAMBDA_TASK_ROOT"])
handler = getattr(importlib.import_module(module), name)
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(api + "next") as r:
        id, event = r.headers["Lambda-Runtime-Aws-Request-Id"], json.load(r)
    answer = json.dumps(handler(event, SimpleNamespace(aws_request_id=id)))
    sys.stdout.flush()
    urllib.request.urlopen(api + id + "/response", data=answer.encode()).close()
`

// The Python example becomes a function by one command.
func TestDeployExample(t *testing.T) {
	dir := t.TempDir()
	layer, config := filepath.Join(dir, "client.zip"), filepath.Join(dir, "config")
	harness.WriteFile(t, layer, zipOf(t, map[string]string{"python/awslambdaric/__main__.py": pythonClient}), 0o644)
	harness.WriteFile(t, config, []byte("runtimes:\n  python3.11:\n    rootfs: host\n    layer: ["+layer+"]\n"), 0o600)
	d := serveKeyed(t, harness.NewFolders(t), "--config", config)
	c := d.client(d.first())
	d.run("deploy", "--runtime", "python3.11", "--handler", "app.handler", "--timeout", "60", filepath.Join(harness.Examples, "python"))
	res, err := c.Invoke(t.Context(), &lambda.InvokeInput{FunctionName: new("python"), Payload: []byte(`{"a":1}`)})
	if err != nil || !strings.Contains(string(res.Payload), `"event": {"a": 1}`) {
		t.Fatalf("%+v, %v", res, err)
	}
	d.follow("python").await(" handling ")
}
