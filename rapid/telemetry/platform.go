package telemetry

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"time"
)

// Platform is a record of the platform itself: one of the types of this file.
type Platform interface {
	// Type is the name in the event envelope, such as platform.start (TL-24).
	Type() string
	appendText(b []byte, at time.Time) []byte
}

// Phase is the phase of an initialization: its own, or that of an invocation (TL-29).
type Phase string

// The phases of TL-29.
const (
	InitPhase   Phase = "init"
	InvokePhase Phase = "invoke"
)

// Status is how an initialization or invocation ended (TL-28).
type Status string

// The statuses of TL-28.
const (
	Success Status = "success"
	Failure Status = "failure" // the error type begins Sandbox.
	Error   Status = "error"
	Timeout Status = "timeout"
)

// StatusOf returns the status for an error type; for "" that is Success.
func StatusOf(errorType string) Status {
	switch {
	case errorType == "":
		return Success
	case strings.HasPrefix(errorType, "Sandbox."):
		return Failure
	}
	return Error
}

// Millis is a duration that is written in milliseconds with up to three decimals (TL-27).
type Millis time.Duration

// MarshalJSON writes the number of milliseconds.
func (m Millis) MarshalJSON() ([]byte, error) {
	us := float64(time.Duration(m).Microseconds())
	return json.Marshal(us / 1000)
}

func (m Millis) ms() float64 { return float64(m) / float64(time.Millisecond) }

// Billed rounds a duration up to whole milliseconds (LOG-25).
func Billed(d time.Duration) int64 {
	return int64(math.Ceil(float64(d.Microseconds()) / 1000))
}

// Tracing is the trace that an invocation belongs to (TL-31).
type Tracing struct {
	Type  string `json:"type"` // X-Amzn-Trace-Id
	Value string `json:"value"`
}

// NewTracing returns nil for an invocation without a trace header.
func NewTracing(header string) *Tracing {
	if header == "" {
		return nil
	}
	return &Tracing{Type: "X-Amzn-Trace-Id", Value: header}
}

// Span is a part of an invocation's time (TL-30).
type Span struct {
	Name     string    `json:"name"` // responseLatency, responseDuration, runtimeOverhead, extensionOverhead
	Start    Timestamp `json:"start"`
	Duration Millis    `json:"durationMs"`
}

// Timestamp is a time written in UTC with millisecond digits (TL-24).
type Timestamp time.Time

const timeLayout = "2006-01-02T15:04:05.000Z"

func (t Timestamp) append(b []byte) []byte { return time.Time(t).UTC().AppendFormat(b, timeLayout) }

// MarshalJSON writes the time as a JSON string.
func (t Timestamp) MarshalJSON() ([]byte, error) {
	return append(t.append([]byte{'"'}), '"'), nil
}

// InitStart begins an initialization (TL-32, LOG-20).
type InitStart struct {
	InitializationType string `json:"initializationType"`
	Phase              Phase  `json:"phase"`
	RuntimeVersion     string `json:"runtimeVersion,omitempty"`
	RuntimeVersionARN  string `json:"runtimeVersionArn,omitempty"`
	FunctionName       string `json:"functionName,omitempty"`
	FunctionVersion    string `json:"functionVersion,omitempty"`
	InstanceID         string `json:"instanceId,omitempty"`        // log stream name (TL-44)
	InstanceMaxMemory  int64  `json:"instanceMaxMemory,omitempty"` // bytes (TL-44)
	FunctionARN        string `json:"functionArn,omitempty"`       // of managed mode
	Retry              bool   `json:"-"`                           // repeats one that failed, as part of an invocation: no text form
}

// Type implements Platform.
func (*InitStart) Type() string { return "platform.initStart" }

func (r *InitStart) appendText(b []byte, _ time.Time) []byte {
	if r.Retry {
		return b
	}
	return fmt.Appendf(b, "INIT_START Runtime Version: %s\tRuntime Version ARN: %s\n", r.RuntimeVersion, r.RuntimeVersionARN)
}

// InitRuntimeDone reports that the runtime is ready or has failed (TL-33). It has no text
// form.
type InitRuntimeDone struct {
	InitializationType string `json:"initializationType"`
	Phase              Phase  `json:"phase"`
	Status             Status `json:"status"`
	ErrorType          string `json:"errorType,omitempty"`
}

// Type implements Platform.
func (*InitRuntimeDone) Type() string { return "platform.initRuntimeDone" }

func (*InitRuntimeDone) appendText(b []byte, _ time.Time) []byte { return b }

// InitReport ends an initialization (TL-34). It has a text form for failures, and for
// successes that no invocation's report contains (LOG-27).
type InitReport struct {
	InitializationType string      `json:"initializationType"`
	Phase              Phase       `json:"phase"`
	Metrics            InitMetrics `json:"metrics"`
	Status             Status      `json:"status"`
	ErrorType          string      `json:"errorType,omitempty"`
}

