package cases

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// frameText is what begins a text frame of level INFO (LOG-03).
const (
	frameText    = 0xA55A000F
	frameJSON    = 0xA55A0016 // of level ERROR
	frameOld     = 0xA55A0001
	frameUnknown = 0x12345678
)

func frame(kind int64, ms int64, text string) step {
	return step{Op: "frame", N: kind, MS: ms, Data: text}
}

// framed plays frames and returns the log of the invocation.
func framed(t *suite.T, s ...step) string {
	payload, play := t.Event(false, s...)
	a := t.Invoke(payload, "X-Amz-Log-Type", "Tail")
	for _, e := range t.Journal().Of(play).Named("frame") {
		if e.Error != "" {
			t.Fatalf("frame: %s", e.Error)
		}
	}
	return a.Tail()
}

// frames is section 7.1.
var frames = []suite.Case{
	{ID: "LOG-01", Setup: plain, Run: func(t *suite.T) {
		v, there := variable(runtimeEnv(t), "_LAMBDA_TELEMETRY_LOG_FD")
		if !there {
			t.Fatalf("there is no _LAMBDA_TELEMETRY_LOG_FD")
		}
		if n, err := strconv.Atoi(v); err != nil || n < 1 {
			t.Errorf("_LAMBDA_TELEMETRY_LOG_FD is %q", v)
		}
	}},
	{ID: "LOG-02", Setup: plain, Run: func(t *suite.T) {
		t.Contains("tail", framed(t, frame(frameText, 1_700_000_000_000, "a framed message\n")), "a framed message\n")
	}},
	{ID: "LOG-03", Setup: plain, Run: func(t *suite.T) {
		tail := framed(t, frame(frameText, 1_700_000_000_000, "as text"), frame(frameJSON, 1_700_000_000_000, `{"as":"JSON"}`))
		t.Contains("tail", tail, "as text")
		t.Contains("tail", tail, `{"as":"JSON"}`)
	}},
	{ID: "LOG-04", Setup: plain, Run: func(t *suite.T) {
		t.Contains("tail", framed(t, frame(frameOld, 1_700_000_000_000, "the old kind")), "the old kind")
		framed(t, frame(frameUnknown, 0, "lost"))
		suite.Equal(t, "answer after lost sync", string(t.Invoke("1").Body), "1")
		payload, _ := t.Event(true, exit(1)) // a fresh descriptor for who comes next
		t.Invoke(payload)
	}},
	{ID: "LOG-06", Setup: plain, Run: func(t *suite.T) {
		t.Contains("tail", framed(t, frame(frameText, 1_700_000_000_000, "one\ntwo\n")), "one\ntwo\nEND")
	}},
	{ID: "LOG-09", Setup: plain, Run: func(t *suite.T) {
		t.Contains("tail", framed(t, frame(frameText, 1_700_000_000_000, strings.Repeat("x", 1<<20)+"more"), frame(frameText, 1_700_000_000_000, "after")), "after")
	}},
	{ID: "LOG-10", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(false, print("part\rof one line\n"))
		t.Contains("tail", t.Invoke(payload, "X-Amz-Log-Type", "Tail").Tail(), "part\rof one line\n")
	}},
	{ID: "LOG-12", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, step{Op: "stderr", Data: "words on stderr\n"}, print("last words\n"), exit(1))
		tail := t.Invoke(payload, "X-Amz-Log-Type", "Tail").Tail()
		t.Contains("tail", tail, "words on stderr\n")
		t.Contains("tail", tail, "last words\n")
	}},
	{ID: "LOG-13", Setup: plain, Run: func(t *suite.T) {
		var steps []step
		var want strings.Builder
		for i := range 50 {
			out, err := fmt.Sprintf("%d out\n", i), fmt.Sprintf("%d err\n", i)
			steps = append(steps, print(out), step{Op: "stderr", Data: err})
			want.WriteString(out + err)
		}
		payload, _ := t.Event(false, steps...)
		t.Contains("tail", t.Invoke(payload, "X-Amz-Log-Type", "Tail").Tail(), want.String())
	}},
}

// reportLine is LOG-23. Groups: id, Duration, Billed Duration, Memory Size, Max Memory
// Used, Init Duration, Status, Error Type.
var reportLine = regexp.MustCompile(`^REPORT RequestId: (\S+)\tDuration: (\d+\.\d\d) ms\tBilled Duration: (\d+) ms\tMemory Size: (\d+) MB\tMax Memory Used: (\d+) MB\t` +
	`(?:Init Duration: (\d+\.\d\d) ms\t)?(?:Status: (timeout|error)\t(?:Error Type: (\S+)\t)?)?\n$`)

