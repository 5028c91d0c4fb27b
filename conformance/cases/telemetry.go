package cases

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

const (
	telemetryPath = "/2022-07-01/telemetry"
	logsPath      = "/2020-08-15/logs"
	allTypes      = `"types":["platform","function","extension"]`
	sinkPort      = 4243
	tcpPort       = 4244
)

// subscription is the body of a subscription over HTTP.
func subscription(more string) string {
	return fmt.Sprintf(`{"schemaVersion":"2022-12-13",%s,"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:%d/path"}%s}`, allTypes, sinkPort, more)
}

// subscribe is an identified subscription.
func subscribe(name, path, body string) step { return identified(put(name, path, body)) }

// refusedBodies are subscriptions that are not valid, by the name of their step.
var refusedBodies = map[string]string{
	"no types":   `{"schemaVersion":"2022-12-13","types":[],"destination":{"protocol":"HTTP","URI":"http://sandbox:4243"}}`,
	"bad type":   `{"schemaVersion":"2022-12-13","types":["all"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4243"}}`,
	"no schema":  `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4243"}}`,
	"bad schema": `{"schemaVersion":"2021-01-01","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4243"}}`,
	"https":      `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"https://sandbox:4243"}}`,
	"no port":    `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox"}}`,
	"API port":   `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:9001"}}`,
	"other host": `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://example.com:4243"}}`,
	"few items":  subscription(`,"buffering":{"maxItems":999}`),
	"many bytes": subscription(`,"buffering":{"maxBytes":1048577}`),
	"short time": subscription(`,"buffering":{"timeoutMs":24}`),
	"no JSON":    `{`,
}

// subscribers has an extension for HTTP, one for TCP and one for the Logs API, and a
// runtime that prints in its init.
var subscribers = &suite.Setup{Name: "telemetry", Timeout: 5, Runtime: starts(steps(print("printed in init\n"))), Extensions: map[string][][]step{
	"http": starts(append(refusedSteps(),
		step{Op: "listen", Name: "telemetry", Method: "http", N: sinkPort},
		put("no identifier", telemetryPath, subscription("")),
		identified(get("wrong method", telemetryPath)),
		subscribe("subscribed", telemetryPath, subscription(`,"buffering":{"timeoutMs":25,"maxItems":1000,"maxBytes":262144},"unknown":1`)),
		subscribe("again", telemetryPath+"/", subscription(`,"buffering":{"timeoutMs":25}`)),
		subscribe("both APIs", logsPath, strings.Replace(subscription(""), "2022-12-13", "2020-08-15", 1)),
		serve(0, print("extension line\n")))),
	"tcp": starts(steps(registerAs(both),
		subscribe("refused", telemetryPath, `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"TCP","port":4999}}`),
		step{Op: "listen", Name: "lines", Method: "tcp", N: tcpPort},
		subscribe("subscribed", telemetryPath, fmt.Sprintf(`{"schemaVersion":"2022-07-01","types":["platform","platform","function"],"destination":{"protocol":"TCP","port":%d},"buffering":{"timeoutMs":25}}`, tcpPort)),
		serve(0))),
	"logs": starts(steps(registerAs(both),
		step{Op: "listen", Name: "logs", Method: "http", N: 4245},
		subscribe("bad", logsPath, `{"types":[],"destination":{"protocol":"HTTP","URI":"http://sandbox:4245"}}`),
		subscribe("subscribed", logsPath, `{"schemaVersion":"2021-03-18","types":["platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4245"},"buffering":{"timeoutMs":25}}`),
		onShutdown(serve(0), sleep(300)))), // what was held back still comes
}}

func refusedSteps() []step {
	list := steps(registerAs(both))
	for name, body := range refusedBodies {
		list = append(list, subscribe(name, telemetryPath, body))
	}
	return list
}

