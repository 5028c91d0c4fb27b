package invoke

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/fleet"
)

// SEC-62: a web page must not reach the endpoint through the operator's browser.
func TestBrowsers(t *testing.T) {
	tests := []struct {
		host, origin, site string
		ok                 bool
	}{
		{"127.0.0.1:9000", "", "", true}, // tools
		{"sandbox.internal:9000", "", "", true},
		{"127.0.0.1:9000", "", "none", true},
		{"127.0.0.1:9000", "http://127.0.0.1:9000", "same-origin", true},
		{"localhost:9000", "http://localhost:9000", "", true},
		{"[::1]:9000", "http://[::1]:9000", "", true},
		{"127.0.0.1:9000", "http://evil.example", "", false},
		{"127.0.0.1:9000", "http://127.0.0.1:8080", "", false},
		{"127.0.0.1:9000", "https://127.0.0.1:9000", "", false},
		{"127.0.0.1:9000", "null", "", false},
		{"127.0.0.1:9000", "", "cross-site", false},
		{"127.0.0.1:9000", "", "same-site", false},
		{"127.0.0.1:9000", "http://127.0.0.1:9000", "cross-site", false},
		{"evil.example:9000", "http://evil.example:9000", "", false}, // DNS rebinding
		{"evil.example:9000", "http://evil.example:9000", "same-origin", false},
	}
	for _, tt := range tests {
		r := httptest.NewRequest("POST", "/", nil)
		r.Host = tt.host
		if tt.origin != "" {
			r.Header.Set("Origin", tt.origin)
		}
		if tt.site != "" {
			r.Header.Set("Sec-Fetch-Site", tt.site)
		}
		if got := guard(r, "http") == nil; got != tt.ok {
			t.Errorf("%+v: allowed %v", tt, got)
		}
	}
}

func TestIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := newIDs().request
		if !isUUID(id) || id[14] != '4' || !strings.ContainsRune("89ab", rune(id[19])) || seen[id] {
			t.Fatalf("%q is not a new random UUID", id)
		}
		seen[id] = true
	}
	for _, bad := range []string{"", "1234", "8f5c2c1e00004000800000000000000a0000", "8f5c2c1e-0000-4000-8000-00000000000g", "8f5c2c1e-0000-4000-8000-00000000000a "} {
		if isUUID(bad) {
			t.Errorf("%q counts as a UUID", bad)
		}
	}
}

// The warm path through front and fleet, without network and runtime.
func BenchmarkWarmInvoke(b *testing.B) {
	f := function(echo)
	fl := fleet.New(fleet.Config{Max: 1, New: func(context.Context) (fleet.Sandbox, error) { return f, nil }})
	defer func() { _ = fl.Shutdown(context.Background()) }()
	s := New(Config{Functions: serves(fl), Region: "eu-west-1", AccountID: "012345678912"})
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", "/2015-03-31/functions/hello/invocations", strings.NewReader(`{"x":1}`))
		w := httptest.NewRecorder()
		if s.ServeHTTP(w, r); w.Code != 200 {
			b.Fatalf("%d %s", w.Code, w.Body)
		}
	}
}