// InitMetrics are the metrics of an [InitReport], [RestoreReport] or [ManagedReport].
type InitMetrics struct {
	Duration Millis `json:"durationMs"`
}

// Type implements Platform.
func (*InitReport) Type() string { return "platform.initReport" }

func (r *InitReport) appendText(b []byte, _ time.Time) []byte {
	if r.Status == Success && r.InitializationType != "provisioned-concurrency" && r.InitializationType != "snap-start" {
		return b
	}
	b = fmt.Appendf(b, "INIT_REPORT Init Duration: %.2f ms\tPhase: %s", r.Metrics.Duration.ms(), r.Phase)
	if r.Status != Success {
		b = fmt.Appendf(b, "\tStatus: %s", r.Status)
	}
	if r.ErrorType != "" {
		b = fmt.Appendf(b, "\tError Type: %s", oneLine(r.ErrorType))
	}
	return append(b, '\n')
}

// RestoreStart begins a restore (TL-38, LOG-32).
type RestoreStart struct {
	FunctionName      string `json:"functionName"`
	FunctionVersion   string `json:"functionVersion"`
	InstanceID        string `json:"instanceId,omitempty"`        // log stream name (TL-44)
	InstanceMaxMemory int64  `json:"instanceMaxMemory,omitempty"` // bytes (TL-44)
	RuntimeVersion    string `json:"runtimeVersion,omitempty"`
	RuntimeVersionARN string `json:"runtimeVersionArn,omitempty"`
}

// Type implements Platform.
func (*RestoreStart) Type() string { return "platform.restoreStart" }

func (r *RestoreStart) appendText(b []byte, _ time.Time) []byte {
	return fmt.Appendf(b, "RESTORE_START Runtime Version: %s\tRuntime Version ARN: %s\n", r.RuntimeVersion, r.RuntimeVersionARN)
}

// RestoreRuntimeDone reports that the runtime's hooks after a restore have succeeded or
// failed (TL-39). It has no text form.
type RestoreRuntimeDone struct {
	Status    Status `json:"status"`
	ErrorType string `json:"errorType,omitempty"`
}

// Type implements Platform.
func (*RestoreRuntimeDone) Type() string { return "platform.restoreRuntimeDone" }

func (*RestoreRuntimeDone) appendText(b []byte, _ time.Time) []byte { return b }

// RestoreReport ends a restore (TL-40, LOG-32).
type RestoreReport struct {
	Status    Status      `json:"status"`
	ErrorType string      `json:"errorType,omitempty"`
	Metrics   InitMetrics `json:"metrics"`
}

// Type implements Platform.
func (*RestoreReport) Type() string { return "platform.restoreReport" }

func (r *RestoreReport) appendText(b []byte, _ time.Time) []byte {
	b = fmt.Appendf(b, "RESTORE_REPORT Restore Duration: %.2f ms", r.Metrics.Duration.ms())
	if r.Status != Success {
		b = fmt.Appendf(b, "\tStatus: %s", r.Status)
	}
	if r.ErrorType != "" {
		b = fmt.Appendf(b, "\tError Type: %s", oneLine(r.ErrorType))
	}
	return append(b, '\n')
}

// Extension describes one agent at the end of an initialization (TL-41, LOG-30).
type Extension struct {
	Name      string   `json:"name"`
	State     string   `json:"state"`
	Events    []string `json:"events"` // sorted
	ErrorType string   `json:"errorType,omitempty"`
}

// Type implements Platform.
func (*Extension) Type() string { return "platform.extension" }

func (r *Extension) appendText(b []byte, _ time.Time) []byte {
	b = fmt.Appendf(b, "EXTENSION\tName: %s\tState: %s\tEvents: [%s]", oneLine(r.Name), r.State, strings.Join(r.Events, ", "))
	if r.ErrorType != "" {
		b = fmt.Appendf(b, "\tError Type: %s", oneLine(r.ErrorType))
	}
	return append(b, '\n')
}

// Subscribed reports that an agent has subscribed (TL-42, LOG-31).
type Subscribed struct {
	API   API      `json:"-"`
	Name  string   `json:"name"`
	State string   `json:"state"` // Subscribed
	Types []Source `json:"types"`
}

// Type implements Platform.
func (r *Subscribed) Type() string {
	if r.API == LogsAPI {
		return "platform.logsSubscription"
	}
	return "platform.telemetrySubscription"
}

