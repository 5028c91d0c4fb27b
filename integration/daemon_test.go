//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// folders are the places where a daemon keeps what it has. Several daemons of a
// test may share them, one after the other or at once.
type folders struct {
	state, run string
	host       *space // the network namespace that plays the host for the daemons; nil is the machine's own
}

// newFolders makes folders that go with the test, and wants that nothing is left of
// what was in them. Their paths are short because sockets live in them.
func newFolders(t *testing.T) folders {
	t.Helper()
	root, err := os.MkdirTemp("", "sbx")
	if err != nil {
		t.Fatal(err)
	}
	f := folders{state: filepath.Join(root, "state"), run: filepath.Join(root, "run")}
	t.Cleanup(func() { // after those of the daemons
		wantNothingLeft(t, f.state, f.run)
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("removing the daemon's folders: %v", err)
		}
	})
	if err := os.Chmod(root, 0o711); err != nil { // sandbox users pass through the run folder
		t.Fatal(err)
	}
	return f
}

func (f folders) flags() []string { return []string{"--state-dir", f.state, "--run-dir", f.run} }

// daemon is one `sandboxd run` that serves.
type daemon struct {
	t        *testing.T
	folders  folders
	addr     string // of the invoke endpoint
	instance string // id of the daemon
	cmd      *exec.Cmd
	log      *logBook
	exited   chan struct{} // closed when the process is reaped
}

// start runs sandboxd with the flags and code given, and waits until it serves. At
// the end of the test it is stopped, and nothing may be left of it.
func start(t *testing.T, args ...string) *daemon {
	t.Helper()
	return startIn(t, newFolders(t), args...)
}

func startIn(t *testing.T, f folders, args ...string) *daemon {
	t.Helper()
	return launch(t, f, args...).listening()
}

