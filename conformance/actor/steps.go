package actor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// operation does one step and notes what became of it.
type operation func(context.Context, *actor, script.Step, *script.Entry)

// operations are the steps that exist, by their Op.
var operations map[string]operation

func init() { // not a literal: some refer to the table
	operations = map[string]operation{
		// the end, and time
		"sleep":  func(_ context.Context, _ *actor, s script.Step, _ *script.Entry) { time.Sleep(ms(s)) },
		"exit":   func(_ context.Context, a *actor, s script.Step, _ *script.Entry) { a.Exit(int(s.N)) },
		"signal": signalSelf, // N to the process itself
		"onterm": onTerm,     // Data is what to do at SIGTERM besides a note: "exit" or "" (go on)
		// other steps
		"wait":   wait,   // for the background step Name, at most MS; N is 1 if it is done
		"cancel": cancel, // the background step Name: its connection is closed
		// APIs
		"call":     call,     // Method, Path, Headers, and Data, N letters or Chunks
		"raw":      raw,      // sends Data as it is; Method "end" closes the sending side; the answer within MS
		"register": register, // as Path (this actor's name if empty) for the events in Data
		"serve":    serve,    // takes N events (0 is all), SHUTDOWN ends it
		"listen":   listen,   // for telemetry: Method "http" or "tcp", on port N; each event leaves an entry
		// what the process sees and does
		"env":   func(_ context.Context, _ *actor, _ script.Step, e *script.Entry) { e.List = os.Environ() },
		"fds":   func(_ context.Context, a *actor, _ script.Step, e *script.Entry) { e.List = a.FDs },
		"ps":    processes,
		"cwd":   func(_ context.Context, _ *actor, _ script.Step, e *script.Entry) { e.Text, _ = os.Getwd() },
		"ids":   ids,
		"read":  read,
		"write": write,
		"stat":  stat,
		"rlimit": func(_ context.Context, _ *actor, _ script.Step, e *script.Entry) {
			var l syscall.Rlimit
			fail(e, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
			e.N = int64(l.Cur)
		},
		"print": func(_ context.Context, a *actor, s script.Step, _ *script.Entry) {
			io.WriteString(a.Out, a.expand(s.Data))
		},
		"stderr": func(_ context.Context, a *actor, s script.Step, _ *script.Entry) {
			io.WriteString(a.Err, a.expand(s.Data))
		},
		"frame":  frame,  // writes Data as a frame of type N to the telemetry descriptor
		"tick":   tick,   // counts in the background, every MS
		"ticks":  ticks,  // N is the count so far
		"daemon": daemon, // starts a process in a session of its own that outlives this one; N is its pid
		"alloc":  alloc,  // N MiB of memory, touched
	}
}

func ms(s script.Step) time.Duration { return time.Duration(s.MS) * time.Millisecond }

func fail(e *script.Entry, err error) {
	if err != nil {
		e.Error = err.Error()
	}
}

// do does the steps in order, each whatever became of the one before.
func (a *actor) do(steps []script.Step) {
	for _, s := range steps {
		ctx, stop := context.WithCancel(context.Background())
		if !s.Background {
			a.step(ctx, s, a.current())
			stop()
			continue
		}
		t := &task{done: make(chan struct{}), cancel: stop}
		a.mu.Lock()
		a.background[name(s)] = t
		play := a.play
		a.mu.Unlock()
		go func() {
			defer close(t.done)
			a.step(ctx, s, play)
		}()
	}
}

func name(s script.Step) string {
	if s.Name != "" {
		return s.Name
	}
	return s.Op
}

// step does one step and notes it.
func (a *actor) step(ctx context.Context, s script.Step, play string) {
	e := script.Entry{Name: name(s), Play: play, Began: time.Now().UnixMicro()}
	if do, ok := operations[s.Op]; ok {
		do(ctx, a, s, &e)
	} else {
		e.Error = "no such operation: " + s.Op
	}
	a.note(e)
}

// wait waits for a background step. Its entry is named "wait NAME".
func wait(_ context.Context, a *actor, s script.Step, e *script.Entry) {
	e.Name = "wait " + s.Name
	a.mu.Lock()
	t := a.background[s.Name]
	a.mu.Unlock()
	if t == nil {
		e.Error = "no such background step"
		return
	}
	timer := time.NewTimer(ms(s))
	defer timer.Stop()
	select {
	case <-t.done:
		e.N = 1
	case <-timer.C:
	}
}

// cancel breaks a background step off and waits until it is over.
func cancel(_ context.Context, a *actor, s script.Step, e *script.Entry) {
	e.Name = "cancel " + s.Name
	a.mu.Lock()
	t := a.background[s.Name]
	a.mu.Unlock()
	if t == nil {
		e.Error = "no such background step"
		return
	}
	t.cancel()
	<-t.done
}

// signalSelf sends a signal to the process itself and waits for it to arrive.
func signalSelf(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	fail(e, syscall.Kill(os.Getpid(), syscall.Signal(s.N)))
	if e.Error == "" {
		time.Sleep(time.Hour)
	}
}

// onTerm notes SIGTERM, in the journal and in print.
func onTerm(_ context.Context, a *actor, s script.Step, _ *script.Entry) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		a.announce(script.Entry{Name: "sigterm"})
		if s.Data == "exit" {
			a.Exit(0)
		}
	}()
}