func (r *Subscribed) appendText(b []byte, _ time.Time) []byte {
	names := make([]string, len(r.Types))
	for i, t := range r.Types {
		names[i] = strings.ToUpper(string(t[:1])) + string(t[1:])
	}
	return fmt.Appendf(b, "%s\tName: %s\tState: %s\tTypes: [%s]\n", strings.ToUpper(string(r.API)), oneLine(r.Name), r.State, strings.Join(names, ", "))
}

// Start begins an invocation (TL-35, LOG-21).
type Start struct {
	RequestID string   `json:"requestId"`
	Version   string   `json:"version,omitempty"`
	Tracing   *Tracing `json:"tracing,omitempty"`
	TenantID  string   `json:"tenantId,omitempty"`

	FunctionARN string `json:"functionArn,omitempty"` // of managed mode
}

// Type implements Platform.
func (*Start) Type() string { return "platform.start" }

func (r *Start) appendText(b []byte, _ time.Time) []byte {
	return fmt.Appendf(b, "START RequestId: %s Version: %s\n", r.RequestID, r.Version)
}

// RuntimeDone reports that the runtime has finished an invocation (TL-36). It has no text
// form.
type RuntimeDone struct {
	RequestID string          `json:"requestId"`
	Status    Status          `json:"status"`
	ErrorType string          `json:"errorType,omitempty"`
	Metrics   *RuntimeMetrics `json:"metrics,omitempty"`
	Spans     []Span          `json:"spans,omitempty"`
	Tracing   *Tracing        `json:"tracing,omitempty"`
	TenantID  string          `json:"tenantId,omitempty"`
}

// RuntimeMetrics are the metrics of a [RuntimeDone] (TL-45).
type RuntimeMetrics struct {
	Duration      Millis `json:"durationMs"`
	ProducedBytes *int64 `json:"producedBytes,omitempty"` // nil when no response was read
}

// Type implements Platform.
func (*RuntimeDone) Type() string { return "platform.runtimeDone" }

func (*RuntimeDone) appendText(b []byte, _ time.Time) []byte { return b }

// Fault reports a failure of the execution environment (TL-50, LOG-29).
type Fault struct {
	RequestID string // "" outside an invocation
	Message   string // of LC-45
	ErrorType string
}

// Type implements Platform.
func (*Fault) Type() string { return "platform.fault" }

// MarshalJSON writes the text: the record of a fault is a string (TL-50).
func (r *Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(string(r.appendText(nil, time.Time{})))
}

func (r *Fault) appendText(b []byte, _ time.Time) []byte {
	if r.RequestID != "" {
		b = fmt.Appendf(b, "RequestId: %s ", r.RequestID)
	}
	return fmt.Appendf(b, "Error: %s\n%s\n", oneLine(r.Message), oneLine(r.ErrorType))
}

// ImageError reports why the program of a container image was not started (LOG-33). It has no
// JSON form: JSON logs have the Fault.
type ImageError struct {
	Message    string
	Entrypoint []string // this and the next two from the image's configuration
	Cmd        []string
	WorkingDir string
}

// Type implements Platform; it is never written.
func (*ImageError) Type() string { return "" }

func (r *ImageError) appendText(b []byte, _ time.Time) []byte {
	words := func(list []string) string { return oneLine(strings.Join(list, ",")) }
	return fmt.Appendf(b, "IMAGE\tLaunch error: %s\tEntrypoint: [%s]\tCmd: [%s]\tWorkingDir: [%s]\n",
		oneLine(r.Message), words(r.Entrypoint), words(r.Cmd), oneLine(r.WorkingDir))
}

// TimedOut reports that an invocation passed its deadline (LOG-28). It has no JSON form: JSON
// logs have the status of the Report.
type TimedOut struct {
	RequestID string
	Timeout   time.Duration // as configured
}

// Type implements Platform; it is never written.
func (*TimedOut) Type() string { return "" }

func (r *TimedOut) appendText(b []byte, at time.Time) []byte {
	b = Timestamp(at).append(b)
	return fmt.Appendf(b, " %s %s\n\n", r.RequestID, r.Message())
}

// Message returns the text of INV-13 and LOG-28, with two decimals for the seconds.
func (r *TimedOut) Message() string {
	return fmt.Sprintf("Task timed out after %.2f seconds", r.Timeout.Seconds())
}

// End ends an invocation in text logs (LOG-22). It has no JSON form (TL-51).
type End struct{ RequestID string }

// Type implements Platform; it is never written.
func (*End) Type() string { return "" }

func (r *End) appendText(b []byte, _ time.Time) []byte {
	return fmt.Appendf(b, "END RequestId: %s\n", r.RequestID)
}

// Report is the summary of an invocation (TL-37, LOG-23).
type Report struct {
	RequestID string        `json:"requestId"`
	Status    Status        `json:"status"`
	ErrorType string        `json:"errorType,omitempty"`
	Metrics   ReportMetrics `json:"metrics"`
	Spans     []Span        `json:"spans,omitempty"`
	Tracing   *Tracing      `json:"tracing,omitempty"`
}

