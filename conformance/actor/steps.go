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
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Operation does one step and notes in the entry what became of it. The context ends when
// the step is cancelled.
type Operation func(context.Context, *Actor, script.Step, *script.Entry)

// operations are the steps that every actor can do, by their Op.
var operations map[string]Operation

func init() { // not a literal: some refer to the table
	operations = map[string]Operation{
		// the end, and time
		"sleep":  func(_ context.Context, _ *Actor, s script.Step, _ *script.Entry) { time.Sleep(ms(s)) },
		"exit":   func(_ context.Context, a *Actor, s script.Step, _ *script.Entry) { a.Exit(int(s.N)) },
		"signal": signalSelf, // N to the process itself
		"onterm": onTerm,     // Steps are done at SIGTERM, after an entry "sigterm" that is printed
		// other steps
		"wait":   wait,                                                         // for the background step Name, at most MS; N is 1 if it is done
		"cancel": cancel,                                                       // the background step Name: its connection is closed
		"note":   func(context.Context, *Actor, script.Step, *script.Entry) {}, // its entry is always in the journal, and always printed
		// APIs
		"call":     call,     // Method, Path, Headers, and Data, N letters or Chunks
		"raw":      raw,      // sends Data as it is; Method "end" closes the sending side; the answer within MS
		"register": register, // as Path (this actor's name if empty) for the events in Data
		"serve":    serve,    // takes N events (0 is all), SHUTDOWN ends it
		"listen":   listen,   // for telemetry: Method "http" or "tcp", on port N; each event leaves an entry
		// what the process sees and does
		"env":   func(_ context.Context, _ *Actor, _ script.Step, e *script.Entry) { e.List = os.Environ() },
		"fds":   func(_ context.Context, a *Actor, _ script.Step, e *script.Entry) { e.List = a.FDs },
		"ps":    processes,
		"cwd":   func(_ context.Context, _ *Actor, _ script.Step, e *script.Entry) { e.Text, _ = os.Getwd() },
		"ids":   ids,
		"read":  read,  // the file Path: its first N bytes, or 64 KiB
		"write": write, // appends Data to the file Path, which is made if it does not exist
		"stat":  stat,  // mode and size of Path, or with Method "fs" the size of its file system in MiB
		"rlimit": func(_ context.Context, _ *Actor, _ script.Step, e *script.Entry) {
			var l syscall.Rlimit
			e.Fail(syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l))
			e.N = int64(l.Cur)
		},
		"print": func(_ context.Context, a *Actor, s script.Step, e *script.Entry) { // Data, N times or once
			e.Fail(writeTimes(a.Out, a.Expand(s.Data), s.N))
		},
		"stderr": func(_ context.Context, a *Actor, s script.Step, e *script.Entry) { // the same, to standard error
			e.Fail(writeTimes(a.Err, a.Expand(s.Data), s.N))
		},
		"frame":  frame,  // writes Data as a frame of type N to the telemetry descriptor
		"tick":   tick,   // notes the time in the background, every MS
		"ticks":  ticks,  // N is how often it did, Times when
		"daemon": daemon, // starts a process by double fork, in a session of its own, that outlives this one; N is its pid
		"alloc":  alloc,  // N MiB of memory, touched
	}
}

func ms(s script.Step) time.Duration { return time.Duration(s.MS) * time.Millisecond }

// writeTimes writes text n times, but once if n is 0, each time by itself.
func writeTimes(w io.Writer, text string, n int64) error {
	for range max(n, 1) {
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
	}
	return nil
}

// Do does the steps in order, each whatever became of the one before. Their entries go
// into the journal.
func (a *Actor) Do(steps []script.Step) {
	a.do(steps, func(s script.Step, e script.Entry) { a.keep(s, e) })
}

// keep notes the entry of a step.
func (a *Actor) keep(s script.Step, e script.Entry) script.Entry {
	if s.Op == "note" {
		return a.Announce(e)
	}
	return a.Note(e)
}

// do does the steps and gives their entries to done, but for those of steps in the
// background, which go into the journal when they are done.
func (a *Actor) do(steps []script.Step, done func(script.Step, script.Entry)) {
	for _, s := range steps {
		ctx, stop := context.WithCancel(context.Background())
		if !s.Background {
			done(s, a.step(ctx, s, a.current()))
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
			a.keep(s, a.step(ctx, s, play))
		}()
	}
}

func name(s script.Step) string {
	if s.Name != "" {
		return s.Name
	}
	return s.Op
}

// step does one step and returns what became of it.
func (a *Actor) step(ctx context.Context, s script.Step, play string) script.Entry {
	e := script.Entry{Name: name(s), Play: play, Began: time.Now().UnixMicro()}
	do := a.Operations[s.Op]
	if do == nil {
		do = operations[s.Op]
	}
	if do == nil {
		e.Error = "no such operation: " + s.Op
		return e
	}
	do(ctx, a, s, &e)
	return e
}

// wait waits for a background step. Its entry is named "wait NAME".
func wait(_ context.Context, a *Actor, s script.Step, e *script.Entry) {
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
func cancel(_ context.Context, a *Actor, s script.Step, e *script.Entry) {
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
func signalSelf(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	e.Fail(syscall.Kill(os.Getpid(), syscall.Signal(s.N)))
	if e.Error == "" {
		time.Sleep(time.Hour)
	}
}

// onTerm notes SIGTERM, in the journal and in print, and does steps then.
func onTerm(_ context.Context, a *Actor, s script.Step, _ *script.Entry) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		a.Announce(script.Entry{Name: "sigterm"})
		a.Do(s.Steps)
	}()
}

