package telemetry

import (
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

const testAPIPort = 9001

// TL-02 to TL-07, TL-09: what a subscription may say, and every violation by name.
func TestParseSubscription(t *testing.T) {
	const http = `"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:4323/x?y=z"}`
	const base = `"schemaVersion":"2022-12-13","types":["platform"],`
	for _, tt := range []struct {
		name string
		api  API
		body string
		want string // the error, "" for none
	}{
		{"full", TelemetryAPI, `{` + base + http + `,"buffering":{"maxItems":1000,"maxBytes":1048576,"timeoutMs":25}}`, ""},
		{"short host, extra members", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sandbox:1","method":"POST","encoding":"JSON"},"more":[1]}`, ""},
		{"tcp", TelemetryAPI, `{` + base + `"destination":{"protocol":"TCP","port":65535}}`, ""},
		{"oldest", TelemetryAPI, `{"schemaVersion":"2022-07-01","types":["function","function"],` + http + `}`, ""},
		{"newest", TelemetryAPI, `{"schemaVersion":"2025-01-29","types":["extension"],` + http + `}`, ""},
		{"logs without version", LogsAPI, `{"types":["platform"],` + http + `}`, ""},
		{"logs with runtimeDone", LogsAPI, `{"schemaVersion":"2021-03-18","types":["platform"],` + http + `}`, ""},

		{"two violations", TelemetryAPI, `{"schemaVersion":"2022-12-13","types":[],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain"}}`,
			"types should not be empty; URI port is not provided"},
		{"no version", TelemetryAPI, `{"types":["platform"],` + http + `}`, "schemaVersion should be one of 2022-07-01, 2022-12-13, 2025-01-29"},
		{"version of the other API", LogsAPI, `{"schemaVersion":"2022-12-13","types":["platform"],` + http + `}`, "schemaVersion should be one of 2020-08-15, 2021-03-18"},
		{"unknown types", TelemetryAPI, `{"schemaVersion":"2022-12-13","types":["x","y"],` + http + `}`, "types should be platform, function or extension"},
		{"no destination", TelemetryAPI, `{"schemaVersion":"2022-12-13","types":["platform"]}`, "protocol should be HTTP or TCP"},
		{"no URI", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP"}}`, "URI is not provided"},
		{"https", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"https://sandbox:1"}}`, "URI scheme should be http"},
		{"outside", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://169.254.169.254:80/"}}`, "URI host should be sandbox.localdomain"},
		{"localhost", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://127.0.0.1:80/"}}`, "URI host should be sandbox.localdomain"},
		{"user", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sandbox:1@evil:80/"}}`, "URI is not valid"},
		{"no URI at all", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sand box:x"}}`, "URI is not valid"},
		{"the API's port", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sandbox:9001"}}`, "port 9001 is that of the Runtime API"},
		{"the API's port by TCP", TelemetryAPI, `{` + base + `"destination":{"protocol":"TCP","port":9001}}`, "port 9001 is that of the Runtime API"},
		{"port 0", TelemetryAPI, `{` + base + `"destination":{"protocol":"TCP","port":0}}`, "port should be between 1 and 65535"},
		{"port too high", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sandbox:65536"}}`, "port should be between 1 and 65535"},
		{"port far too high", TelemetryAPI, `{` + base + `"destination":{"protocol":"HTTP","URI":"http://sandbox:99999999999999999999"}}`, "port should be between 1 and 65535"},
		{"no port", TelemetryAPI, `{` + base + `"destination":{"protocol":"TCP"}}`, "port is not provided"},
		{"low limits", TelemetryAPI, `{` + base + http + `,"buffering":{"maxItems":999,"maxBytes":262143,"timeoutMs":24}}`,
			"maxItems should be between 1000 and 10000; maxBytes should be between 262144 and 1048576; timeoutMs should be between 25 and 30000"},
		{"high limits", TelemetryAPI, `{` + base + http + `,"buffering":{"maxItems":10001,"maxBytes":1048577,"timeoutMs":30001}}`,
			"maxItems should be between 1000 and 10000; maxBytes should be between 262144 and 1048576; timeoutMs should be between 25 and 30000"},
		{"method", LogsAPI, `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:1","method":"GET"}}`, "method should be POST or PUT"},
		{"no JSON", TelemetryAPI, `{`, "subscription is not valid JSON of the documented form: unexpected end of JSON input"},
		{"empty", TelemetryAPI, ``, "subscription is not valid JSON of the documented form: unexpected end of JSON input"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := ParseSubscription(tt.api, []byte(tt.body), testAPIPort)
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != tt.want || (s == nil) != (tt.want != "") {
				t.Errorf("%+v, error %q, want %q", s, got, tt.want)
			}
		})
	}
}

func subscription(t *testing.T, api API, body string) *Subscription {
	t.Helper()
	s, err := ParseSubscription(api, []byte(body), testAPIPort)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TL-04, TL-07, TL-15: defaults, and what is taken from the body.
func TestSubscriptionValues(t *testing.T) {
	s := subscription(t, TelemetryAPI, `{"schemaVersion":"2022-12-13","types":["function","platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox:80/p","method":"PUT"}}`)
	if s.MaxItems != 10000 || s.MaxBytes != 262144 || s.Timeout != time.Second || s.Port != 80 || s.Method != "POST" || !slices.Equal(s.Types, []Source{"function", "platform"}) {
		t.Errorf("%+v", s)
	}
	s = subscription(t, LogsAPI, `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:80/p","method":"PUT"}}`)
	if s.Schema != "2020-08-15" || s.Method != "PUT" {
		t.Errorf("%+v", s)
	}
}

// TL-24, TL-25, TL-31, TL-48 to TL-52: how each kind of subscriber sees each record.
func TestEvents(t *testing.T) {
	const dest = `,"types":["platform","function"],"destination":{"protocol":"TCP","port":1}}`
	subs := map[string]*Subscription{
		"2022-07-01": subscription(t, TelemetryAPI, `{"schemaVersion":"2022-07-01"`+dest),
		"2022-12-13": subscription(t, TelemetryAPI, `{"schemaVersion":"2022-12-13"`+dest),
		"2020-08-15": subscription(t, LogsAPI, `{"schemaVersion":"2020-08-15"`+dest),
		"2021-03-18": subscription(t, LogsAPI, `{"schemaVersion":"2021-03-18"`+dest),
	}
	produced := int64(7)
	platform := func(p Platform) Record { return Record{Source: FromPlatform, Platform: p} }
	output := func(s string) Record { return Record{Source: FromFunction, Text: s} }
	for _, tt := range []struct {
		name   string
		record Record
		want   map[string]string // type and record by schema; what is missing is not sent
	}{
		{"line", output("a <b>\n"), map[string]string{"2022-07-01": `"function","record":"a <b>\n"`, "2022-12-13": `"function","record":"a <b>\n"`,
			"2020-08-15": `"function","record":"a <b>\n"`, "2021-03-18": `"function","record":"a <b>\n"`}},
		{"object", output("{\"a\":\n 1}"), map[string]string{"2022-07-01": `"function","record":"{\"a\":\n 1}"`, "2022-12-13": `"function","record":{"a":1}`,
			"2020-08-15": `"function","record":"{\"a\":\n 1}"`, "2021-03-18": `"function","record":"{\"a\":\n 1}"`}},
		{"no object", output("[1]"), map[string]string{"2022-07-01": `"function","record":"[1]"`, "2022-12-13": `"function","record":"[1]"`,
			"2020-08-15": `"function","record":"[1]"`, "2021-03-18": `"function","record":"[1]"`}},
		{"extension not asked for", Record{Source: FromExtension, Text: "x"}, nil},
		{"initStart", platform(&InitStart{InitializationType: "on-demand", Phase: InitPhase}), map[string]string{
			"2022-07-01": `"platform.initStart","record":{"initializationType":"on-demand","phase":"init"}`,
			"2022-12-13": `"platform.initStart","record":{"initializationType":"on-demand","phase":"init"}`}},
		{"start", platform(&Start{RequestID: "i", Version: "v", TenantID: "t"}), map[string]string{
			"2022-07-01": `"platform.start","record":{"requestId":"i","version":"v","tenantId":"t"}`,
			"2022-12-13": `"platform.start","record":{"requestId":"i","version":"v","tenantId":"t"}`,
			"2020-08-15": `"platform.start","record":{"requestId":"i","version":"v"}`, "2021-03-18": `"platform.start","record":{"requestId":"i","version":"v"}`}},
		{"runtimeDone", platform(&RuntimeDone{RequestID: "i", Status: Error, ErrorType: "E", Metrics: &RuntimeMetrics{Duration: Millis(1234567), ProducedBytes: &produced}}), map[string]string{
			"2022-07-01": `"platform.runtimeDone","record":{"requestId":"i","status":"error","errorType":"E","metrics":{"durationMs":1.234,"producedBytes":7}}`,
			"2022-12-13": `"platform.runtimeDone","record":{"requestId":"i","status":"error","errorType":"E","metrics":{"durationMs":1.234,"producedBytes":7}}`,
			"2021-03-18": `"platform.runtimeDone","record":{"requestId":"i","status":"failure"}`}},
		{"report", platform(&Report{RequestID: "i", Status: Success, Metrics: ReportMetrics{Duration: Millis(time.Millisecond), BilledMillis: 1, MemorySizeMB: 2, MaxMemoryUsedMB: 3}}), map[string]string{
			"2022-07-01": `"platform.report","record":{"requestId":"i","status":"success","metrics":{"durationMs":1,"billedDurationMs":1,"memorySizeMB":2,"maxMemoryUsedMB":3}}`,
			"2022-12-13": `"platform.report","record":{"requestId":"i","status":"success","metrics":{"durationMs":1,"billedDurationMs":1,"memorySizeMB":2,"maxMemoryUsedMB":3}}`,
			"2020-08-15": `"platform.report","record":{"metrics":{"durationMs":1,"billedDurationMs":1,"memorySizeMB":2,"maxMemoryUsedMB":3},"requestId":"i"}`,
			"2021-03-18": `"platform.report","record":{"metrics":{"durationMs":1,"billedDurationMs":1,"memorySizeMB":2,"maxMemoryUsedMB":3},"requestId":"i"}`}},
		{"end", platform(&End{RequestID: "i"}), map[string]string{"2020-08-15": `"platform.end","record":{"requestId":"i"}`, "2021-03-18": `"platform.end","record":{"requestId":"i"}`}},
		{"fault", platform(&Fault{RequestID: "i", Message: "Runtime exited with error: exit status 1", ErrorType: "Runtime.ExitError"}), map[string]string{
			"2020-08-15": `"platform.fault","record":"RequestId: i Error: Runtime exited with error: exit status 1\nRuntime.ExitError\n"`,
			"2021-03-18": `"platform.fault","record":"RequestId: i Error: Runtime exited with error: exit status 1\nRuntime.ExitError\n"`}},
		{"timed out", platform(&TimedOut{}), nil},
		{"telemetry subscription", platform(&Subscribed{API: TelemetryAPI, Name: "n", State: "Subscribed", Types: []Source{FromPlatform}}), map[string]string{
			"2022-07-01": `"platform.telemetrySubscription","record":{"name":"n","state":"Subscribed","types":["platform"]}`,
			"2022-12-13": `"platform.telemetrySubscription","record":{"name":"n","state":"Subscribed","types":["platform"]}`}},
		{"logs subscription", platform(&Subscribed{API: LogsAPI, Name: "n", State: "Subscribed", Types: []Source{FromPlatform}}), map[string]string{
			"2020-08-15": `"platform.logsSubscription","record":{"name":"n","state":"Subscribed","types":["platform"]}`,
			"2021-03-18": `"platform.logsSubscription","record":{"name":"n","state":"Subscribed","types":["platform"]}`}},
	} {
		tt.record.Time = time.Date(2022, 10, 12, 0, 1, 15, 64_999_999, time.FixedZone("", 3600))
		for schema, s := range subs {
			want := ""
			if w := tt.want[schema]; w != "" {
				want = `{"time":"2022-10-11T23:01:15.064Z","type":` + w + `}`
			}
			if got, ok := s.event(&tt.record, true); string(got) != want || ok != (want != "") {
				t.Errorf("%s for %s\n got %s\nwant %s", tt.name, schema, got, want)
			}
		}
	}
	object := output(`{"a":1}`)
	if got, _ := subs["2022-12-13"].event(&object, false); !strings.Contains(string(got), `"record":"{`) {
		t.Errorf("a function that logs text has an object: %s", got)
	}
}

// FuzzSubscription: whatever is subscribed to is inside the sandbox and within limits.
func FuzzSubscription(f *testing.F) {
	f.Add(`{"schemaVersion":"2022-12-13","types":["platform","function"],"destination":{"protocol":"HTTP","URI":"http://sandbox.localdomain:4323/x"},"buffering":{"maxItems":1000}}`, false)
	f.Add(`{"types":["extension"],"destination":{"protocol":"TCP","port":4323}}`, true)
	f.Fuzz(func(t *testing.T, body string, logs bool) {
		api := TelemetryAPI
		if logs {
			api = LogsAPI
		}
		s, err := ParseSubscription(api, []byte(body), testAPIPort)
		if err != nil {
			if s != nil || strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%+v, %q", s, err)
			}
			return
		}
		if s.Port < 1 || s.Port > 65535 || s.Port == testAPIPort || len(s.Types) == 0 || len(s.Types) > 3 ||
			s.MaxItems < leastItems || s.MaxItems > mostItems || s.MaxBytes < leastBytes || s.MaxBytes > mostBytes ||
			s.Timeout < leastTimeout*time.Millisecond || s.Timeout > mostTimeout*time.Millisecond {
			t.Errorf("%+v", s)
		}
		if s.Protocol == "HTTP" {
			u, err := url.Parse(s.URI)
			if err != nil || u.Scheme != "http" || u.Hostname() != "sandbox" && u.Hostname() != "sandbox.localdomain" {
				t.Errorf("URI %q: %v", s.URI, err)
			}
			if _, err := newHTTPSender(s, nil, nil).request(t.Context(), nil); err != nil {
				t.Errorf("no request can be made: %v", err)
			}
		}
	})
}
