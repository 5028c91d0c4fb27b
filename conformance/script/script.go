// Package script is the language between the conformance suite, which stands outside
// of the environment that it tests, and its actors, which are the function and the
// extensions inside. It is plain data, sent as JSON: steps go in with the files of
// the function, of the layer, and with events; entries of a journal come out.
package script

import "encoding/json"

// File is the name of a runtime's [Program], beside its bootstrap.
const File = "conformance.json"

// Folder is the name of the folder of the programs of the extensions, NAME.json each.
// It lies beside the folder of the extensions.
const Folder = "conformance"

// Program is what one actor does.
type Program struct {
	// Starts has the steps of the first, second, … start of the process within one
	// environment; the last list is for all later ones too. A runtime does them before
	// its first next.
	Starts [][]Step `json:"starts,omitempty"`
}

// Event is the payload of an invocation that the runtime's actor plays. A payload
// without Play and Journal is echoed.
type Event struct {
	Play     string `json:"play,omitempty"`     // marks the entries of this invocation
	Steps    []Step `json:"steps,omitempty"`    // done in order
	Answered bool   `json:"answered,omitempty"` // the steps answer: the actor must not
	Journal  bool   `json:"journal,omitempty"`  // answer with the whole journal, a list of Entry
}

// Step is one thing that an actor does. Op chooses it; actor.operations says what the
// operands mean to it. In Path, Data and Headers {id} stands for the request id of the
// invocation, {previous} for the one before, {nonce} for the invocation id, {ext} for
// the identifier that register got last, {pid} for the process.
type Step struct {
	Op         string            `json:"op"`
	Name       string            `json:"name,omitempty"`       // of the entry that it leaves; Op if empty
	Background bool              `json:"background,omitempty"` // the next step does not wait for this one
	MS         int64             `json:"ms,omitempty"`         // a duration in milliseconds
	N          int64             `json:"n,omitempty"`          // a count, size, signal or status
	Path       string            `json:"path,omitempty"`
	Data       string            `json:"data,omitempty"`
	Method     string            `json:"method,omitempty"`
	Headers    map[string]string `json:"headers,omitempty"`
	Chunks     []Chunk           `json:"chunks,omitempty"`   // a chunked body instead of Data
	Trailers   map[string]string `json:"trailers,omitempty"` // after Chunks
	Steps      []Step            `json:"steps,omitempty"`    // of serve: done at each INVOKE
	Last       []Step            `json:"last,omitempty"`     // of serve: done at SHUTDOWN
}

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
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // names in Go's canonical form
	Text    string            `json:"text,omitempty"`
	List    []string          `json:"list,omitempty"`
	N       int64             `json:"n,omitempty"`
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
