package api

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

const (
	goodTelemetry = `{"schemaVersion":"2022-12-13","types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4323"}}`
	goodLogs      = `{"types":["platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:4323"}}`
)

// TL-01, TL-08 to TL-10, TL-12, EX-17: what subscribing answers.
func TestSubscribe(t *testing.T) {
	w := agentWorld(t)
	id := w.register("ext", `{"events":["INVOKE"]}`).header.Get(identifier)
	put := func(path, id, body string) reply { return w.do("PUT", path, body, identifier, id) }
	for _, tt := range []struct {
		name      string
		got       reply
		status    int
		errorType string
	}{
		{"no identifier", put(telemetryPath, "", goodTelemetry), 403, "Extension.MissingExtensionIdentifier"},
		{"no such extension", put(telemetryPath, "00000000-0000-4000-8000-000000000000", goodTelemetry), 403, "Extension.UnknownExtensionIdentifier"},
		{"other method", w.do("POST", telemetryPath, goodTelemetry, identifier, id), 405, ""},
		{"nothing", put(telemetryPath, id, ""), 400, "ValidationError"},
		{"not valid", put(logsPath, id, "{}"), 400, "Logs.ValidationError"},
		{"too large", put(telemetryPath, id, strings.Repeat(" ", maxSmall+1)), 413, "RequestEntityTooLarge"},
		{"good", put(telemetryPath, id, goodTelemetry), 200, ""},
		{"again, with a slash", put(telemetryPath+"/", id, goodTelemetry), 200, ""},
		{"the other API", put(logsPath, id, goodLogs), 400, "Logs.ValidationError"},
	} {
		if tt.got.status != tt.status || tt.got.errorType() != tt.errorType {
			t.Errorf("%s: %d %s, want %d %s", tt.name, tt.got.status, tt.got.body, tt.status, tt.errorType)
		}
		if tt.status == 200 && (tt.got.body != `"OK"` || tt.got.header.Get("Content-Type") != "application/json") {
			t.Errorf("%s: %q, want \"OK\" (TL-08)", tt.name, tt.got.body)
		}
	}
	w.later("GET", extPath+"event/next", identifier, id)
	w.running()
	w.later("GET", nextPath)
	w.await(rapid.Idle)
	for path, api := range map[string]string{telemetryPath: "Telemetry", logsPath: "Logs"} {
		r := put(path, id, "{}")
		want := `{"errorMessage":"` + api + ` API subscription is closed already","errorType":"` + api + `.SubscriptionClosed"}` + "\n"
		if r.status != 403 || r.body != want {
			t.Errorf("after init: %d %s, want 403 %s", r.status, r.body, want)
		}
	}
}

// ACC-15, TL-23: a subscriber hears of an invocation, wherever its URI seems to lead,
// by a connection that is made inside the sandbox.
func TestSubscriberHearsOfInvocation(t *testing.T) {
	got := make(chan string, 100)
	listener := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var events []struct{ Type string }
		b, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(b, &events); err != nil {
			t.Errorf("%q: %v", b, err)
		}
		for _, e := range events {
			got <- e.Type
		}
	}))
	defer listener.Close()
	w := agentWorld(t)
	w.sup.Connect = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if network != "tcp" || addr != "127.0.0.1:4323" {
			t.Errorf("dialled %s %s", network, addr)
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", listener.Listener.Addr().String())
	}
	id := w.register("ext", `{}`).header.Get(identifier)
	if r := w.do("PUT", telemetryPath, goodTelemetry, identifier, id); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	w.later("GET", extPath+"event/next", identifier, id)
	w.dispatched("one")
	w.do("POST", path("one", "response"), "{}")
	w.later("GET", nextPath)
	want := []string{"platform.initStart", "platform.telemetrySubscription", "platform.initRuntimeDone", "platform.extension", "platform.initReport",
		"platform.start", "platform.runtimeDone", "platform.report"}
	for _, typ := range want {
		select {
		case g := <-got:
			if g != typ {
				t.Errorf("got %s, want %s", g, typ)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("no %s", typ)
		}
	}
}
