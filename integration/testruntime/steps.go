package main

import (
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/integration/inside"
	"github.com/sandboxd/sandboxd/integration/script"
)

// operation does one step and notes what became of it.
type operation func(*testRuntime, script.Step, *script.Result)

// operations are the steps that exist, by their name in [script.Step].Op.
var operations map[string]operation

func init() { // not a literal: on_sigterm refers to the table
	operations = map[string]operation{
		// time and end
		"sleep":      func(_ *testRuntime, s script.Step, _ *script.Result) { time.Sleep(millis(s)) },
		"await":      await,
		"exit":       func(_ *testRuntime, s script.Step, _ *script.Result) { os.Exit(int(s.N)) },
		"signal":     signalSelf,
		"on_sigterm": onSIGTERM,
		// APIs
		"call":     call,
		"stream":   stream,
		"register": register,
		// what the process sees
		"env":    func(_ *testRuntime, _ script.Step, r *script.Result) { r.List = os.Environ() },
		"fds":    func(t *testRuntime, _ script.Step, r *script.Result) { r.List = t.fds },
		"ps":     func(_ *testRuntime, _ script.Step, r *script.Result) { r.List, _ = inside.Processes() },
		"read":   read,
		"stat":   stat,
		"list":   list,
		"write":  write,
		"remove": func(_ *testRuntime, s script.Step, r *script.Result) { fail(r, os.RemoveAll(s.Path)) },
		"print":  printLines,
		"frames": frames,
		"note":   func(_ *testRuntime, s script.Step, _ *script.Result) { note(s.Data) },
		"exec":   execute,
		"clone":  clone,
		"kill": func(_ *testRuntime, s script.Step, r *script.Result) {
			fail(r, syscall.Kill(int(s.N), syscall.SIGKILL))
		},
		// network
		"dial":     dial,
		"lookup":   lookup,
		"listen":   listen,
		"raw":      raw,
		"linkdown": linkDown,
		// resources
		"alloc":       alloc,
		"spin":        spin,
		"fork":        forkMany,
		"bomb":        bomb,
		"open":        openMany,
		"memfd":       memfd,
		"shmget":      shmget,
		"fill":        fill,
		"fill_inodes": fillInodes,
		"tick":        tick,
		"ticks":       func(t *testRuntime, _ script.Step, r *script.Result) { r.Times = t.ticks.all() },
		"daemon":      detach,
		// attacks
		"bytes":   rawBytes,
		"hold":    hold,
		"held":    held,
		"threads": threads,
		"watch":   watch,
		"pipes":   pipes,
		"flood":   flood,
		"orphans": orphans,
	}
}

func millis(s script.Step) time.Duration { return time.Duration(s.MS) * time.Millisecond }

// fail notes err, and its errno if there is one.
func fail(r *script.Result, err error) {
	if err == nil {
		return
	}
	r.Error = err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		r.Errno = int(errno)
	}
}

// await waits until Path exists.
func await(_ *testRuntime, s script.Step, r *script.Result) {
	for {
		if _, err := os.Stat(s.Path); err == nil {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// signalSelf sends signal N to the process itself and waits for it to arrive.
func signalSelf(_ *testRuntime, s script.Step, r *script.Result) {
	fail(r, syscall.Kill(os.Getpid(), syscall.Signal(s.N)))
	if r.Error == "" {
		forever()
	}
}

// onSIGTERM says what the process does at SIGTERM, besides taking a note. Data is
// "exit", "heartbeat" (go on and print heartbeats) or "late" (post the response of
// the current invocation, note the status, go on).
func onSIGTERM(t *testRuntime, s script.Step, _ *script.Result) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		note("sigterm")
		switch s.Data {
		case "exit":
			os.Exit(0)
		case "late":
			var r script.Result
			call(t, script.Step{Method: "POST", Path: "/2018-06-01/runtime/invocation/{id}/response", Data: `"late"`}, &r)
			note("late", "status", strconv.Itoa(r.Status))
		case "heartbeat":
			for range time.Tick(10 * time.Millisecond) {
				note("heartbeat")
			}
		}
	}()
}

func note(what string, pairs ...string) {
	if err := script.Take("runtime", what, pairs...); err != nil {
		log.Print(err)
	}
}

// zeros is an endless source of the letter 0.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '0'
	}
	return len(p), nil
}

