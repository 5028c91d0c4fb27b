//go:build integration

package containment

import (
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// abuse is one step against the Runtime API that must be refused.
type abuse struct {
	name string
	step script.Step
}

// abuses are those of SEC-53 that are one request each.
func abuses() []abuse {
	const invocation = "/2018-06-01/runtime/invocation/"
	answer := func(id string) script.Step {
		return script.Step{Op: "bytes", Data: "POST " + invocation + id + "/response HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"}
	}
	head := "POST " + invocation + "8476a536-e9f4-11e8-9739-2dfe598c3fcd/response HTTP/1.1\r\nHost: x\r\n"
	list := []abuse{
		{"foreign id", answer("8476a536-e9f4-11e8-9739-2dfe598c3fcd")},
		{"encoded id", answer("%38%34%37%36")},
		{"own id, encoded, with a tail", answer("{id}%2f..%2fx")},
		{"id of 60 kB", answer(strings.Repeat("a", 60_000))},
		{"traversal", answer("../../../../etc/passwd")},
		{"traversal, encoded", answer("..%2f..%2f..%2fetc%2fpasswd")},
		{"id with NUL", answer("{id}%00")},
		{"forged extension", script.Step{Op: "call", Method: "GET", Path: "/2020-01-01/extension/event/next",
			Headers: map[string]string{"Lambda-Extension-Identifier": "8476a536-e9f4-11e8-9739-2dfe598c3fcd"}}},
		{"late register", script.Step{Op: "call", Method: "POST", Path: "/2020-01-01/extension/register", Data: `{"events":["INVOKE"]}`,
			Headers: map[string]string{"Lambda-Extension-Name": "late"}}},
		{"forged subscription to outside", script.Step{Op: "call", Method: "PUT", Path: "/2022-07-01/telemetry",
			Data:    `{"schemaVersion":"2022-12-13","destination":{"protocol":"HTTP","URI":"http://169.254.169.254:80"},"types":["platform"]}`,
			Headers: map[string]string{"Lambda-Extension-Identifier": "8476a536-e9f4-11e8-9739-2dfe598c3fcd"}}},
		{"body of 64 MiB", script.Step{Op: "bytes", N: 64 << 20, Data: head + "Content-Length: 67108864\r\n\r\n"}},
		{"headers of 8 MiB", script.Step{Op: "bytes", N: 8 << 20, Data: "GET " + invocation + "next HTTP/1.1\r\nHost: x\r\nX: "}},
		{"200,000 headers", script.Step{Op: "bytes", Data: head + "Content-Length: 0\r\n" + strings.Repeat("A:bc\r\n", 200_000) + "\r\n"}},
		{"request in a request", script.Step{Op: "bytes", Data: head + "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET " + invocation + "next HTTP/1.1\r\nHost: x\r\n\r\n"}},
		{"two lengths", script.Step{Op: "bytes", Data: head + "Content-Length: 2\r\nContent-Length: 30\r\n\r\n{}"}},
		{"TLS", script.Step{Op: "bytes", Data: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"}},
		{"garbage", script.Step{Op: "bytes", Data: "\x00\x01\x02 not http\r\n\r\n"}},
		{"HTTP/2", script.Step{Op: "bytes", Data: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"}},
	}
	for _, path := range []string{"/", "/v1/sandboxes", "/2015-03-31/functions/function/invocations", "/metrics", "/debug/pprof/", "/debug/vars", "/2018-06-01/", "//", "/test/ping"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE"} {
			list = append(list, abuse{method + " " + path, script.Step{Op: "call", Method: method, Path: path}})
		}
	}
	return list
}

// Every abuse is refused with a status of 4xx, or cut off; the function's own request
// that follows is answered: it is how the result gets here.
func TestAttackRuntimeAPI(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=60s", harness.Function(t))
	d.InvokeMany(20, 1)
	before, fds := anonymous(d), d.FDs()
	for _, a := range abuses() {
		t.Run(a.name, func(t *testing.T) {
			answer := d.Invoke(script.Event{Report: true, Steps: []script.Step{a.step}})
			r := d.Report(answer).Results[0]
			if r.Error != "" || r.Status != 0 && r.Status/100 != 4 {
				t.Errorf("status %d, %s; want 4xx or an end", r.Status, r.Error)
			}
		})
	}
	wantGrownLess(d, before)
	d.WantFDsBack(fds)
}

// The control: an API without defence takes them.
func TestAttackRuntimeAPIControl(t *testing.T) {
	for _, a := range abuses() {
		switch a.name {
		case "foreign id", "id of 60 kB", "id with NUL", "late register", "forged subscription to outside", "body of 64 MiB", "200,000 headers", "GET /metrics":
			if r := outside(t, naiveAPI(t), a.step)[0]; r.Status/100 != 2 {
				t.Errorf("%s: status %d, %s; want it to be taken", a.name, r.Status, r.Error)
			}
		}
	}
}

// hoards are connections that are kept: slow requests that never end, then idle ones.
// Each is followed by a count of those that are still open some time later.
func hoards() []script.Step {
	const half = "GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nHost: x\r\nX-Slow: "
	return []script.Step{
		{Op: "hold", N: 200, Data: half}, {Op: "held", MS: 13_000}, // headers have 10 s
		{Op: "hold", N: 900}, {Op: "held", MS: 500},
	}
}

// Connections that are hoarded do not keep the function's next request out. Those
// whose headers do not come are closed, and of idle ones there are so many at most.
func TestAttackRuntimeAPIConnections(t *testing.T) {
	t.Parallel()     // it mostly waits
	const most = 256 // connections of one sandbox
	const body = "POST /2018-06-01/runtime/invocation/{id}/response HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
	d := harness.Start(t, "--memory=1769", "--timeout=120s", harness.Function(t))
	d.InvokeMany(5, 1)
	before, fds := anonymous(d), d.FDs()
	r := d.Do(hoards()...).Results
	if r[0].Error != "" || r[1].N != 0 {
		t.Errorf("%d of %d slow requests are still open; %s", r[1].N, r[0].N, r[0].Error)
	}
	if r[2].Error != "" || r[3].N > most {
		t.Errorf("%d of %d idle connections are open, want %d at most; %s", r[3].N, r[2].N, most, r[2].Error)
	}
	// Bodies that do not end: one is the invocation's answer, so this invocation has none.
	a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "hold", N: 50, Data: body}, {Op: "exit", N: 3}}})
	a.WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 3")
	d.Do()
	wantGrownLess(d, before)
	d.WantFDsBack(fds)
}

// The control: an API without defence keeps all of them.
func TestAttackRuntimeAPIConnectionsControl(t *testing.T) {
	t.Parallel() // it mostly waits
	if r := outside(t, naiveAPI(t), hoards()...); r[1].N != 200 || r[3].N != 900 {
		t.Errorf("%d slow requests and %d idle connections are held, want 200 and 900", r[1].N, r[3].N)
	}
}
