//go:build integration

package clients

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Extensions of others, built unmodified from the crates registry (docs/extensions.md
// says what else there is). Tests of this kind are named TestReal…: `make extensions`
// runs them, and only it.

//go:embed webserver/bootstrap
var webServer []byte

//go:embed otlpbackend/bootstrap
var otlpBackend []byte

// crateLayer is a layer with the program of a crate as its extension. It is kept below
// .build, because it takes long to build.
func crateLayer(t *testing.T, crate, version, program string) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", ".build", "extensions", crate+"-"+version))
	if err != nil {
		t.Fatal(err)
	}
	extensions := filepath.Join(dir, "layer", "extensions")
	if !harness.Exists(filepath.Join(extensions, program)) {
		// Without optimization and debug information: what is tested is the protocol.
		runIn(t, "/", "env", "CARGO_PROFILE_DEV_DEBUG=0", "CARGO_TARGET_DIR="+filepath.Join(dir, "target"),
			"cargo", "install", "--quiet", "--locked", "--debug", "--root", dir, crate+"@"+version)
		runIn(t, dir, "mkdir", "-p", extensions)
		runIn(t, dir, "mv", filepath.Join("bin", program), extensions)
		runIn(t, dir, "rm", "-rf", "target")
	}
	return filepath.Join(dir, "layer")
}

// adapterLayer has the AWS Lambda Web Adapter, with which a web server is a function.
func adapterLayer(t *testing.T) string {
	return crateLayer(t, "lambda_web_adapter", "0.9.1", "lambda-adapter")
}

// httpEvent is what API Gateway makes of a request (its payload format 2.0).
func httpEvent(method, path, body string) map[string]any {
	about := map[string]any{"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1", "userAgent": "test"}
	event := map[string]any{
		"version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": "a=1&b=2",
		"headers": map[string]string{"host": "example.com"}, "isBase64Encoded": false,
		"requestContext": map[string]any{"http": about, "accountId": "123456789012", "apiId": "api", "domainName": "example.com",
			"domainPrefix": "example", "requestId": "id", "routeKey": "$default", "stage": "$default",
			"time": "12/Mar/2020:19:03:58 +0000", "timeEpoch": 1583348638390},
	}
	if body != "" {
		event["body"] = body
	}
	return event
}

// The Lambda Web Adapter calls the runtime's paths of the API from the extension domain
// and the function's web server over loopback.
func TestRealWebAdapter(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=20s", "--layer", adapterLayer(t), harness.ShellFunction(t, webServer))
	request := func(method, path, body string) (status int, text, id string) {
		t.Helper()
		a := d.Invoke(httpEvent(method, path, body))
		var r struct {
			StatusCode int
			Body       string
		}
		if err := json.Unmarshal(a.Body, &r); err != nil || a.Header.Get("X-Amz-Function-Error") != "" {
			t.Fatalf("%s %s: %s, %v", method, path, a.Body, err)
		}
		return r.StatusCode, r.Body, a.ID()
	}
	if status, text, _ := request("GET", "/hello", ""); status != http.StatusOK || text != "you asked for /hello?a=1&b=2" {
		t.Errorf("GET: %d %q", status, text)
	}
	d.WaitFrozen()
	status, text, id := request("POST", "/anything", "some text")
	if want := fmt.Sprintf(`{"got": "some text", "request": "%s"}`, id); status != http.StatusCreated || text != want {
		t.Errorf("POST: %d %s; want 201 %s", status, text, want)
	}
	if status, text, _ := request("GET", "/nothing", ""); status != http.StatusNotFound || text != "no /nothing" {
		t.Errorf("a path that is not there: %d %q", status, text)
	}
	// The adapter asks until the server is there, and only then for the first event.
	inOrder := regexp.MustCompile(`(?s)the server starts.*"GET / HTTP/1.1" 200.*EXTENSION\tName: lambda-adapter\tState: Ready.*START RequestId.*"GET /hello`)
	if log := strings.ReplaceAll(d.Log.Text(), `\t`, "\t"); !inOrder.MatchString(log) {
		t.Error("the readiness check does not stand before the first invocation")
	}
}