// call makes one request to the API: Method, Path, Headers, and Data or N letters
// as body. Status, headers and the text of the answer are noted.
func call(t *testRuntime, s script.Step, r *script.Result) {
	var body io.Reader = strings.NewReader(s.Data)
	length := int64(len(s.Data))
	if s.N > 0 {
		body, length = io.LimitReader(zeros{}, s.N), s.N
	}
	path := t.expand(s.Path)
	req, err := http.NewRequest(s.Method, t.base+path, body)
	if err != nil {
		fail(r, err)
		return
	}
	req.ContentLength = length
	t.send(req, s, r)
}

// send makes the request of a call and notes the answer.
func (t *testRuntime) send(req *http.Request, s script.Step, r *script.Result) {
	for k, v := range s.Headers {
		req.Header.Set(k, t.expand(v))
	}
	resp, err := t.client.Do(req)
	if err != nil {
		fail(r, err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	fail(r, err)
	r.Status, r.Text = resp.StatusCode, string(text)
	r.Headers = make(map[string]string)
	for k := range resp.Header {
		r.Headers[k] = resp.Header.Get(k)
	}
	// A 413 also ends the invocation (RT-34).
	final := r.Status == http.StatusAccepted || r.Status == http.StatusRequestEntityTooLarge
	if final && req.Method == http.MethodPost && strings.Contains(req.URL.Path, "/invocation/"+t.id+"/") {
		t.answered = true
	}
}

// register registers an internal extension for no event and leaves its next
// blocked for ever, as aws-lambda-go's SIGTERM helper does (EX-16).
func register(t *testRuntime, s script.Step, r *script.Result) {
	call(t, script.Step{
		Method: "POST", Path: "/2020-01-01/extension/register", Data: `{"events":null}`,
		Headers: map[string]string{"Lambda-Extension-Name": "internal"},
	}, r)
	id := r.Headers["Lambda-Extension-Identifier"]
	go func() {
		var blocked script.Result
		call(t, script.Step{
			Method: "GET", Path: "/2020-01-01/extension/event/next",
			Headers: map[string]string{"Lambda-Extension-Identifier": id},
		}, &blocked)
	}()
}

// read notes the text of the file Path, its first MiB.
func read(_ *testRuntime, s script.Step, r *script.Result) {
	f, err := os.Open(s.Path)
	if err != nil {
		fail(r, err)
		return
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 1<<20))
	fail(r, err)
	r.Text = string(text)
}

// stat notes mode and size of Path.
func stat(_ *testRuntime, s script.Step, r *script.Result) {
	info, err := os.Stat(s.Path)
	if err != nil {
		fail(r, err)
		return
	}
	r.Text, r.N = info.Mode().String(), info.Size()
}

// list notes the names in the folder Path.
func list(_ *testRuntime, s script.Step, r *script.Result) {
	entries, err := os.ReadDir(s.Path)
	fail(r, err)
	for _, e := range entries {
		r.List = append(r.List, e.Name())
	}
}

// write appends Data to the file Path, which is made if it does not exist.
func write(_ *testRuntime, s script.Step, r *script.Result) {
	f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		fail(r, err)
		return
	}
	_, err = f.WriteString(s.Data)
	fail(r, errors.Join(err, f.Close()))
}

// printLines prints Data N times, each on a line, to standard output.
func printLines(_ *testRuntime, s script.Step, r *script.Result) {
	for range s.N {
		if _, err := os.Stdout.WriteString(s.Data + "\n"); err != nil {
			fail(r, err)
			return
		}
	}
}

// execute runs Argv and notes what it printed.
func execute(_ *testRuntime, s script.Step, r *script.Result) {
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
	out, err := cmd.CombinedOutput()
	fail(r, err)
	r.Text = string(out)
	if cmd.ProcessState != nil {
		r.Status = cmd.ProcessState.ExitCode()
	}
}

// clone starts a process with the clone flags N.
func clone(_ *testRuntime, s script.Step, r *script.Result) {
	cmd := self("exit")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: uintptr(s.N)}
	fail(r, cmd.Run())
}