// announce notes an entry and prints it as well: the environment may be gone before
// anybody can ask for the journal.
func (a *actor) announce(e script.Entry) {
	a.note(e)
	e.Who, e.At = a.Who, time.Now().UnixMicro()
	fmt.Fprintf(a.Out, "%s%s\n", Mark, script.Encode(e))
}

func processes(_ context.Context, _ *actor, _ script.Step, e *script.Entry) {
	var err error
	e.List, err = visibleProcesses()
	fail(e, err)
}

// ids notes user, group, process group and process id.
func ids(_ context.Context, _ *actor, _ script.Step, e *script.Entry) {
	e.Headers = map[string]string{
		"uid": strconv.Itoa(os.Getuid()), "gid": strconv.Itoa(os.Getgid()),
		"pgrp": strconv.Itoa(syscall.Getpgrp()), "pid": strconv.Itoa(os.Getpid()),
	}
}

func read(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	text, err := os.ReadFile(s.Path)
	fail(e, err)
	e.Text = clip(string(text))
}

// write appends Data to a file, which is made if it does not exist.
func write(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		fail(e, err)
		return
	}
	_, err = f.WriteString(s.Data)
	fail(e, errors.Join(err, f.Close()))
}

// stat notes mode and size of a file, or of the file system (N, in MiB) with Method "fs".
func stat(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	if s.Method == "fs" {
		var st syscall.Statfs_t
		fail(e, syscall.Statfs(s.Path, &st))
		e.N = int64(st.Blocks) * st.Bsize >> 20
		return
	}
	info, err := os.Stat(s.Path)
	if err != nil {
		fail(e, err)
		return
	}
	e.Text, e.N = info.Mode().String(), info.Size()
}

// frame writes a log frame (LOG-02): header and body in two writes. MS is its time, in
// milliseconds since the epoch.
func frame(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	fd, err := strconv.Atoi(os.Getenv("_LAMBDA_TELEMETRY_LOG_FD"))
	if err != nil {
		e.Error = "no _LAMBDA_TELEMETRY_LOG_FD: " + err.Error()
		return
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(s.N))
	header = binary.BigEndian.AppendUint32(header, uint32(len(s.Data)))
	header = binary.BigEndian.AppendUint64(header, uint64(s.MS)*1000)
	for _, part := range [][]byte{header, []byte(s.Data)} {
		if _, err := syscall.Write(fd, part); err != nil {
			fail(e, err)
			return
		}
	}
}

// tick counts for the rest of the process's life.
func tick(_ context.Context, a *actor, s script.Step, _ *script.Entry) {
	go func() {
		for n := 1; ; n++ {
			a.set("ticks", strconv.Itoa(n))
			time.Sleep(ms(s))
		}
	}()
}

func ticks(_ context.Context, a *actor, _ script.Step, e *script.Entry) {
	e.N, _ = strconv.ParseInt(a.expand("{ticks}"), 10, 64)
}

// daemonVariable makes a process of this program one that only lives on.
const daemonVariable = "CONFORMANCE_DAEMON"

// Daemon reports whether this process was started by the step daemon, and then does
// not return.
func Daemon() bool {
	if os.Getenv(daemonVariable) == "" {
		return false
	}
	for {
		time.Sleep(time.Hour)
	}
}

func daemon(_ context.Context, _ *actor, _ script.Step, e *script.Entry) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"conformance-daemon"}
	cmd.Env = append(os.Environ(), daemonVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fail(e, err)
		return
	}
	e.N = int64(cmd.Process.Pid)
}

// held keeps allocated memory alive.
var held [][]byte

func alloc(_ context.Context, _ *actor, s script.Step, e *script.Entry) {
	for range s.N {
		block := make([]byte, 1<<20)
		for i := 0; i < len(block); i += 4096 {
			block[i] = 1
		}
		held = append(held, block)
		e.N++
	}
}

// letters is an endless source of the letter x.
type letters struct{}

func (letters) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// repeat returns n letters, or text if n is 0.
func repeat(text string, n int64) io.Reader {
	if n > 0 {
		return io.LimitReader(letters{}, n)
	}
	return strings.NewReader(text)
}
