//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// folders are the places where a daemon keeps what it has, and the host that it is on.
// Several daemons of a test may share them, one after the other or at once.
type folders struct {
	testdaemon.Folders
	host *space // the network namespace that plays the host for the daemons; nil is the machine's own
}

// newFolders makes folders that go with the test, and wants that nothing is left of
// what was in them. Their paths are short because sockets live in them.
func newFolders(t *testing.T) folders {
	t.Helper()
	root, err := os.MkdirTemp("", "sbx")
	if err != nil {
		t.Fatal(err)
	}
	f, err := testdaemon.NewFolders(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after those of the daemons
		wantNothingLeft(t, f.State, f.Run)
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("remove the daemon's folders: %v", err)
		}
	})
	return folders{Folders: f}
}

// daemon is one `sandboxd run` of a test.
type daemon struct {
	*testdaemon.Daemon
	t       *testing.T
	folders folders
}

// start runs sandboxd with the flags and code given, and waits until it serves. At
// the end of the test it is stopped, and nothing may be left of it.
func start(t *testing.T, args ...string) *daemon {
	t.Helper()
	return startIn(t, newFolders(t), args...)
}

// startIn is start with folders that others may have too.
func startIn(t *testing.T, f folders, args ...string) *daemon {
	t.Helper()
	return launch(t, f, args...).listening()
}

// listening waits until the daemon serves. At the end of the test it is stopped, and
// nothing may be left of it.
func (d *daemon) listening() *daemon {
	t := d.t
	t.Helper()
	if err := d.Daemon.Listening(patience); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.stop()
		wantNothingLeft(t, d.Instance)
		if t.Failed() {
			t.Logf("log of sandboxd %s:\n%s", d.Instance, d.Log.Text())
		}
	})
	return d
}

// launch runs sandboxd without waiting for anything. It has one sandbox at once
// and none in the pool unless args say otherwise: with more, an invocation that meets
// a busy one would get another, and tests that follow one sandbox would lose it.
func launch(t *testing.T, f folders, args ...string) *daemon {
	t.Helper()
	return launchBinary(t, sandboxd, f, args...)
}

// launchBinary is launch for another build of sandboxd.
func launchBinary(t *testing.T, binary string, f folders, args ...string) *daemon {
	t.Helper()
	d := newDaemon(t, binary, f, args...)
	d.run()
	if binary != sandboxd {
		go d.killWhenHeld()
	}
	return d
}

// newDaemon is a daemon that does not run yet. Its command may be changed until run.
func newDaemon(t *testing.T, binary string, f folders, args ...string) *daemon {
	cmd := f.host.command(binary, append(append([]string{"run", "--listen=127.0.0.1:0", "--concurrency=1", "--pool=0"}, f.Flags()...), args...)...)
	cmd.Env = append(os.Environ(), failpoint.Variable+"="+f.faults().path) // heard by builds with fail-points only
	return &daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), t: t, folders: f}
}

// run starts the daemon's process. It is killed at the end of the test, whatever
// happened before.
func (d *daemon) run() {
	d.t.Helper()
	if err := d.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(d.Kill)
}

// signal sends sig to the daemon.
func (d *daemon) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.Daemon.Signal(sig); err != nil {
		d.t.Error(err)
	}
}

// waitExit waits for the end of the daemon and returns its exit code, -1 after a
// signal.
func (d *daemon) waitExit() int {
	d.t.Helper()
	if err := d.Daemon.Wait(patience); err != nil {
		d.t.Errorf("%v; its log:\n%s", err, d.Log.Text())
	}
	return d.ExitCode()
}

// stop ends the daemon in order, unless it has ended already.
func (d *daemon) stop() {
	d.t.Helper()
	if err := d.Daemon.Stop(patience); err != nil {
		d.t.Errorf("%v; its log:\n%s", err, d.Log.Text())
	}
}

// crash ends the daemon with SIGKILL.
func (d *daemon) crash() {
	d.t.Helper()
	d.Kill()
}

// answer is what the invoke endpoint said.
type answer struct {
	status int
	header http.Header
	body   []byte
	took   time.Duration
}

// request invokes the function and returns whatever is answered.
func (d *daemon) request(payload any, header ...string) (answer, error) {
	body, ok := payload.([]byte)
	if !ok {
		body = []byte(script.Encode(payload))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.Addr+"/2015-03-31/functions/function/invocations", bytes.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	begin := time.Now()
	resp, err := d.folders.host.client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, text, time.Since(begin)}, err
}

// invoke is request for answers of status 200.
func (d *daemon) invoke(payload any, header ...string) answer {
	d.t.Helper()
	a, err := d.request(payload, header...)
	if err != nil {
		d.t.Fatalf("invoke: %v", err)
	}
	if a.status != http.StatusOK {
		d.t.Fatalf("invoke: status %d: %s", a.status, a.body)
	}
	return a
}

