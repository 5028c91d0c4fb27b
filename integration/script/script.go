// Package script is the language in which the end-to-end tests tell the test
// runtime and the test extension what to do, and in which these report back. It is
// plain data, sent as JSON.
package script

import "encoding/json"

// InitVariable names the environment variable that holds the steps of the test
// runtime's initialisation, a JSON list of [Step].
const InitVariable = "TEST_INIT"

// ExtensionVariable is the prefix of the environment variable that holds the
// [Extension] of the test extension with the file name that follows.
const ExtensionVariable = "TEST_EXTENSION_"

// EventLog is the file in which runtime and extensions of one sandbox note what
// happens to them, one [Note] a line. It lies on the /tmp that they share.
const EventLog = "/tmp/events.log"

// Event is an invocation's payload for the test runtime. An event without steps
// is echoed as it came.
type Event struct {
	Steps []Step `json:"steps"`
}

// Step is one thing that the test runtime does. Op chooses it (see the table in
// testruntime/steps.go); the other fields are its operands, and mean what Op says.
type Step struct {
	Op      string            `json:"op"`
	MS      int64             `json:"ms,omitempty"`      // a duration in milliseconds
	N       int64             `json:"n,omitempty"`       // a count, size, signal or status
	Path    string            `json:"path,omitempty"`    // a file, or the path of an API call: {id} and {previous} stand for request ids, and here and in Headers {token} for that of snap-start
	Data    string            `json:"data,omitempty"`    // text to write or send
	Method  string            `json:"method,omitempty"`  // of an API call
	Headers map[string]string `json:"headers,omitempty"` // of an API call
	Argv    []string          `json:"argv,omitempty"`    // a command, or the parts of a body

	Trailers map[string]string `json:"trailers,omitempty"` // of an API call
}

// Result is what became of one step; which fields are set depends on its Op.
type Result struct {
	Op      string            `json:"op"`
	Error   string            `json:"error,omitempty"`
	Errno   int               `json:"errno,omitempty"` // of Error, if it has one
	N       int64             `json:"n,omitempty"`
	MS      int64             `json:"ms,omitempty"`
	Text    string            `json:"text,omitempty"`
	List    []string          `json:"list,omitempty"`
	Times   []int64           `json:"times,omitempty"` // Unix time in milliseconds
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"` // names in Go's canonical form
}

// Report is the answer of the test runtime to an event with steps.
type Report struct {
	ID        string   `json:"id"`        // request id
	PID       int      `json:"pid"`       // of the runtime, inside
	Started   int64    `json:"started"`   // when the process started, Unix time in ns
	Received  int64    `json:"received"`  // when the event came, Unix time in ms
	Deadline  int64    `json:"deadline"`  // of the invocation, Unix time in ms
	LogStream string   `json:"logStream"` // names the sandbox
	Init      []Result `json:"init"`      // of the steps in InitVariable
	Results   []Result `json:"results"`   // of the event's steps
	Previous  []Result `json:"previous"`  // of the invocation before, by this process
}

// Extension is the behaviour of one test extension. The zero value registers for
// nothing, calls next once and waits for ever.
type Extension struct {
	Events          []string `json:"events"`          // to register for
	RegisterAfterMS int64    `json:"registerAfterMs"` // delay before register
	NextAfterMS     int64    `json:"nextAfterMs"`     // delay between register and the first next
	InvokeMS        int64    `json:"invokeMs"`        // time spent on each INVOKE
	ExitOnInvoke    int      `json:"exitOnInvoke"`    // exits at the INVOKE of this number, counted from 1
	ExitBefore      string   `json:"exitBefore"`      // "register" or "next": exits then
	ExitStatus      int      `json:"exitStatus"`
	InitError       string   `json:"initError"`      // posts init/error of this type after register, then exits
	IgnoreShutdown  bool     `json:"ignoreShutdown"` // goes on after SHUTDOWN and prints heartbeats

	Telemetry *Telemetry `json:"telemetry,omitempty"` // subscribes after register

	// Calls are requests that it makes at the first INVOKE: Method, Path, in which {id}
	// stands for the request id, and Data. What is answered is then in CallLog.
	Calls []Step `json:"calls,omitempty"`
}

// CallLog is the file in which the extension name leaves a list of the [Result] of its
// Calls. It is there when it is complete.
func CallLog(name string) string { return "/tmp/" + name + ".calls" }

// Telemetry is a subscription of the test extension and the listener that goes with
// it. The extension notes "subscribed" with the status of the answer, asks again with
// the first INVOKE and notes "late", and keeps what it gets in TelemetryLog.
type Telemetry struct {
	Path     string `json:"path"`     // of the API
	Body     string `json:"body"`     // of the subscription
	Protocol string `json:"protocol"` // "HTTP" or "TCP": what it listens for
	Port     int    `json:"port"`     // on which it listens
	AnswerMS int64  `json:"answerMs"` // time spent on each POST
}

// TelemetryLog is the file in which the extension name keeps events, each a line that
// is a [Delivered].
func TelemetryLog(name string) string { return "/tmp/" + name + ".telemetry" }

// Delivered is one event that a subscriber got.
type Delivered struct {
	Batch  int             `json:"batch"` // number of the POST, 0 with TCP
	Time   string          `json:"time"`
	Type   string          `json:"type"`
	Record json.RawMessage `json:"record"` // a string is cut to 100 bytes
}

// Note is one line of the event log. The same line is printed to standard output
// in the form "NOTE who=W what=X at=T key=value…", which needs no quoting.
type Note struct {
	Who    string            `json:"who"`  // "runtime" or the extension's name
	What   string            `json:"what"` // "start", "register", "registered", "next", "INVOKE", "SHUTDOWN", "heartbeat", "answered", "sigterm", "exit"
	At     int64             `json:"at"`   // Unix time in microseconds
	Values map[string]string `json:"values,omitempty"`
}

// Posture is what a process found itself with when it started.
type Posture struct {
	Env       []string `json:"env"`
	FDs       []string `json:"fds"`       // "number target"
	Status    string   `json:"status"`    // /proc/self/status
	Processes []string `json:"processes"` // in sight, "pid command line"
}

// Encode returns v, a value of this package, as JSON text. These types hold nothing
// that cannot be encoded.
func Encode(v any) string {
	b, _ := json.Marshal(v)
	return string(b)
}
