package invoke

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/rapid"
)

// INV-02 to INV-09: whatever the headers and the body of a request are, it is refused
// with a 4xx or the function gets a sound invocation.
func FuzzRequest(f *testing.F) {
	f.Add("RequestResponse", "Tail", "eyJhIjoxfQ==", "Root=1-2-3;Sampled=1", "blue", "", "application/json", []byte(`{}`))
	f.Add("Event", "None", "", "", "", "8f507cfc-1e1c-4d3a-9d5b-0d6f7e1b2c3d", "", []byte(`[1]`))
	f.Add("DryRun", "", "e30", "x", "", "nope", "text/plain", []byte(nil))
	f.Add("", "", "bnVsbA==", "", "", "", "", []byte(`{"a":`))
	var seen *rapid.Invocation
	done := make(chan struct{})
	close(done)
	fn := function(func(_ context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		seen = inv
		return &rapid.Result{Payload: []byte("1"), Done: done}, nil
	})
	f.Fuzz(func(t *testing.T, kind, log, clientContext, trace, tenant, id, contentType string, body []byte) {
		seen = nil
		fl := fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return fn, nil }})
		one := serves(fl)
		one.Tenants = tenant != ""
		s := New(Config{Functions: one, Region: "eu-west-1", AccountID: "012345678912"})
		r := httptest.NewRequest(http.MethodPost, "/2015-03-31/functions/function/invocations", strings.NewReader(string(body)))
		for name, value := range map[string]string{"X-Amz-Invocation-Type": kind, "X-Amz-Log-Type": log, "X-Amz-Client-Context": clientContext,
			"X-Amzn-Trace-Id": trace, "X-Amz-Tenant-Id": tenant, "X-Amzn-Requestid": id, "Content-Type": contentType} {
			if value != "" {
				r.Header[name] = []string{value}
			}
		}
		got := httptest.NewRecorder()
		s.ServeHTTP(got, r)
		s.events.Wait()
		if err := fl.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		taken := got.Code >= 200 && got.Code < 300
		if got.Code >= 500 || taken && seen == nil && kind != string(dryRun) || !taken && seen != nil {
			t.Fatalf("%d %s; the function was called: %v", got.Code, got.Body, seen != nil)
		}
		if used := s.buffered.used.Load(); used != 0 {
			t.Errorf("%d bytes of the body budget are not given back", used)
		}
		if seen == nil {
			return
		}
		if uuid.Validate(seen.ID) != nil || seen.ID != got.Header().Get("X-Amzn-Requestid") {
			t.Errorf("id %q, the caller was told %q", seen.ID, got.Header().Get("X-Amzn-Requestid"))
		}
		if seen.ClientContext != "" && !json.Valid([]byte(seen.ClientContext)) || len(seen.TraceID) > maxTraceID ||
			len(seen.TenantID) > maxTenantID || !json.Valid(seen.Payload) && len(seen.Payload) > 0 {
			t.Errorf("%+v", seen)
		}
	})
}