// do lets the runtime do steps, and returns its report.
func (d *daemon) do(steps ...script.Step) script.Report {
	d.t.Helper()
	return d.report(d.invoke(script.Event{Report: true, Steps: steps}))
}

// report is the runtime's report in an answer that must not be an error.
func (d *daemon) report(a answer) script.Report {
	d.t.Helper()
	if kind := a.header.Get("X-Amz-Function-Error"); kind != "" {
		d.t.Fatalf("function error %s: %s", kind, a.body)
	}
	var r script.Report
	if err := json.Unmarshal(a.body, &r); err != nil {
		d.t.Fatalf("report %q: %v", a.body, err)
	}
	return r
}

// journal is the journal of the sandbox, which its runtime reads out.
func (d *daemon) journal() script.Entries {
	d.t.Helper()
	a := d.invoke(script.Event{Journal: true})
	var list script.Entries
	if err := json.Unmarshal(a.body, &list); err != nil {
		d.t.Fatalf("journal %.1000q: %v", a.body, err)
	}
	return list
}

// printed are the entries that who printed, with the name given.
func (d *daemon) printed(who, name string) script.Entries {
	return script.Printed(d.Log.Text(), who, name)
}

// withTail are the header lines that ask for the end of the log. The answer then
// comes at Done, with the REPORT line, and not as soon as it is complete.
var withTail = []string{"X-Amz-Log-Type", "Tail"}

// id is the request id of the answer.
func (a answer) id() string { return a.header.Get("X-Amzn-RequestId") }

// tail is the end of the invocation's log.
func (a answer) tail(t *testing.T) string {
	t.Helper()
	text, err := base64.StdEncoding.DecodeString(a.header.Get("X-Amz-Log-Result"))
	if err != nil || len(text) == 0 {
		t.Fatalf("X-Amz-Log-Result %q: %v", a.header.Get("X-Amz-Log-Result"), err)
	}
	return string(text)
}

// wantError checks that the answer is the function error of the type and message
// given; <id> in the message stands for the request id.
func (a answer) wantError(t *testing.T, kind, message string) {
	t.Helper()
	message = strings.ReplaceAll(message, "<id>", a.id())
	var got struct{ ErrorType, ErrorMessage string }
	if err := json.Unmarshal(a.body, &got); err != nil {
		t.Fatalf("error body %q: %v", a.body, err)
	}
	if a.status != http.StatusOK || a.header.Get("X-Amz-Function-Error") != "Unhandled" {
		t.Errorf("status %d, X-Amz-Function-Error %q; want 200, Unhandled (INV-10)", a.status, a.header.Get("X-Amz-Function-Error"))
	}
	if got.ErrorType != kind || got.ErrorMessage != message {
		t.Errorf("error %s %q; want %s %q", got.ErrorType, got.ErrorMessage, kind, message)
	}
}

// reportLine is the REPORT line of an invocation (LOG-23).
type reportLine struct {
	duration, initDuration float64 // ms; 0 if absent
	memorySize, maxMemory  int     // MB
	status                 string
}

var reportPattern = regexp.MustCompile(`REPORT RequestId: (\S+)\tDuration: ([\d.]+) ms\tBilled Duration: \d+ ms\tMemory Size: (\d+) MB\tMax Memory Used: (\d+) MB\t` +
	`(?:Init Duration: ([\d.]+) ms\t)?(?:Status: (\w+)\t)?`)

// parseReport finds the REPORT line of invocation id in a log.
func parseReport(log, id string) (reportLine, error) {
	for _, m := range reportPattern.FindAllStringSubmatch(strings.ReplaceAll(log, `\t`, "\t"), -1) {
		if m[1] != id {
			continue
		}
		var r reportLine
		fmt.Sscan(m[2], &r.duration)
		fmt.Sscan(m[3], &r.memorySize)
		fmt.Sscan(m[4], &r.maxMemory)
		fmt.Sscan(m[5], &r.initDuration)
		r.status = m[6]
		return r, nil
	}
	return reportLine{}, fmt.Errorf("no REPORT line of %s in %q", id, log)
}

// reportOf waits for the REPORT line of an invocation in the daemon's log.
func (d *daemon) reportOf(id string) reportLine {
	d.t.Helper()
	line, ok := d.Log.Wait(patience, func(line string) bool { return strings.Contains(line, "REPORT RequestId: "+id) })
	if !ok {
		d.t.Fatalf("no REPORT line of %s", id)
	}
	r, err := parseReport(line, id)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// waitFor waits for a line that contains text.
func (d *daemon) waitFor(text string) string {
	d.t.Helper()
	line, ok := d.Log.Wait(patience, func(line string) bool { return strings.Contains(line, text) })
	if !ok {
		d.t.Fatalf("no %q in the log", text)
	}
	return line
}
