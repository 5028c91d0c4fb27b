// Package script is the language between the conformance suite, which stands outside
// of the environment that it tests, and its actors, which are the function and the
// extensions inside. It is plain data, sent as JSON: steps go in with the files of
// the function, of the layer, and with events; entries of a journal come out.
package script

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"
)

// File is the name of a runtime's [Program], beside its bootstrap.
const File = "conformance.json"

// Folder is the name of the folder of the programs of the extensions, NAME.json each.
// It lies beside the folder of the extensions.
const Folder = "conformance"

// Program is what one actor does. Its zero value, and a missing one, is that of a runtime
// which only does what events say.
type Program struct {
	// Starts has the steps of the first, second, … start of the process within one
	// environment; the last list is for all later ones too. A runtime does them before
	// its first next.
	Starts [][]Step `json:"starts,omitempty"`
	// Announce has every entry printed to standard output when it goes into the journal
	// (see [ParsePrinted]), for readers who cannot ask for that.
	Announce bool `json:"announce,omitempty"`
	// Quiet keeps the events of a runtime out of the journal.
	Quiet bool `json:"quiet,omitempty"`
}

// Event is the payload of an invocation that the runtime's actor plays. A payload
// without Play, Report and Journal is echoed.
type Event struct {
	Play     string `json:"play,omitempty"`     // marks the entries of this invocation
	Steps    []Step `json:"steps,omitempty"`    // done in order
	Answered bool   `json:"answered,omitempty"` // the steps answer: the actor must not
	Report   bool   `json:"report,omitempty"`   // the entries of the steps go into the answer, a Report, and not into the journal
	Journal  bool   `json:"journal,omitempty"`  // answer with the journal, a list of Entry: its beginning, if it exceeds [JournalLimit]
}

// JournalLimit is how many bytes of a journal go into one answer. An answer has 6 MB at
// most.
const JournalLimit = 5 << 20

// Report is the answer to an event that asks for one.
type Report struct {
	ID        string  `json:"id"`        // request id
	PID       int     `json:"pid"`       // of the runtime, inside
	Started   int64   `json:"started"`   // when the process started, Unix time in nanoseconds
	Received  int64   `json:"received"`  // when the event came, Unix time in microseconds
	Deadline  int64   `json:"deadline"`  // of the invocation, Unix time in milliseconds
	LogStream string  `json:"logStream"` // of the environment
	Init      Entries `json:"init"`      // of what the process did before its first next
	Results   Entries `json:"results"`   // of the event's steps, in their order; those in the background go into the journal
	Previous  Entries `json:"previous"`  // of the report before this one by the same process, or worker of it
}

// Step is one thing that an actor does. Op chooses it; the tables of operations, in
// package actor and in the program that runs the actor, say what the operands mean to it.
// In Path, Data and Headers {id} stands for the request id of the invocation, {previous}
// for the one before, {nonce} for the invocation id, {ext} for the identifier that
// register got last, {pid} for the process, {token} for that of the credentials endpoint.
type Step struct {
	Op         string            `json:"op"`
	Name       string            `json:"name,omitempty"`       // of the entry that it leaves; Op if empty
	Background bool              `json:"background,omitempty"` // the next step does not wait for this one
	MS         int64             `json:"ms,omitempty"`         // a duration in milliseconds
	N          int64             `json:"n,omitempty"`          // a count, size, signal or status
	Path       string            `json:"path,omitempty"`
	Data       string            `json:"data,omitempty"`
	Method     string            `json:"method,omitempty"`
	Argv       []string          `json:"argv,omitempty"` // a command
	Headers    map[string]string `json:"headers,omitempty"`
	Chunks     []Chunk           `json:"chunks,omitempty"`   // a chunked body instead of Data
	Trailers   map[string]string `json:"trailers,omitempty"` // after Chunks
	Steps      []Step            `json:"steps,omitempty"`    // of serve: done at each INVOKE; of onterm: at SIGTERM
	Last       []Step            `json:"last,omitempty"`     // of serve: done at SHUTDOWN
}

// DaemonName is the command line of the process that the step daemon leaves running.
const DaemonName = "conformance-daemon"

