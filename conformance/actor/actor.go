// Package actor is the function and the extensions that stand in a Lambda environment for
// a test: processes that do what their scripts say and keep a journal of it. They talk to
// the Runtime API and to nothing else.
//
// A program is an actor when its main calls [Daemon], [Role] and [Main]. It can add
// operations of its own to those that steps may use, see [Config].
package actor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Config says which actor a process is. Role makes one.
type Config struct {
	Who     string // "runtime", or the name of an extension
	API     string // host:port of the Runtime API
	Program string // file of the script.Program; a missing one is an empty program
	Scratch string // folder of the journal, shared by all actors of an environment
	FDs     []string
	Exit    func(int) // ends the process
	Out     io.Writer // standard output
	Err     io.Writer // standard error

	// Operations are further operations by their Op. They may replace those of this
	// package.
	Operations map[string]Operation
}

// Role reports which actor a process is that was started by the given path: the runtime if
// that is a "bootstrap", an extension if it lies in a folder "extensions".
func Role(path string) (Config, bool) {
	dir, name := filepath.Split(path)
	if filepath.Base(dir) == "extensions" {
		return config(name, filepath.Join(dir, "..", script.Folder, name+".json")), true
	}
	return Runtime(path), name == "bootstrap"
}

// Runtime is the configuration of the runtime whose program has the given path, whatever
// its name.
func Runtime(path string) Config {
	return config("runtime", filepath.Join(filepath.Dir(path), script.File))
}

func config(who, program string) Config {
	return Config{
		Who: who, API: os.Getenv("AWS_LAMBDA_RUNTIME_API"), Program: program, Scratch: os.TempDir(), FDs: inheritedFDs(),
		Exit: os.Exit, Out: os.Stdout, Err: os.Stderr,
	}
}

// Actor is one running actor, or one of the workers of a runtime in managed mode.
// Operations get theirs; its methods may be called from any goroutine.
type Actor struct {
	Config
	process *process
	client  *http.Client

	mu         sync.Mutex
	play       string
	vars       map[string]string
	background map[string]*task
	previous   script.Entries // of the report before
}

// process is what the workers of a process have in common.
type process struct {
	program script.Program
	start   int // which start of the actor this is, from 1
	started time.Time
	init    script.Entries // of what was done before the first next
	ticks   ticker
}

// task is a step that runs in the background.
type task struct {
	done   chan struct{}
	cancel func()
}

// newActor makes the actor of a process, or one more worker of it.
func newActor(c Config, p *process) *Actor {
	return &Actor{
		Config: c, process: p,
		client: &http.Client{Transport: &http.Transport{}}, // no proxy, no limit of time
		vars: map[string]string{"pid": strconv.Itoa(os.Getpid()), "id": "", "previous": "",
			"token": os.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN")},
		background: map[string]*task{},
	}
}

// Run lives the life that the configuration says. It returns when there is nothing more to
// do, or with what went wrong; a process that runs an actor then ends.
func Run(c Config) error {
	p := &process{started: time.Now()}
	var err error
	if p.program, err = readProgram(c.Program); err != nil {
		return err
	}
	if p.start, err = countStart(c); err != nil {
		return err
	}
	a := newActor(c, p)
	a.Note(script.Entry{Name: "start"})
	if n := len(p.program.Starts); n > 0 {
		a.do(p.program.Starts[min(p.start, n)-1], func(s script.Step, e script.Entry) {
			p.init = append(p.init, a.keep(s, e))
		})
	}
	if c.Who != "runtime" {
		return nil
	}
	workers, _ := strconv.Atoi(os.Getenv("AWS_LAMBDA_MAX_CONCURRENCY")) // absent in classic mode (RT-67)
	for range workers - 1 {
		worker := newActor(c, p)
		go func() {
			fmt.Fprintln(c.Err, worker.work())
			c.Exit(1)
		}()
	}
	return a.work()
}

// Main runs an actor as the whole of a process, and returns its exit code.
func Main(c Config) int {
	if err := Run(c); err != nil {
		fmt.Fprintln(c.Err, err)
		return 1
	}
	return 0
}

// work takes one event after the other, until that fails.
func (a *Actor) work() error {
	for {
		if err := a.invocation(); err != nil {
			return err
		}
	}
}

func readProgram(path string) (script.Program, error) {
	var p script.Program
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &p)
	}
	if err != nil {
		return p, fmt.Errorf("program %s: %w", path, err)
	}
	return p, nil
}

// countStart counts the starts of an actor in its environment, this one included.
func countStart(c Config) (int, error) {
	f, err := os.OpenFile(filepath.Join(c.Scratch, "conformance.starts."+c.Who), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return 0, fmt.Errorf("count the start: %w", err)
	}
	defer f.Close()
	if _, err := f.Write([]byte{'.'}); err != nil {
		return 0, fmt.Errorf("count the start: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("count the start: %w", err)
	}
	return int(info.Size()), nil
}

// current is the play of the invocation that is under way.
func (a *Actor) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.play
}

// Expand puts values for the names in braces.
func (a *Actor) Expand(text string) string {
	if !strings.Contains(text, "{") {
		return text
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for k, v := range a.vars {
		text = strings.ReplaceAll(text, "{"+k+"}", v)
	}
	return text
}

// set gives a name in braces its value.
func (a *Actor) set(name, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.vars[name] = value
}