// listening waits until the daemon serves. At the end of the test it is stopped, and
// nothing may be left of it.
func (d *daemon) listening() *daemon {
	t := d.t
	t.Helper()
	line, ok := d.log.wait(patience, func(line string) bool { return strings.Contains(line, "listening") })
	if !ok {
		t.Fatalf("sandboxd did not come to listen; its log:\n%s", d.log.text())
	}
	d.addr, d.instance = field(line, "addr"), field(line, "instance")
	if d.addr == "" || d.instance == "" {
		t.Fatalf("no addr or instance in %q", line)
	}
	t.Cleanup(func() {
		d.stop()
		wantNothingLeft(t, d.instance)
		if t.Failed() {
			t.Logf("log of sandboxd %s:\n%s", d.instance, d.log.text())
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
	d.cmd.Stderr = d.log
	d.cmd.Stdout = d.log
	d.run()
	if binary != sandboxd {
		go d.killWhenHeld()
	}
	return d
}

// newDaemon is a daemon that does not run yet. Its command may be changed until run.
func newDaemon(t *testing.T, binary string, f folders, args ...string) *daemon {
	d := &daemon{t: t, folders: f, log: newLogBook(), exited: make(chan struct{})}
	d.cmd = f.host.command(binary, append(append([]string{"run", "--listen=127.0.0.1:0", "--concurrency=1", "--pool=0"}, f.flags()...), args...)...)
	d.cmd.Env = append(os.Environ(), failpoint.Variable+"="+f.faults().path) // heard by builds with fail-points only
	d.cmd.WaitDelay = time.Second
	return d
}

// run starts the daemon's process.
func (d *daemon) run() {
	d.t.Helper()
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		_ = d.cmd.Wait() // the exit code is what counts
		d.log.end()
		close(d.exited)
	}()
	d.t.Cleanup(func() { // whatever happened before
		d.cmd.Process.Kill()
		<-d.exited
	})
}

// field finds key=value in a line of logrus text, or "key":"value" in one of JSON.
func field(line, key string) string {
	m := regexp.MustCompile(`\b` + key + `(?:=|":)"?([^" ]+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return m[1]
}

// signal sends sig to the daemon.
func (d *daemon) signal(sig syscall.Signal) {
	d.t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Errorf("signal %v: %v", sig, err)
	}
}

// waitExit waits for the end of the daemon and returns its exit code, -1 after a
// signal.
func (d *daemon) waitExit() int {
	d.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.t.Errorf("sandboxd is still there after %v; its log:\n%s", patience, d.log.text())
		d.cmd.Process.Kill()
		<-d.exited
	}
	return d.cmd.ProcessState.ExitCode()
}

// stop ends the daemon in order, unless it has ended already.
func (d *daemon) stop() {
	d.t.Helper()
	select {
	case <-d.exited:
		return
	default:
	}
	d.signal(syscall.SIGTERM)
	if code := d.waitExit(); code != 0 {
		d.t.Errorf("sandboxd ended with code %d after SIGTERM", code)
	}
}

// crash ends the daemon with SIGKILL.
func (d *daemon) crash() {
	d.t.Helper()
	d.signal(syscall.SIGKILL)
	d.waitExit()
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
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+d.addr+"/2015-03-31/functions/function/invocations", bytes.NewReader(body))
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

// do lets the test runtime do steps, and returns its report.
func (d *daemon) do(steps ...script.Step) script.Report {
	d.t.Helper()
	return d.report(d.invoke(script.Event{Steps: append([]script.Step{}, steps...)}))
}

// report is the test runtime's report in an answer that must not be an error.
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

// notes reads the event log of the sandbox back, through the test runtime.
func (d *daemon) notes() []script.Note {
	d.t.Helper()
	r := d.do(script.Step{Op: "read", Path: script.EventLog})
	notes, err := script.ParseLog(r.Results[0].Text)
	if err != nil {
		d.t.Fatal(err)
	}
	return notes
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
	line, ok := d.log.wait(patience, func(line string) bool { return strings.Contains(line, "REPORT RequestId: "+id) })
	if !ok {
		d.t.Fatalf("no REPORT line of %s", id)
	}
	r, err := parseReport(line, id)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// logBook collects the lines that a process prints.
type logBook struct {
	mu    sync.Mutex
	lines []string
	rest  []byte        // of a line that has not ended
	more  chan struct{} // closed and replaced at every new line
	ended bool          // nothing more will come
}

func newLogBook() *logBook { return &logBook{more: make(chan struct{})} }

func (l *logBook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		i := bytes.IndexByte(l.rest, '\n')
		if i < 0 {
			return len(p), nil
		}
		l.lines = append(l.lines, string(l.rest[:i]))
		l.rest = l.rest[i+1:]
		close(l.more)
		l.more = make(chan struct{})
	}
}

// end says that nothing more will come.
func (l *logBook) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.more)
	l.more = nil
}

// wait returns the first line that is wanted, waiting for it at most for limit, and
// not beyond the end.
func (l *logBook) wait(limit time.Duration, wanted func(string) bool) (string, bool) {
	timeout := time.After(limit)
	for next := 0; ; {
		l.mu.Lock()
		lines, more, ended := l.lines[next:], l.more, l.ended
		l.mu.Unlock()
		for _, line := range lines {
			if wanted(line) {
				return line, true
			}
		}
		next += len(lines)
		if ended {
			return "", false
		}
		select {
		case <-more:
		case <-timeout:
			return "", false
		}
	}
}

// waitFor waits for a line that contains text.
func (d *daemon) waitFor(text string) string {
	d.t.Helper()
	line, ok := d.log.wait(patience, func(line string) bool { return strings.Contains(line, text) })
	if !ok {
		d.t.Fatalf("no %q in the log", text)
	}
	return line
}

// text is everything printed so far.
func (l *logBook) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(append(l.lines[:len(l.lines):len(l.lines)], string(l.rest)), "\n")
}

// printed returns the notes that who printed, of the kind given.
func (l *logBook) printed(who, what string) []script.Note {
	var notes []script.Note
	for line := range strings.Lines(l.text()) {
		if n, ok := script.ParsePrinted(line); ok && n.Who == who && n.What == what {
			notes = append(notes, n)
		}
	}
	return notes
}