func TestRealWebAdapterStreams(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=20s", "--env=AWS_LWA_INVOKE_MODE=response_stream", "--layer", adapterLayer(t), harness.ShellFunction(t, webServer))
	d.Invoke(httpEvent("GET", "/hello", "")) // warm
	s := d.StreamOf(httpEvent("GET", "/parts", ""))
	prelude, body, found := strings.Cut(s.Text, strings.Repeat("\x00", 8))
	if !found || !strings.Contains(prelude, `"statusCode":200`) || body != "one two three" || s.End.ErrorCode != "" {
		t.Errorf("stream %q, end %+v; want a prelude with status 200, and three parts", s.Text, s.End)
	}
	if s.Chunks < 4 || s.Took-s.First < 400*time.Millisecond { // the server pauses for 3 times 400 ms
		t.Errorf("%d chunks, the first after %v of %v; want each part when it comes", s.Chunks, s.First, s.Took)
	}
}

// In strict mode the adapter may not act as the runtime.
func TestRealWebAdapterStrict(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=20s", "--strict", "--layer", adapterLayer(t), harness.ShellFunction(t, webServer))
	a := d.Invoke(httpEvent("GET", "/hello", ""))
	if !strings.Contains(string(a.Body), `"errorType":"Extension.Crash"`) {
		t.Errorf("answer %s; want the end of the adapter, which was refused an event", a.Body)
	}
}

// gauges are the metrics of an OTLP export.
type gauges struct {
	ResourceMetrics []struct {
		ScopeMetrics []struct {
			Metrics []struct {
				Name  string
				Gauge struct {
					DataPoints []struct {
						AsDouble   float64
						Attributes []struct{ Value struct{ StringValue string } }
					}
				}
			}
		}
	}
}

// of returns the values of one invocation, by the names of the metrics.
func (g *gauges) of(id string) map[string]float64 {
	values := map[string]float64{}
	for _, r := range g.ResourceMetrics {
		for _, s := range r.ScopeMetrics {
			for _, m := range s.Metrics {
				for _, p := range m.Gauge.DataPoints {
					if len(p.Attributes) > 0 && p.Attributes[0].Value.StringValue == id {
						values[m.Name] = p.AsDouble
					}
				}
			}
		}
	}
	return values
}

// An OpenTelemetry extension receives the function's spans over OTLP, and platform
// records by the Telemetry API, and exports both. What it still has at the shutdown,
// when its backend is gone with the function, it prints.
func TestRealOpenTelemetry(t *testing.T) {
	layer := crateLayer(t, "opentelemetry-lambda-extension", "0.2.0", "opentelemetry-lambda-extension")
	d := harness.Start(t, "--memory=1769", "--timeout=20s", "--layer", layer,
		"--env=LAMBDA_OTEL_EXPORTER_ENDPOINT=http://127.0.0.1:4399", "--env=LAMBDA_OTEL_EXPORTER_COMPRESSION=none", harness.ShellFunction(t, otlpBackend))
	ids := []string{d.Invoke("a span of mine").ID()}
	var exported string // what the backend has
	harness.Eventually(t, harness.Patience, func() string {
		a := d.Invoke("")
		ids, exported = append(ids, a.ID()), string(a.Body)
		if strings.Contains(exported, "/v1/traces") && strings.Contains(exported, "a span of mine") {
			return ""
		}
		return "the span is not exported; the backend has " + exported
	})
	d.Stop()

	if !strings.Contains(d.Log.Text(), "State: Subscribed") {
		t.Error("the extension has not subscribed to the Telemetry API")
	}
	printed := printedGauges(d)
	for i, id := range ids {
		if i < len(ids)-1 && strings.Contains(exported, id) {
			continue // the backend has it
		}
		got, want := printed.of(id), d.ReportOf(id)
		if off := got["faas.invocation.duration"] - want.Duration; off < -0.01 || off > 0.01 {
			t.Errorf("invocation %d: the extension has a duration of %v ms, REPORT %.2f", i, got["faas.invocation.duration"], want.Duration)
		}
		if memory := got["aws.lambda.max_memory_used"]; memory != float64(want.MaxMemory<<20) {
			t.Errorf("invocation %d: the extension has a peak of %v bytes, REPORT %d MB", i, memory, want.MaxMemory)
		}
	}
}

// printedGauges are the metrics that the extension has printed.
func printedGauges(d *harness.Daemon) (all gauges) {
	d.T.Helper()
	for line := range strings.Lines(d.Log.Text()) {
		begin := strings.Index(line, `{"otlp_fallback":{"type":"metrics"`)
		if begin < 0 {
			continue
		}
		var printed struct {
			Export struct{ Request gauges } `json:"otlp_fallback"`
		}
		if err := json.Unmarshal([]byte(line[begin:]), &printed); err != nil {
			d.T.Errorf("metrics %q: %v", line, err)
		}
		all.ResourceMetrics = append(all.ResourceMetrics, printed.Export.Request.ResourceMetrics...)
	}
	return all
}
