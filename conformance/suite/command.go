package suite

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Command is a target that a shell command starts. Each start gets folders of its own.
type Command struct {
	Line     string        // with placeholders, for /bin/sh
	Has      []string      // its features
	Actor    string        // the program that is the function and the extensions: a static binary
	Patience time.Duration // how long it may take to listen, and to end after SIGTERM; 0 is [DefaultPatience]
}

// Features are those that were given.
func (c *Command) Features() []string { return c.Has }

// DefaultPatience is how long the suite waits for what must happen on any machine. It
// decides only how long a case takes that fails.
const DefaultPatience = 20 * time.Second

// Start lays the files of s out, runs the command and waits until it accepts connections.
func (c *Command) Start(ctx context.Context, s *Setup) (Instance, error) {
	root, err := os.MkdirTemp("", "conformance")
	if err != nil {
		return nil, fmt.Errorf("make a folder for the target: %w", err)
	}
	p := &process{root: root, patience: cmp.Or(c.Patience, DefaultPatience), log: newBook(), exited: make(chan struct{}), silent: make(chan struct{})}
	if err := p.start(ctx, c, s); err != nil {
		stopErr := p.Stop() // what is left to print comes meanwhile
		return nil, errors.Join(fmt.Errorf("start %q: %w; it printed:\n%s", s.Name, err, p.Log()), stopErr)
	}
	return p, nil
}

// process is one running command, with everything that it starts.
type process struct {
	root     string // its folder, and its mark
	addr     string
	front    string // address of the function's URL; "" if it has none
	patience time.Duration
	cmd      *exec.Cmd // nil until it runs
	log      *book
	output   *os.File      // what it prints is read here
	exited   chan struct{} // closed when the command itself has ended; it is reaped by Stop
	silent   chan struct{} // closed when nothing more is printed
	once     sync.Once
	err      error
}

func (p *process) start(ctx context.Context, c *Command, s *Setup) error {
	dir, layer := filepath.Join(p.root, "function"), filepath.Join(p.root, "layer")
	if err := lay(p.root, dir, layer, c.Actor, s); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	p.addr = net.JoinHostPort("127.0.0.1", port)
	v := Values{
		Dir: dir, Layer: layer, LayerUsed: usesLayer(s), Host: "127.0.0.1", Port: port,
		Handler: s.Handler, TimeoutSeconds: int(s.timeout() / time.Second), MemoryMB: s.Memory, Args: s.Args,
	}
	if v.MemoryMB == 0 {
		v.MemoryMB = 1769
	}
	if v.Handler == "" {
		v.Handler = "app.handler"
	}
	for _, k := range slices.Sorted(maps.Keys(s.Env)) {
		v.Env = append(v.Env, k+"="+s.Env[k])
	}
	if s.URL {
		port, err := freePort()
		if err != nil {
			return err
		}
		p.front = net.JoinHostPort("127.0.0.1", port)
		v.HTTP = p.front
	}
	line, err := Place(c.Line, v)
	if err != nil {
		return err
	}
	if err := p.run(line, v.Env); err != nil {
		return err
	}
	if err := p.accepting(ctx, p.addr); err != nil || p.front == "" {
		return err
	}
	return p.accepting(ctx, p.front)
}

// run starts the command and those who look after it.
func (p *process) run(line string, env []string) error {
	output, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer theirs.Close()
	cmd := exec.Command("/bin/sh", "-c", line)
	cmd.Env = append(append(os.Environ(), env...), markVariable+"="+p.root)
	cmd.Stdout, cmd.Stderr = theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, output.Close())
	}
	p.cmd, p.output = cmd, output
	go func() {
		defer close(p.exited)
		if err := awaitEnd(cmd.Process.Pid); err != nil {
			fmt.Fprintln(p.log, "conformance:", err)
		}
	}()
	go func() {
		defer close(p.silent)
		_, _ = io.Copy(p.log, output) // until all writers are gone, or Stop closes it
		p.log.end()
	}()
	return nil
}

// accepting waits until an address takes connections: nobody tells, so it is tried.
func (p *process) accepting(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := net.Dial("tcp", addr)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-again.C:
		case <-p.exited:
			return fmt.Errorf("the command ended before it listened at %s", addr)
		case <-ctx.Done():
			return fmt.Errorf("nothing listens at %s: %w", addr, err)
		}
	}
}

func usesLayer(s *Setup) bool {
	used := len(s.Extensions) > 0
	for path := range s.Files {
		used = used || filepath.Dir(path) != "function"
	}
	return used
}

// lay writes the files of a function and its layer.
func lay(root, dir, layer, actor string, s *Setup) error {
	extensions, programs := filepath.Join(layer, "extensions"), filepath.Join(layer, script.Folder)
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	for _, d := range []string{dir, extensions, programs} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if !s.NoRuntime {
		if err := os.Link(actor, filepath.Join(dir, "bootstrap")); err != nil {
			return err
		}
	}
	write := func(path, text string, mode os.FileMode) error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, []byte(text), mode)
	}
	if err := write(filepath.Join(dir, script.File), script.Encode(script.Program{Starts: s.Runtime}), 0o644); err != nil {
		return err
	}
	for name, starts := range s.Extensions {
		if err := os.Link(actor, filepath.Join(extensions, name)); err != nil {
			return err
		}
		if err := write(filepath.Join(programs, name+".json"), script.Encode(script.Program{Starts: starts}), 0o644); err != nil {
			return err
		}
	}
	for path, f := range s.Files {
		if err := write(filepath.Join(root, path), f.Text, os.FileMode(f.Mode)); err != nil {
			return err
		}
	}
	return nil
}

// freePort finds a port that nobody listens on.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

func (p *process) URL() string { return "http://" + p.addr }

// FrontURL implements Fronted.
func (p *process) FrontURL() string { return "http://" + p.front }

func (p *process) Log() string { return p.log.text() }

func (p *process) WaitLog(text string, limit time.Duration) bool { return p.log.wait(text, limit) }

// Stop ends the command and everything that it has started, and removes its folders. It
// is an error if one of the processes outlives SIGTERM by more than the target's patience.
func (p *process) Stop() error {
	p.once.Do(func() {
		if p.cmd != nil {
			p.err = errors.Join(p.end(), p.reap())
		}
		p.err = errors.Join(p.err, os.RemoveAll(p.root))
	})
	return p.err
}

// reap takes in the rest of the output and the command's exit.
func (p *process) reap() error {
	if p.running() {
		return nil // an error has said why
	}
	timer := time.NewTimer(p.patience)
	defer timer.Stop()
	select {
	case <-p.silent:
	case <-timer.C: // somebody else has its output open
	}
	err := p.output.Close()
	<-p.silent
	_ = p.cmd.Wait() // its exit code is its own affair
	return err
}

// running reports whether the command itself has not ended.
func (p *process) running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}
