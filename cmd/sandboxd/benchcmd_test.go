package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/internal/exit"
)

func TestBench(t *testing.T) {
	var paths, bodies []string
	status := http.StatusOK
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		paths, bodies = append(paths, r.URL.Path), append(bodies, string(body))
		w.WriteHeader(status)
	}))
	defer server.Close()
	payload := filepath.Join(t.TempDir(), "event")
	if err := os.WriteFile(payload, []byte("7"), 0o600); err != nil {
		t.Fatal(err)
	}
	bench := func(args ...string) (code int, out, errs string) {
		var stdout, stderr bytes.Buffer
		code = run(t.Context(), append([]string{"bench"}, args...), strings.NewReader("8"), &stdout, &stderr)
		return code, stdout.String(), stderr.String()
	}

	code, out, errs := bench("--target", server.URL, "--requests=5", "--warmup=1", "--payload", payload, "--output=json")
	var got loadReport
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != exit.OK || errs != "" {
		t.Fatalf("exit code %d, %v, output %q, errors %q", code, err, out, errs)
	}
	if got.N != 5 || got.Errors != 0 || got.P50 <= 0 || got.P99 < got.P50 || got.Rate <= 0 {
		t.Errorf("report %+v", got)
	}
	if len(paths) != 6 || paths[0] != load.Path || bodies[0] != "7" {
		t.Errorf("requests %q with %q", paths, bodies)
	}

	code, out, _ = bench("--target", server.URL, "--requests=1", "--warmup=0", "--payload=-", "--stream")
	if code != exit.OK || !strings.Contains(out, "P99") || paths[6] != load.StreamPath || bodies[6] != "8" {
		t.Errorf("exit code %d, output %q, last request %q with %q", code, out, paths[6], bodies[6])
	}

	status = http.StatusBadGateway
	if code, _, errs = bench("--target", server.URL, "--requests=2", "--warmup=0"); code != exit.Function || !strings.Contains(errs, "2 requests failed") {
		t.Errorf("exit code %d, errors %q; want 1 and the count", code, errs)
	}
	if code, _, errs = bench("--requests=2"); code != exit.Usage || !strings.Contains(errs, "--target") {
		t.Errorf("exit code %d, errors %q; want 2 and the flag", code, errs)
	}
	if code, _, errs = bench("--target=127.0.0.1:1", "--requests=2"); code != exit.Usage || !strings.Contains(errs, "refused") {
		t.Errorf("exit code %d, errors %q; want 2 and the reason", code, errs)
	}
}