func number(s string) float64 {
	v, _ := strconv.ParseFloat(s, 64)
	return v
}

// reported is the report of an invocation, by the groups of reportLine.
func reported(t *suite.T, a *suite.Answer) []string {
	line := report(t, a)
	m := reportLine.FindStringSubmatch(line)
	if m == nil {
		t.Fatalf("line %q", line)
	}
	return m
}

const tail, asTail = "X-Amz-Log-Type", "Tail"

// platformLines is section 7.2.
var platformLines = []suite.Case{
	{ID: "LOG-20", Setup: exitsInInit, Run: func(t *suite.T) {
		t.Restart()
		a := t.Invoke("1")
		t.WaitLog("REPORT RequestId: " + a.ID())
		if ok, _ := regexp.MatchString(`INIT_START Runtime Version: \S+\tRuntime Version ARN: \S+\nINIT_REPORT [^\n]*\nSTART RequestId: `+a.ID(), t.Log()); !ok {
			t.Errorf("log %q: want one INIT_START, for the first of two initializations", t.Log())
		}
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		b := t.Invoke("1")
		t.WaitLog("REPORT RequestId: " + b.ID())
		if ok, _ := regexp.MatchString(`INIT_START [^\n]*\nSTART RequestId: `+b.ID(), t.Log()); !ok {
			t.Errorf("log %q: want INIT_START for the initialization after a reset", t.Log())
		}
	}},
	{ID: "LOG-21", Setup: plain, Run: func(t *suite.T) {
		a := t.Invoke("1", tail, asTail)
		t.Contains("tail", a.Tail(), "START RequestId: "+a.ID()+" Version: $LATEST\n")
	}},
	{ID: "LOG-22", Setup: busy, Run: func(t *suite.T) {
		a := t.Invoke("1", tail, asTail)
		t.Contains("tail", a.Tail(), "END RequestId: "+a.ID()+"\nREPORT RequestId: "+a.ID()+"\t")
	}},
	{ID: "LOG-23", Setup: plain, Run: func(t *suite.T) {
		m := reported(t, t.Invoke("1", tail, asTail))
		suite.Equal(t, "Memory Size", m[4], "1769")
		payload, _ := t.Event(true, fault("e", customError, "Lambda-Runtime-Function-Error-Type", "Function.Mine"))
		suite.Equal(t, "Status after an error of the handler", reported(t, t.Invoke(payload, tail, asTail))[7], "")
	}},
	{ID: "LOG-24", Setup: plain, Run: func(t *suite.T) {
		t.Restart()
		if m := reported(t, t.Invoke("1", tail, asTail)); number(m[6]) <= 0 {
			t.Errorf("the first report has no Init Duration: %q", m[0])
		}
		suite.Equal(t, "Init Duration of the second", reported(t, t.Invoke("1", tail, asTail))[6], "")
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		suite.Equal(t, "Init Duration after an inline init", reported(t, t.Invoke("1", tail, asTail))[6], "")
	}},
	{ID: "LOG-25", Setup: plain, Run: func(t *suite.T) {
		t.Restart()
		m := reported(t, t.Invoke("1", tail, asTail))
		if billed := math.Ceil(number(m[6]) + number(m[2])); math.Abs(number(m[3])-billed) > 1 && number(m[3]) != math.Ceil(number(m[2])) {
			t.Errorf("%q: want ceil(Init Duration + Duration) billed", m[0])
		}
		m = reported(t, t.Invoke("1", tail, asTail))
		suite.Equal(t, "Billed Duration", number(m[3]), math.Ceil(number(m[2])))
	}},
	{ID: "LOG-26", Setup: plain, Run: func(t *suite.T) {
		before := number(reported(t, t.Invoke("1", tail, asTail))[5])
		payload, _ := t.Event(false, step{Op: "alloc", N: 100})
		after := number(reported(t, t.Invoke(payload, tail, asTail))[5])
		if after < before+50 || after > 1769 {
			t.Errorf("Max Memory Used %v MB before 100 MB were allocated, %v after", before, after)
		}
	}},
	{ID: "LOG-27", Setup: exitsInInit, Run: func(t *suite.T) {
		t.Restart()
		t.Invoke("1")
		t.WaitLogMatch(`INIT_REPORT Init Duration: \d+\.\d\d ms\tPhase: init\tStatus: error\tError Type: Runtime\.ExitError`)
	}},
	{ID: "LOG-28", Setup: &suite.Setup{Name: "timeout", Timeout: 1}, Run: func(t *suite.T) {
		payload, _ := t.Event(true, sleep(60_000))
		a := t.Invoke(payload, tail, asTail)
		if ok, _ := regexp.MatchString(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z `+a.ID()+` Task timed out after 1\.00 seconds\n\nEND RequestId`, a.Tail()); !ok {
			t.Errorf("tail %q", a.Tail())
		}
	}},
	{ID: "LOG-29", Setup: plain, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		a := t.Invoke(payload, tail, asTail)
		t.Contains("tail", a.Tail(), "RequestId: "+a.ID()+" Error: Runtime exited with error: exit status 1\nRuntime.ExitError\n")
	}},
	{ID: "LOG-30", Setup: watched, Run: func(t *suite.T) {
		t.Invoke("1")
		t.WaitLogMatch(`EXTENSION\tName: b\tState: Ready\tEvents: \[INVOKE, ?SHUTDOWN\]`)
	}},
	{ID: "LOG-31", Setup: subscribers, Run: func(t *suite.T) {
		t.Invoke("1")
		t.WaitLog("TELEMETRY\tName: http\tState: Subscribed\tTypes: [Platform, Function, Extension]")
		t.WaitLog("LOGS\tName: logs\tState: Subscribed\tTypes: [")
	}},
	{ID: "LOG-34", Setup: watched, Run: func(t *suite.T) {
		t.Restart()
		a := t.Invoke("1")
		t.WaitLog("REPORT RequestId: " + a.ID())
		log, at := t.Log(), -1
		for _, part := range []string{"INIT_START", "line of a.sh", "EXTENSION\t", "START RequestId: " + a.ID(), "END RequestId: " + a.ID(), "REPORT RequestId: " + a.ID()} {
			i := strings.Index(log, "\n"+part)
			if i < 0 && strings.HasPrefix(log, part) {
				i = 0
			}
			if i < at || i < 0 {
				t.Errorf("%q is at %d, after what should follow it (%d)", part, i, at)
			}
			at = i
		}
	}},
	{ID: "LOG-35", Setup: watched, Run: func(t *suite.T) {
		t.Invoke("1")
		t.WaitLog("\nline of a.sh\n")
	}},
}

// inJSON has the log format JSON.
var inJSON = &suite.Setup{Name: "log format JSON", Args: []string{"--log-format", "JSON"}, Runtime: starts(lookAround)}

// jsonTail is the tail of an invocation, by the type of its records.
func jsonTail(t *suite.T, a *suite.Answer) map[string]map[string]any {
	records := make(map[string]map[string]any)
	for line := range strings.Lines(a.Tail()) {
		var r struct {
			Time, Type string
			Record     map[string]any
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			continue // of the function, which may print what it likes
		}
		if r.Type != "" {
			records[r.Type] = r.Record
		}
	}
	return records
}

// jsonLines is section 7.3.
var jsonLines = []suite.Case{
	{ID: "LOG-40", Setup: inJSON, Run: func(t *suite.T) {
		a := t.Invoke("1", tail, asTail)
		records := jsonTail(t, a)
		for _, kind := range []string{"platform.start", "platform.report"} {
			suite.Equal(t, "requestId of "+kind, fmt.Sprint(records[kind]["requestId"]), a.ID())
		}
		if _, there := records["platform.report"]["metrics"].(map[string]any); !there {
			t.Errorf("platform.report %v has no metrics", records["platform.report"])
		}
	}},
	{ID: "LOG-42", Setup: inJSON, Run: func(t *suite.T) {
		const line = `{"timestamp":"2026-01-01T00:00:00Z","level":"INFO","message":"m","mine":[1, 2]}` + "\n"
		payload, _ := t.Event(false, print(line))
		t.Contains("tail", t.Invoke(payload, tail, asTail).Tail(), line)
	}},
	{ID: "LOG-44", Setup: inJSON, Run: func(t *suite.T) {
		payload, _ := t.Event(false, print(strings.Repeat(`{"message":"0123456789"}`+"\n", 300)))
		text := t.Invoke(payload, tail, asTail).Tail()
		if len(text) > 4096 || !strings.HasPrefix(text, "{") {
			t.Errorf("tail of %d bytes begins with %.20q", len(text), text)
		}
	}},
	{ID: "LOG-45", Setup: inJSON, Run: func(t *suite.T) {
		wantEnv(t, runtimeEnv(t), map[string]string{"AWS_LAMBDA_LOG_FORMAT": "JSON"})
	}},
}