// ManagedReport is the report of an invocation in managed mode (TL-37).
type ManagedReport struct {
	RequestID string      `json:"requestId"`
	Status    Status      `json:"status"`
	ErrorType string      `json:"errorType,omitempty"`
	Metrics   InitMetrics `json:"metrics"`
	Spans     []Span      `json:"spans,omitempty"`
	Tracing   *Tracing    `json:"tracing,omitempty"`
}

// Type implements Platform.
func (*ManagedReport) Type() string { return "platform.report" }

func (r *ManagedReport) appendText(b []byte, _ time.Time) []byte {
	return fmt.Appendf(b, "REPORT RequestId: %s\tDuration: %.2f ms\t\n", r.RequestID, r.Metrics.Duration.ms())
}

// ReportMetrics are the metrics of a [Report].
type ReportMetrics struct {
	Duration        Millis  `json:"durationMs"`
	BilledMillis    int64   `json:"billedDurationMs"`
	MemorySizeMB    int     `json:"memorySizeMB"`
	MaxMemoryUsedMB int     `json:"maxMemoryUsedMB"`
	InitDuration    *Millis `json:"initDurationMs,omitempty"` // nil unless LOG-24 asks for it

	RestoreDuration     *Millis `json:"restoreDurationMs,omitempty"` // nil but in the first report after a restore
	BilledRestoreMillis *int64  `json:"billedRestoreDurationMs,omitempty"`
}

// Type implements Platform.
func (*Report) Type() string { return "platform.report" }

func (r *Report) appendText(b []byte, _ time.Time) []byte {
	m := &r.Metrics
	b = fmt.Appendf(b, "REPORT RequestId: %s\tDuration: %.2f ms\tBilled Duration: %d ms\tMemory Size: %d MB\tMax Memory Used: %d MB\t",
		r.RequestID, m.Duration.ms(), m.BilledMillis, m.MemorySizeMB, m.MaxMemoryUsedMB)
	if m.InitDuration != nil {
		b = fmt.Appendf(b, "Init Duration: %.2f ms\t", m.InitDuration.ms())
	}
	if m.RestoreDuration != nil && m.BilledRestoreMillis != nil {
		b = fmt.Appendf(b, "Restore Duration: %.2f ms\tBilled Restore Duration: %d ms\t", m.RestoreDuration.ms(), *m.BilledRestoreMillis)
	}
	if r.Status != Success {
		b = fmt.Appendf(b, "Status: %s\t", r.Status)
	}
	if r.ErrorType != "" {
		b = fmt.Appendf(b, "Error Type: %s\t", oneLine(r.ErrorType))
	}
	b = append(b, '\n')
	if root, segment, ok := sampled(r.Tracing); ok {
		b = fmt.Appendf(b, "XRAY TraceId: %s\tSegmentId: %s\tSampled: true\t\n", root, segment)
	}
	return b
}

// sampled returns Root and Parent of a trace header. ok is false unless it has Sampled=1.
func sampled(t *Tracing) (root, segment string, ok bool) {
	if t == nil {
		return "", "", false
	}
	for part := range strings.SplitSeq(t.Value, ";") {
		switch key, value, _ := strings.Cut(strings.TrimSpace(part), "="); key {
		case "Root":
			root = oneLine(value)
		case "Parent":
			segment = oneLine(value)
		case "Sampled":
			ok = value == "1"
		}
	}
	return root, segment, ok
}

// LogsDropped reports that records were dropped because a reader is slow (TL-19, TL-43).
type LogsDropped struct {
	Bytes   int64  `json:"droppedBytes"`
	Records int64  `json:"droppedRecords"`
	Reason  string `json:"reason"`
}

// Type implements Platform.
func (*LogsDropped) Type() string { return "platform.logsDropped" }

func (r *LogsDropped) appendText(b []byte, _ time.Time) []byte {
	return fmt.Appendf(b, "LOGS_DROPPED Records: %d\tBytes: %d\tReason: %s\n", r.Records, r.Bytes, r.Reason)
}

// oneLine replaces newlines in text that a process chose, so that the text cannot forge lines
// of the platform.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// appendJSON appends the envelope of TL-24 (LOG-40).
func appendJSON(b []byte, r *Record) []byte {
	if r.Platform.Type() == "" {
		return b
	}
	line, err := json.Marshal(struct {
		Time   Timestamp `json:"time"`
		Type   string    `json:"type"`
		Record Platform  `json:"record"`
	}{Timestamp(r.Time), r.Platform.Type(), r.Platform})
	if err != nil { // no type of this file can fail
		return b
	}
	return append(append(b, line...), '\n')
}