// Chunk is a part of a request body that is sent by itself.
type Chunk struct {
	AfterMS int64  `json:"afterMs,omitempty"` // the pause before it
	Data    string `json:"data,omitempty"`
	N       int64  `json:"n,omitempty"` // that many letters instead of Data
}

// Entry is one line of the journal: what became of a step, or an event that came.
type Entry struct {
	Who     string            `json:"who"`            // "runtime" or the extension's name
	Play    string            `json:"play,omitempty"` // of the event whose step it was
	Name    string            `json:"name"`
	PID     int               `json:"pid"`
	Start   int               `json:"start"` // which start of this actor it was, from 1
	Began   int64             `json:"began"` // Unix time in microseconds
	At      int64             `json:"at"`    // when it was done, the same
	Error   string            `json:"error,omitempty"`
	Errno   int               `json:"errno,omitempty"` // of Error, if it is one of a system call
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // names in Go's canonical form
	Text    string            `json:"text,omitempty"`
	List    []string          `json:"list,omitempty"`
	N       int64             `json:"n,omitempty"`
	Times   []int64           `json:"times,omitempty"` // Unix times in microseconds
}

// Fail notes err in the entry, and its errno if it has one. A nil err is no failure.
func (e *Entry) Fail(err error) {
	if err == nil {
		return
	}
	e.Error = err.Error()
	var errno syscall.Errno
	if errors.As(err, &errno) {
		e.Errno = int(errno)
	}
}

// Took is the time from the beginning of the step to its end.
func (e Entry) Took() time.Duration { return time.Duration(e.At-e.Began) * time.Microsecond }

// ExtensionEvent is what an extension is told when it asks for its next event.
type ExtensionEvent struct {
	EventType, RequestID, InvokedFunctionARN, ShutdownReason string
	DeadlineMs                                               int64 // Unix time in milliseconds
	Tracing                                                  *struct{ Type, Value string }
}

// Event is the event of an entry that the step serve has left.
func (e Entry) Event() (ExtensionEvent, error) {
	var event ExtensionEvent
	if err := json.Unmarshal([]byte(e.Text), &event); err != nil {
		return event, fmt.Errorf("event %q of %s: %w", e.Text, e.Who, err)
	}
	return event, nil
}

// mark begins the printed form of an entry. The entry follows as JSON.
const mark = "CONFORMANCE "

// Print returns the printed form of the entry, a line.
func (e Entry) Print() string { return mark + Encode(e) + "\n" }

// ParsePrinted finds an entry in a line of a log, and reports whether there is one. The log
// may be text, or JSON with a "record" that is the printed line.
func ParsePrinted(line string) (Entry, bool) {
	if strings.HasPrefix(line, "{") {
		var event struct{ Record any }
		if json.Unmarshal([]byte(line), &event) != nil {
			return Entry{}, false
		}
		line, _ = event.Record.(string)
	}
	_, text, found := strings.Cut(line, mark)
	if !found {
		return Entry{}, false
	}
	var e Entry
	err := json.Unmarshal([]byte(text), &e)
	return e, err == nil
}

// Printed returns the entries that an actor has printed into a log under a name, in their
// order.
func Printed(log, who, name string) Entries {
	var list Entries
	for line := range strings.Lines(log) {
		if e, ok := ParsePrinted(line); ok && e.Who == who && e.Name == name {
			list = append(list, e)
		}
	}
	return list
}

// Entries are parts of a journal, in the order in which they were written.
type Entries []Entry

// Named returns the entries with a name.
func (l Entries) Named(name string) Entries {
	return l.filter(func(e Entry) bool { return e.Name == name })
}

// By returns the entries of one actor.
func (l Entries) By(who string) Entries {
	return l.filter(func(e Entry) bool { return e.Who == who })
}

// Of returns the entries of one play.
func (l Entries) Of(play string) Entries {
	return l.filter(func(e Entry) bool { return e.Play == play })
}

func (l Entries) filter(keep func(Entry) bool) Entries {
	var out Entries
	for _, e := range l {
		if keep(e) {
			out = append(out, e)
		}
	}
	return out
}

// Encode returns v, a value of this package, as JSON text. These types hold nothing
// that cannot be encoded.
func Encode(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
