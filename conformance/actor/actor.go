// Package actor is what the conformance suite puts into the environment that it
// tests: a function and extensions that do what their scripts say and keep a journal
// of it. They talk to the Runtime API and to nothing else.
package actor

import (
	"bytes"
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
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// Mark is the beginning of a line that an actor prints besides journal entries that
// nobody may live to ask for. The entry follows as JSON.
const Mark = "CONFORMANCE "

// Config says who an actor is. Role makes one for a process.
type Config struct {
	Who     string // "runtime", or the name of an extension
	API     string // host:port of the Runtime API
	Program string // file of the script.Program; a missing one is an empty program
	Scratch string // folder of the journal, shared by all actors of an environment
	FDs     []string
	Exit    func(int) // ends the process
	Out     io.Writer // standard output
	Err     io.Writer // standard error
}

// Role reports what part a process plays that was started by the given path: the
// runtime as "bootstrap", an extension from a folder "extensions".
func Role(path string) (Config, bool) {
	c := Config{API: os.Getenv("AWS_LAMBDA_RUNTIME_API"), Scratch: os.TempDir(), Exit: os.Exit, Out: os.Stdout, Err: os.Stderr}
	dir, name := filepath.Split(path)
	switch {
	case name == "bootstrap":
		c.Who, c.Program = "runtime", filepath.Join(dir, script.File)
	case filepath.Base(dir) == "extensions":
		c.Who, c.Program = name, filepath.Join(dir, "..", script.Folder, name+".json")
	default:
		return Config{}, false
	}
	c.FDs = inheritedFDs()
	return c, true
}

// actor is one running actor.
type actor struct {
	Config
	client *http.Client
	start  int // which start this is

	mu         sync.Mutex
	play       string
	vars       map[string]string
	background map[string]*task
}

// task is a step that runs in the background.
type task struct {
	done   chan struct{}
	cancel func()
}

// Run lives the life that the configuration says. It returns when there is no more to
// do, or with what went wrong; a process that runs an actor then ends.
func Run(c Config) error {
	a := &actor{
		Config: c,
		client: &http.Client{Transport: &http.Transport{}}, // no proxy, no limit of time
		vars:   map[string]string{"pid": strconv.Itoa(os.Getpid())}, background: map[string]*task{},
	}
	program, err := readProgram(c.Program)
	if err != nil {
		return err
	}
	if a.start, err = a.countStart(); err != nil {
		return err
	}
	a.note(script.Entry{Name: "start"})
	if n := len(program.Starts); n > 0 {
		a.do(program.Starts[min(a.start, n)-1])
	}
	if c.Who != "runtime" {
		return nil
	}
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
		return p, fmt.Errorf("actor: program %s: %w", path, err)
	}
	return p, nil
}

// countStart counts the starts of this actor in its environment, this one included.
func (a *actor) countStart() (int, error) {
	f, err := os.OpenFile(filepath.Join(a.Scratch, "conformance.starts."+a.Who), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o666)
	if err != nil {
		return 0, fmt.Errorf("actor: count the start: %w", err)
	}
	defer f.Close()
	if _, err := f.Write([]byte{'.'}); err != nil {
		return 0, fmt.Errorf("actor: count the start: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return 0, fmt.Errorf("actor: count the start: %w", err)
	}
	return int(info.Size()), nil
}

func (a *actor) journal() string { return filepath.Join(a.Scratch, "conformance.journal") }

// openJournal opens the journal and locks it until it is closed: an entry is longer
// than what one write is sure to show to a reader at once.
func (a *actor) openJournal(flags, lock int) (*os.File, error) {
	f, err := os.OpenFile(a.journal(), flags, 0o666)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(f.Fd()), lock); err != syscall.EINTR {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// note writes an entry into the journal, in one piece.
func (a *actor) note(e script.Entry) {
	now := time.Now().UnixMicro()
	if e.Began == 0 {
		e.Began = now
	}
	e.Who, e.PID, e.Start, e.At = a.Who, os.Getpid(), a.start, now
	if e.Play == "" {
		e.Play = a.current()
	}
	f, err := a.openJournal(os.O_WRONLY|os.O_CREATE|os.O_APPEND, syscall.LOCK_EX)
	if err == nil {
		_, err = io.WriteString(f, script.Encode(e)+"\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		fmt.Fprintln(a.Err, "actor: journal:", err)
	}
}

// current is the play of the invocation that is under way.
func (a *actor) current() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.play
}

// expand puts values for the names in braces.
func (a *actor) expand(text string) string {
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
func (a *actor) set(name, value string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.vars[name] = value
}

const runtimeBase = "/2018-06-01/runtime/"

// invocation takes one event, does what it says, and answers.
func (a *actor) invocation() error {
	resp, err := a.client.Get("http://" + a.API + runtimeBase + "invocation/next")
	if err != nil {
		return fmt.Errorf("actor: next: %w", err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return fmt.Errorf("actor: next: %w", err)
	}
	var event script.Event
	if err := json.Unmarshal(body, &event); err != nil {
		event = script.Event{} // an echo
	}
	a.mu.Lock()
	a.play = event.Play
	a.vars["previous"], a.vars["id"] = a.vars["id"], resp.Header.Get(requestHeader)
	a.vars["nonce"] = resp.Header.Get("Lambda-Runtime-Invocation-Id")
	a.mu.Unlock()
	if !event.Journal {
		a.note(script.Entry{Name: "next", Status: resp.StatusCode, Headers: flat(resp.Header), Text: clip(string(body)), N: int64(len(body))})
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("actor: next: %s: %s", resp.Status, body)
	}
	switch {
	case event.Journal:
		body, err = a.readJournal()
		if err != nil {
			return err
		}
	case event.Play != "":
		a.do(event.Steps)
		if event.Answered {
			return nil
		}
		body = []byte(script.Encode(map[string]string{"play": event.Play}))
	}
	return a.respond(body)
}

// respond answers the current invocation.
func (a *actor) respond(body []byte) error {
	url := "http://" + a.API + a.expand(runtimeBase+"invocation/{id}/response")
	resp, err := a.client.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("actor: response: %w", err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	if resp.StatusCode/100 != 2 { // which 2xx it is, is for the cases to judge
		a.note(script.Entry{Name: "refused", Status: resp.StatusCode, Text: string(text)})
		return fmt.Errorf("actor: response: %s: %s", resp.Status, text)
	}
	return nil
}

// readJournal returns the journal as a JSON list.
func (a *actor) readJournal() ([]byte, error) {
	f, err := a.openJournal(os.O_RDONLY, syscall.LOCK_SH)
	if errors.Is(err, fs.ErrNotExist) {
		return []byte("[]"), nil
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(f)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("actor: journal: %w", err)
	}
	lines := bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n"))
	return append(append([]byte{'['}, bytes.Join(lines, []byte(","))...), ']'), nil
}

// flat keeps the first value of each header.
func flat(h http.Header) map[string]string {
	m := make(map[string]string, len(h))
	for k := range h {
		m[k] = h.Get(k)
	}
	return m
}

// clip keeps what a case may want to see of a body.
func clip(s string) string { return s[:min(len(s), 64<<10)] }
