package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/lambda"
	"github.com/sandboxd/sandboxd/lambda/access"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// desk is a server of a test.
type desk struct {
	*Server
	t       *testing.T
	audit   *bytes.Buffer
	numbers message.Numbers
	worker  error // of the worker's answers
	forgot  []string
}

func newDesk(t *testing.T, change func(*Config)) *desk {
	t.Helper()
	store, err := sqlite.Open(t.Context(), sqlite.Options{Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ring, err := seal.New(bytes.Repeat([]byte{1}, seal.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	keys := access.NewKeys(access.Config{Store: store, Ring: ring, Scope: sigv4.Scope{Region: "us-east-1", Service: "lambda"}})
	t.Cleanup(func() {
		keys.Close()
		store.Close()
	})
	log := logrus.New()
	log.SetOutput(t.Output())
	d := &desk{t: t, audit: &bytes.Buffer{}}
	cfg := Config{
		Keys: keys, Store: store, HostKeys: admin.HostKeys{IDs: ring.IDs()}, Audit: NewAudit(d.audit, true), Log: log,
		Start: 2, SeriesLimit: 3,
		Numbers: func(context.Context, int) (message.Numbers, error) { return d.numbers, d.worker },
		Forget: func(_ context.Context, id string) error {
			d.forgot = append(d.forgot, id)
			return d.worker
		},
		Uploads: func() (int, int) { return 1, 4 },
		Usage: func(context.Context) (Usage, error) {
			return Usage{Functions: 7, MaxFunctions: 9, CodeBytes: 70, MaxCodeBytes: 90, DiskFree: 5000, DiskFloor: 1000}, nil
		},
	}
	if change != nil {
		change(&cfg)
	}
	d.Server = New(cfg)
	return d
}

// ask sends a request and returns the status and the body.
func (d *desk) ask(method, path, body string) (int, string) {
	d.t.Helper()
	rec := httptest.NewRecorder()
	d.ServeHTTP(rec, httptest.NewRequest(method, path, strings.NewReader(body)))
	return rec.Code, rec.Body.String()
}

// An operator's day: a key is made, listed and revoked. The worker has forgotten it before the
// answer, and each step is in the audit log, without the secret.
func TestKeys(t *testing.T) {
	d := newDesk(t, nil)
	var made admin.CreatedKey
	code, text := d.ask("POST", admin.KeysPath, `{"invoke":["a*","b"]}`)
	if err := json.Unmarshal([]byte(text), &made); code != 200 || err != nil || made.Kind != "invoke" || len(made.Secret) != 40 || len(made.ID) != 20 {
		t.Fatalf("%d %s", code, text)
	}
	if code, text := d.ask("POST", admin.KeysPath, `{}`); code != 200 || !strings.Contains(text, `"kind":"admin"`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text := d.ask("GET", admin.KeysPath, ""); code != 200 || strings.Count(text, `"id"`) != 2 || strings.Contains(text, "ecret") || !strings.Contains(text, `["a*","b"]`) {
		t.Errorf("%d %s", code, text)
	}
	if code, text := d.ask("POST", admin.RevokePath, `{"id":"`+made.ID+`"}`); code != 200 || !strings.Contains(text, `"revoked":"2`) {
		t.Errorf("%d %s", code, text)
	}
	if len(d.forgot) != 1 || d.forgot[0] != made.ID {
		t.Errorf("the worker was told of %q", d.forgot)
	}
	for _, c := range []struct {
		path, body, want string
		code             int
	}{
		{admin.RevokePath, `{"id":"AKSDNOBODY"}`, "there is no access key", 404},
		{admin.KeysPath, `{"invoke":["a/b"]}`, "is no name of a function", 400},
		{admin.KeysPath, `{"kind":"root"}`, "unknown field", 400},
		{admin.KeysPath, `nonsense`, "not as it should be", 400},
		{admin.KeysPath, strings.Repeat(" ", maxRequest) + "{}", "not as it should be", 400},
	} {
		if code, text := d.ask("POST", c.path, c.body); code != c.code || !strings.Contains(text, c.want) {
			t.Errorf("%.60s: %d %s", c.body, code, text)
		}
	}
	log := d.audit.String()
	if strings.Contains(log, made.Secret) || strings.Count(log, `"action":"create-key"`) != 2 || !strings.Contains(log, `"action":"revoke-key"`) || !strings.Contains(log, `"key":"`+made.ID+`"`) {
		t.Errorf("audit:\n%s", log)
	}
}

// A revocation that the worker has not confirmed is one, and an error.
func TestRevokeUnconfirmed(t *testing.T) {
	d := newDesk(t, nil)
	var made admin.CreatedKey
	_, text := d.ask("POST", admin.KeysPath, `{"invoke":["*"]}`)
	if err := json.Unmarshal([]byte(text), &made); err != nil {
		t.Fatal(err)
	}
	d.worker = errors.New("it hangs")
	if code, text := d.ask("POST", admin.RevokePath, `{"id":"`+made.ID+`"}`); code != 500 || !strings.Contains(text, "is revoked, but the worker has not confirmed") {
		t.Errorf("%d %s", code, text)
	}
	if _, text := d.ask("GET", admin.KeysPath, ""); !strings.Contains(text, `"revoked":"2`) {
		t.Errorf("%s", text)
	}
	d.worker = nil
	if code, text := d.ask("POST", admin.RevokePath, `{"id":"`+made.ID+`"}`); code != 200 || len(d.forgot) != 2 {
		t.Errorf("repeated: %d %s, %q", code, text, d.forgot)
	}
}

func TestReady(t *testing.T) {
	d := newDesk(t, nil)
	if code, text := d.ask("GET", admin.ReadyPath, ""); code != 200 || text != "ready\n" {
		t.Errorf("%d %s", code, text)
	}
	d.worker = message.ErrNoWorker
	if code, text := d.ask("GET", admin.ReadyPath, ""); code != 503 || !strings.Contains(text, "not ready: the worker does not answer") {
		t.Errorf("%d %s", code, text)
	}
	d = newDesk(t, func(c *Config) { c.HostKeys.Unreadable = 2 })
	if code, text := d.ask("GET", admin.ReadyPath, ""); code != 200 || !strings.Contains(text, "2 secrets") {
		t.Errorf("%d %s", code, text)
	}
}

// series returns the lines of the metrics that have no comment.
func (d *desk) series() map[string]string {
	d.t.Helper()
	code, text := d.ask("GET", admin.MetricsPath, "")
	if code != 200 {
		d.t.Fatalf("%d %s", code, text)
	}
	all := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && line[0] != '#' {
			all[name+"}"] = value
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && line[0] != '#' {
			all[name] = value
		}
	}
	return all
}

func TestMetrics(t *testing.T) {
	d := newDesk(t, nil)
	d.ask("POST", admin.KeysPath, `{}`)
	d.Count(lambda.Call{Action: "lambda:GetFunction", Type: "ResourceNotFoundException", Duration: 20 * time.Millisecond})
	d.Count(lambda.Call{Action: "lambda:GetFunction"})
	d.Count(lambda.Call{Type: "UnrecognizedClientException"})
	durations := make([]uint64, len(message.DurationBounds)+1)
	durations[0], durations[2], durations[len(durations)-1] = 1, 5, 2
	d.numbers = message.Numbers{
		Start: 7, Sandboxes: 5, Idle: 2, Bytes: 640 << 20, Known: 4,
		Total:     message.FunctionNumbers{Invocations: 8, Errors: map[string]uint64{"function": 3, "made up": 9}, Throttles: 2, Seconds: 1.5, Durations: durations},
		Functions: []message.FunctionNumbers{{Name: "a", Invocations: 8, Errors: map[string]uint64{"function": 3}, Throttles: 2, Seconds: 1.5}, {Name: "b"}},
	}
	got := d.series()
	for name, want := range map[string]string{
		`sandboxd_api_requests_total{action="lambda:GetFunction",result="ResourceNotFoundException"}`: "1",
		`sandboxd_api_requests_total{action="lambda:GetFunction",result="ok"}`:                        "1",
		`sandboxd_api_requests_total{action="none",result="UnrecognizedClientException"}`:             "1",
		`sandboxd_api_request_duration_seconds_bucket{le="0.05"}`:                                     "3",
		`sandboxd_access_keys{kind="admin"}`:                                                          "1",
		`sandboxd_access_keys{kind="invoke"}`:                                                         "0",
		`sandboxd_store_updates_total`:                                                                "1",
		`sandboxd_store_damaged`:                                                                      "0",
		`sandboxd_process_starts_total{process="control"}`:                                            "2",
		`sandboxd_process_starts_total{process="worker"}`:                                             "7",
		`sandboxd_uploads{state="running"}`:                                                           "1",
		"sandboxd_functions":                                                                          "7", "sandboxd_functions_limit": "9", "sandboxd_code_bytes": "70", "sandboxd_code_limit_bytes": "90",
		"sandboxd_disk_free_bytes": "5000", "sandboxd_disk_floor_bytes": "1000",
		`sandboxd_uploads{state="waiting"}`:                            "4",
		`sandboxd_worker_up`:                                           "1",
		`sandboxd_sandboxes{state="idle"}`:                             "2",
		`sandboxd_sandboxes{state="busy"}`:                             "3",
		`sandboxd_sandbox_memory_bytes`:                                "6.7108864e+08",
		`sandboxd_functions_known`:                                     "4",
		`sandboxd_invocations_total`:                                   "8",
		`sandboxd_throttles_total`:                                     "2",
		`sandboxd_invocation_errors_total{kind="function"}`:            "3",
		`sandboxd_invocation_errors_total{kind="platform"}`:            "0",
		`sandboxd_invocation_duration_seconds_bucket{le="0.001"}`:      "1",
		`sandboxd_invocation_duration_seconds_bucket{le="0.005"}`:      "6",
		`sandboxd_invocation_duration_seconds_bucket{le="900"}`:        "6",
		`sandboxd_invocation_duration_seconds_bucket{le="+Inf"}`:       "8",
		`sandboxd_invocation_duration_seconds_count`:                   "8",
		`sandboxd_invocation_duration_seconds_sum`:                     "1.5",
		`sandboxd_function_invocations_total{function="a"}`:            "8",
		`sandboxd_function_errors_total{function="a",kind="function"}`: "3",
		`sandboxd_function_throttles_total{function="a"}`:              "2",
		`sandboxd_function_duration_seconds_total{function="a"}`:       "1.5",
		`sandboxd_function_invocations_total{function="b"}`:            "0",
	} {
		if got[name] != want {
			t.Errorf("%s is %q, want %s", name, got[name], want)
		}
	}
	d.worker = errors.New("it hangs")
	if got := d.series(); got["sandboxd_worker_up"] != "0" || got["sandboxd_invocations_total"] != "" || got["sandboxd_store_updates_total"] != "1" {
		t.Errorf("without the worker: %v", got)
	}
}

// SEC-15: a worker that was taken over can make up numbers. It can neither break the metrics nor
// fill the memory of those who collect them.
func TestMetricsWorkerLies(t *testing.T) {
	d := newDesk(t, nil)
	d.numbers = message.Numbers{
		Sandboxes: -5, Idle: 1 << 40,
		Total: message.FunctionNumbers{Seconds: -1, Durations: []uint64{1}},
		Functions: []message.FunctionNumbers{
			{Name: "a", Invocations: 1}, {Name: "a", Invocations: 2}, {Name: "b\n{}\x1b[31m\xff"}, {Name: "c"}, {Name: "d"}, {Name: strings.Repeat("e", 1<<20)},
		},
	}
	got := d.series()
	if got["sandboxd_worker_up"] != "1" || got[`sandboxd_function_invocations_total{function="a"}`] != "1" || len(got) > 60 {
		t.Errorf("%v", got)
	}
	for name := range got {
		if strings.Contains(name, "\x1b") || strings.Contains(name, `function="c"`) || strings.Contains(name, `function="d"`) {
			t.Errorf("%q", name) // beyond SeriesLimit
		}
	}
}

// A line of the audit log has no control characters, whatever a client has sent, and is one
// line.
func TestAudit(t *testing.T) {
	call := lambda.Call{
		Key: "AKSD\x1b[31m", Action: "lambda:GetFunction", ARN: "arn:\n\"x\" \u009b\u2028\xff" + strings.Repeat("y", 5000),
		Status: 404, Type: "ResourceNotFoundException", RequestID: "id-1", Time: time.Now(), Duration: 12 * time.Millisecond,
	}
	for _, asJSON := range []bool{true, false} {
		var b bytes.Buffer
		NewAudit(&b, asJSON).Call(call)
		line := b.String()
		if strings.Count(line, "\n") != 1 || regexp.MustCompile(`[^\n -~]`).MatchString(line) || len(line) > 2000 {
			t.Errorf("%q", line)
		}
		for _, want := range []string{"lambda:GetFunction", "ResourceNotFoundException", "id-1", "404", "12", "audit"} {
			if !strings.Contains(line, want) {
				t.Errorf("no %s in %s", want, line)
			}
		}
	}
	var b bytes.Buffer
	NewAudit(&b, true).Call(lambda.Call{Action: "lambda:ListFunctions", Key: "AKSD1", ARN: "arn:aws:lambda:us-east-1:1:function:é"})
	var line map[string]any
	if err := json.Unmarshal(b.Bytes(), &line); err != nil || line["result"] != "ok" || line["arn"] != "arn:aws:lambda:us-east-1:1:function:é" {
		t.Errorf("%s", b.String())
	}
}

// The audit log knows who gave a command from the kernel, not from what the client says.
func TestPeer(t *testing.T) {
	d := newDesk(t, nil)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: d, ConnContext: WithPeer}
	go server.Serve(l)
	defer server.Close()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Post("http://x"+admin.KeysPath, "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	var line map[string]any
	if err := json.Unmarshal(d.audit.Bytes(), &line); err != nil || line["uid"] != float64(os.Getuid()) || line["pid"] != float64(os.Getpid()) {
		t.Errorf("%s, %v", d.audit, err)
	}
}