// isoTime is the form of times (TL-24).
var isoTime = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$`)

// record is one event of telemetry.
type record struct {
	Time, Type string
	Record     json.RawMessage
	raw        script.Entry
}

func (r record) fields(t *suite.T) map[string]any {
	var m map[string]any
	if err := json.Unmarshal(r.Record, &m); err != nil {
		t.Fatalf("record of %s: %s: %v", r.Type, r.Record, err)
	}
	return m
}

// delivered lets an invocation happen, waits until a subscriber, given by the name of its
// listener, has been told of its end, and returns all that this subscriber got.
func delivered(t *suite.T, listener string) (string, []record) {
	payload, _ := t.Event(false, print("function line\n"), print(`{"level":"INFO","message":"object"}`+"\n"), step{Op: "write", Path: "/tmp/x", Data: "x"})
	id := t.Invoke(payload).ID()
	var list []record
	t.Until(func() bool {
		t.Play(sleep(50)) // thawed, so that the batch can come
		list = records(t, listener)
		return slices.ContainsFunc(list, func(r record) bool {
			return r.Type == "platform.report" && strings.Contains(string(r.Record), id)
		})
	})
	if len(list) == 0 {
		t.Fatalf("no event came to %s", listener)
	}
	return id, list
}

// records are the events that a listener has taken so far.
func records(t *suite.T, listener string) (list []record) {
	for _, e := range t.Journal().Named(listener) {
		r := record{raw: e}
		if err := json.Unmarshal([]byte(e.Text), &r); err != nil {
			t.Fatalf("event %q: %v", e.Text, err)
		}
		list = append(list, r)
	}
	return list
}

// find returns the first event of a type, of a request if id is not empty.
func find(t *suite.T, list []record, kind, id string) record {
	for _, r := range list {
		if r.Type == kind && (id == "" || strings.Contains(string(r.Record), id)) {
			return r
		}
	}
	t.Fatalf("no %s came", kind)
	return record{}
}

// hasFields checks one platform record that came over HTTP: members that must be there.
func hasFields(kind string, ofRequest bool, names ...string) func(*suite.T) {
	return func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		if !ofRequest {
			id = ""
		}
		m := find(t, list, kind, id).fields(t)
		for _, name := range names {
			if _, there := m[name]; !there {
				t.Errorf("%s has no %s: %v", kind, name, m)
			}
		}
		for k, v := range m {
			if v == nil {
				t.Errorf("%s of %s is null", k, kind)
			}
		}
	}
}

func subscribed(t *suite.T, who, name string, status int, texts ...string) {
	t.Status(t.Journal().By(who), name, status, texts...)
}

// telemetry is section 3.
var telemetry = []suite.Case{
	{ID: "TL-01", Setup: subscribers, Run: func(t *suite.T) {
		subscribed(t, "http", "no identifier", 403, "Extension.MissingExtensionIdentifier")
		subscribed(t, "http", "wrong method", 405)
		subscribed(t, "http", "again", 200)
	}},
	{ID: "TL-02", Setup: subscribers, Run: func(t *suite.T) { subscribed(t, "http", "subscribed", 200) }},
	{ID: "TL-03", Setup: subscribers, Run: refusals("no schema", "bad schema")},
	{ID: "TL-04", Setup: subscribers, Run: refusals("no types", "bad type")},
	{ID: "TL-05", Setup: subscribers, Run: refusals("https", "no port", "API port", "other host")},
	{ID: "TL-06", Setup: subscribers, Run: refusals("few items", "many bytes", "short time")},
	{ID: "TL-08", Setup: subscribers, Run: func(t *suite.T) {
		subscribed(t, "http", "subscribed", 200, `"OK"`)
		subscribed(t, "http", "again", 200, `"OK"`)
	}},
	{ID: "TL-09", Setup: subscribers, Run: func(t *suite.T) {
		refusals("no JSON")(t)
		subscribed(t, "http", "no port", 400, "URI port is not provided")
		subscribed(t, "http", "no types", 400, "types should not be empty")
		subscribed(t, "logs", "bad", 400, "Logs.ValidationError")
	}},
	{ID: "TL-10", Setup: &suite.Setup{Name: "late subscription", Extensions: map[string][][]step{"late": starts(steps(registerAs(both), serve(1),
		subscribe("telemetry", telemetryPath, subscription("")), subscribe("logs", logsPath, strings.Replace(subscription(""), "2022-12-13", "2020-08-15", 1)), serve(0)))}},
		Run: func(t *suite.T) {
			t.Invoke("1")
			t.Invoke("2")
			subscribed(t, "late", "telemetry", 403, "Telemetry.SubscriptionClosed", "Telemetry API subscription is closed already")
			subscribed(t, "late", "logs", 403, "Logs.SubscriptionClosed", "Logs API subscription is closed already")
		}},
	{ID: "TL-11", Setup: &suite.Setup{Name: "offered or not", Extensions: map[string][][]step{"asks": starts(steps(registerAs(both),
		subscribe("telemetry", telemetryPath, subscription("")), serve(0)))}}, Run: func(t *suite.T) {
		e := t.One(t.Journal().By("asks"), "telemetry")
		if e.Status != 200 { // where it is offered there is nothing to see
			t.Status(script.Entries{e}, "telemetry", 202, "Telemetry.NotSupported", "Telemetry API is not supported")
		}
	}},
	{ID: "TL-12", Setup: subscribers, Run: func(t *suite.T) { subscribed(t, "http", "both APIs", 400) }},
	{ID: "TL-13", Setup: subscribers, Run: func(t *suite.T) {
		subscribed(t, "tcp", "refused", 400)
		subscribed(t, "tcp", "subscribed", 200)
	}},
	{ID: "TL-14", Setup: subscribers, Run: func(t *suite.T) {
		delivered(t, "telemetry")
		before := len(t.Journal().By("http").Named("subscribed"))
		payload, _ := t.Event(true, exit(1))
		t.Invoke(payload)
		t.Play()
		after := t.Journal().By("http").Named("subscribed")
		if len(after) != before+1 || after[len(after)-1].Status != 200 {
			t.Errorf("%d subscriptions before a reset, %d after it", before, len(after))
		}
	}},
	{ID: "TL-15", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		for _, r := range list {
			if h := r.raw.Headers; h["method"] != "POST" || h["path"] != "/path" || h["type"] != "application/json" {
				t.Fatalf("request %v", h)
			}
		}
	}},
	{ID: "TL-16", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "lines")
		find(t, list, "platform.start", id)
	}},
	{ID: "TL-20", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		suite.Equal(t, "first event", list[0].Type, "platform.initStart")
		find(t, list, "function", "printed in init")
	}},
	{ID: "TL-21", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		find(t, list, "extension", "extension line")
	}},
	{ID: "TL-23", Setup: subscribers, Run: func(t *suite.T) {
		_, j := t.Play(step{Op: "read", Path: "/etc/hosts"})
		if ok, _ := regexp.MatchString(`(?m)^127\.[0-9.]+\s.*\bsandbox\b.*$`, t.One(j, "read").Text); !ok {
			t.Errorf("/etc/hosts: %q", t.One(j, "read").Text)
		}
		t.Contains("/etc/hosts", t.One(j, "read").Text, "sandbox.localdomain")
	}},
	{ID: "TL-24", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		for _, r := range list {
			if !isoTime.MatchString(r.Time) {
				t.Errorf("time %q of %s", r.Time, r.Type)
			}
		}
	}},
	{ID: "TL-25", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		var line string
		if err := json.Unmarshal(find(t, list, "function", "function line").Record, &line); err != nil || strings.TrimSpace(line) != "function line" {
			t.Errorf("record %q, %v", line, err)
		}
	}},
	{ID: "TL-27", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		metrics, _ := find(t, list, "platform.report", id).fields(t)["metrics"].(map[string]any)
		d, ok := metrics["durationMs"].(float64)
		if !ok || math.Abs(d*1000-math.Round(d*1000)) > 1e-6 {
			t.Errorf("durationMs %v", metrics["durationMs"])
		}
	}},
	{ID: "TL-28", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		suite.Equal(t, "status", fmt.Sprint(find(t, list, "platform.report", id).fields(t)["status"]), "success")
	}},
	{ID: "TL-29", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		m := find(t, list, "platform.initStart", "").fields(t)
		suite.Equal(t, "initStart", fmt.Sprint(m["initializationType"], m["phase"]), "on-demandinit")
	}},
	{ID: "TL-30", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		spans, _ := json.Marshal(find(t, list, "platform.runtimeDone", id).fields(t)["spans"])
		for _, name := range []string{"responseLatency", "responseDuration", "runtimeOverhead"} {
			t.Contains("spans", string(spans), name)
		}
	}},
	{ID: "TL-32", Setup: subscribers, Run: hasFields("platform.initStart", false, "initializationType", "phase", "functionName", "functionVersion", "instanceId", "instanceMaxMemory")},
	{ID: "TL-33", Setup: subscribers, Run: hasFields("platform.initRuntimeDone", false, "initializationType", "phase", "status")},
	{ID: "TL-34", Setup: subscribers, Run: hasFields("platform.initReport", false, "initializationType", "phase", "metrics", "status")},
	{ID: "TL-35", Setup: subscribers, Run: hasFields("platform.start", true, "requestId", "version")},
	{ID: "TL-36", Setup: subscribers, Run: hasFields("platform.runtimeDone", true, "requestId", "status", "metrics")},
	{ID: "TL-37", Setup: subscribers, Run: hasFields("platform.report", true, "requestId", "status", "metrics")},
	{ID: "TL-41", Setup: subscribers, Run: hasFields("platform.extension", false, "name", "state", "events")},
	{ID: "TL-42", Setup: subscribers, Run: hasFields("platform.telemetrySubscription", false, "name", "state", "types")},
	{ID: "TL-44", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		m := find(t, list, "platform.initStart", "").fields(t)
		suite.Equal(t, "instanceMaxMemory", fmt.Sprint(m["instanceMaxMemory"]), fmt.Sprint(float64(1769<<20)))
	}},
	{ID: "TL-45", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		metrics, _ := find(t, list, "platform.runtimeDone", id).fields(t)["metrics"].(map[string]any)
		if n, _ := metrics["producedBytes"].(float64); n == 0 {
			t.Errorf("metrics %v of an invocation that answered", metrics)
		}
	}},
	{ID: "TL-46", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "telemetry")
		spans, _ := json.Marshal(find(t, list, "platform.report", id).fields(t)["spans"])
		t.Contains("spans", string(spans), "extensionOverhead")
	}},
	{ID: "TL-48", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "lines") // schema 2022-07-01: always a string
		if r := find(t, list, "function", "object"); !strings.HasPrefix(string(r.Record), `"`) {
			t.Errorf("record %s", r.Record)
		}
	}},
	{ID: "TL-49", Setup: subscribers, Run: func(t *suite.T) {
		id, list := delivered(t, "logs")
		for _, kind := range []string{"platform.start", "platform.end", "platform.report", "platform.runtimeDone"} {
			find(t, list, kind, id)
		}
		find(t, list, "platform.logsSubscription", "")
		find(t, list, "platform.extension", "")
	}},
	{ID: "TL-50", Setup: subscribers, Run: func(t *suite.T) {
		payload, _ := t.Event(true, exit(1))
		id := t.Invoke(payload).ID()
		_, list := delivered(t, "logs")
		t.Contains("fault", string(find(t, list, "platform.fault", id).Record), "Runtime exited with error: exit status 1")
	}},
	{ID: "TL-51", Setup: subscribers, Run: func(t *suite.T) {
		_, list := delivered(t, "telemetry")
		if slices.ContainsFunc(list, func(r record) bool { return r.Type == "platform.end" || r.Type == "platform.fault" }) {
			t.Errorf("platform.end or platform.fault came to a Telemetry subscriber")
		}
	}},
}

// refusals wants subscriptions of refusedBodies to have been refused.
func refusals(names ...string) func(*suite.T) {
	return func(t *suite.T) {
		j := t.Journal().By("http")
		for _, name := range names {
			t.Status(j, name, 400, "ValidationError")
		}
	}
}