func processes(_ context.Context, _ *Actor, _ script.Step, e *script.Entry) {
	var err error
	e.List, err = visibleProcesses()
	e.Fail(err)
}

// ids notes user, group, process group and process id.
func ids(_ context.Context, _ *Actor, _ script.Step, e *script.Entry) {
	e.Headers = map[string]string{
		"uid": strconv.Itoa(os.Getuid()), "gid": strconv.Itoa(os.Getgid()),
		"pgrp": strconv.Itoa(syscall.Getpgrp()), "pid": strconv.Itoa(os.Getpid()),
	}
}

func read(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	f, err := os.Open(s.Path)
	if err != nil {
		e.Fail(err)
		return
	}
	defer f.Close()
	limit := s.N
	if limit == 0 {
		limit = clipped
	}
	text, err := io.ReadAll(io.LimitReader(f, limit))
	e.Fail(err)
	e.Text = string(text)
}

func write(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	f, err := os.OpenFile(s.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o666)
	if err != nil {
		e.Fail(err)
		return
	}
	_, err = f.WriteString(s.Data)
	e.Fail(errors.Join(err, f.Close()))
}

func stat(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	if s.Method == "fs" {
		var st syscall.Statfs_t
		e.Fail(syscall.Statfs(s.Path, &st))
		e.N = int64(st.Blocks) * st.Bsize >> 20
		return
	}
	info, err := os.Stat(s.Path)
	if err != nil {
		e.Fail(err)
		return
	}
	e.Text, e.N = info.Mode().String(), info.Size()
}

// frame writes a log frame (LOG-02): header and body in two writes. MS is its time, in
// milliseconds since the epoch.
func frame(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	fd, err := strconv.Atoi(os.Getenv("_LAMBDA_TELEMETRY_LOG_FD"))
	if err != nil {
		e.Error = "no _LAMBDA_TELEMETRY_LOG_FD: " + err.Error()
		return
	}
	header := binary.BigEndian.AppendUint32(nil, uint32(s.N))
	header = binary.BigEndian.AppendUint32(header, uint32(len(s.Data)))
	header = binary.BigEndian.AppendUint64(header, uint64(s.MS)*1000)
	for _, part := range [][]byte{header, []byte(s.Data)} {
		n, err := syscall.Write(fd, part)
		if err == nil && n < len(part) {
			err = io.ErrShortWrite
		}
		if err != nil {
			e.Fail(err)
			return
		}
	}
}

// ticker is a list of times that grows for the rest of the process's life.
type ticker struct {
	mu    sync.Mutex
	times []int64
}

func (k *ticker) add(at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.times = append(k.times, at.UnixMicro())
}

func (k *ticker) all() []int64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]int64(nil), k.times...)
}

func tick(_ context.Context, a *Actor, s script.Step, _ *script.Entry) {
	go func() {
		for {
			a.process.ticks.add(time.Now())
			time.Sleep(ms(s))
		}
	}()
}

func ticks(_ context.Context, a *Actor, _ script.Step, e *script.Entry) {
	e.Times = a.process.ticks.all()
	e.N = int64(len(e.Times))
}

// daemonVariable makes a process of this program a daemon that only lives on, or with the
// value "middle" the one that starts it and ends. A daemon writes its pid into the file
// that the variable names.
const daemonVariable, daemonFileVariable = "CONFORMANCE_DAEMON", "CONFORMANCE_DAEMON_FILE"

// Daemon reports whether this process was started by the step daemon. It returns true only
// when the process is to end.
func Daemon() bool {
	switch os.Getenv(daemonVariable) {
	case "":
		return false
	case "middle":
		cmd := exec.Command("/proc/self/exe")
		cmd.Args = []string{script.DaemonName}
		cmd.Env = append(os.Environ(), daemonVariable+"=daemon")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		return true
	}
	file := os.Getenv(daemonFileVariable)
	if err := errors.Join(os.WriteFile(file+".new", []byte(strconv.Itoa(os.Getpid())), 0o666), os.Rename(file+".new", file)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return true
	}
	for {
		time.Sleep(time.Hour)
	}
}

// daemonPatience is how long a daemon may take to run: its start is a few milliseconds.
const daemonPatience = 30 * time.Second

// daemon starts a daemon and waits until it runs.
func daemon(_ context.Context, a *Actor, _ script.Step, e *script.Entry) {
	file := filepath.Join(a.Scratch, "conformance.daemon")
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		e.Fail(err)
		return
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{script.DaemonName}
	cmd.Env = append(os.Environ(), daemonVariable+"=middle", daemonFileVariable+"="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Run(); err != nil {
		e.Fail(err)
		return
	}
	for deadline := time.Now().Add(daemonPatience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if text, err := os.ReadFile(file); err == nil {
			e.N, err = strconv.ParseInt(string(text), 10, 64)
			e.Fail(err)
			return
		}
	}
	e.Error = fmt.Sprintf("the daemon did not run within %v", daemonPatience)
}

// held keeps allocated memory from being unmapped.
var held struct {
	mu     sync.Mutex
	blocks [][]byte
}

// alloc maps anonymous memory, touches every page, and keeps it.
func alloc(_ context.Context, _ *Actor, s script.Step, e *script.Entry) {
	const mib = 1 << 20
	for range s.N {
		block, err := syscall.Mmap(-1, 0, mib, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS)
		if err != nil {
			e.Fail(err)
			return
		}
		for i := 0; i < mib; i += 4096 {
			block[i] = 1
		}
		held.mu.Lock()
		held.blocks = append(held.blocks, block)
		held.mu.Unlock()
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
