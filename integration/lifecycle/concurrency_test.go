//go:build integration

package lifecycle

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// Concurrent requests are served by more sandboxes, up to --concurrency; above it
// 429 (INV-23, LC-20).
func TestConcurrency(t *testing.T) {
	const sandboxes, requests = 4, 8
	code := harness.Function(t)
	d := harness.Start(t, "--memory=512", "--timeout=120s", "--concurrency=4", code)
	event := script.Event{Report: true, Steps: []script.Step{{Op: "await", Path: "/var/task/go"}}}
	answers := make(chan harness.Answer, requests)
	for range requests {
		go func() {
			a, err := d.Request(event)
			if err != nil {
				t.Errorf("invoke: %v", err)
			}
			answers <- a
		}()
	}
	for range requests - sandboxes { // these come while the others wait for the file
		a := <-answers
		if a.Status != http.StatusTooManyRequests || a.Header.Get("x-amzn-errortype") != "TooManyRequestsException" {
			t.Errorf("status %d, %s, %s; want 429 TooManyRequestsException", a.Status, a.Header.Get("x-amzn-errortype"), a.Body)
		}
	}
	harness.WriteFile(t, filepath.Join(code, "go"), nil, 0o644)
	streams := make(map[string]bool)
	for range sandboxes {
		a := <-answers
		if a.Status != http.StatusOK {
			t.Fatalf("status %d: %s", a.Status, a.Body)
		}
		streams[d.Report(a).LogStream] = true
	}
	if len(streams) != sandboxes {
		t.Errorf("%d sandboxes served %d requests at once", len(streams), sandboxes)
	}
	if inits := d.Inits(); len(inits) != sandboxes {
		t.Errorf("%d sandboxes on the host, want %d", len(inits), sandboxes)
	}
	d.Do() // and it still serves
}

// SIGTERM drains: what is in flight is answered, new requests are not taken.
func TestSIGTERMDrains(t *testing.T) {
	code := harness.Function(t)
	d := harness.Start(t, harness.OneCPU, "--timeout=60s", "--concurrency=2", code)
	answers := make(chan harness.Answer, 1)
	go func() {
		a, err := d.Request(script.Event{Report: true, Steps: []script.Step{{Op: "print", Data: "IN FLIGHT\n"}, {Op: "await", Path: "/var/task/go"}}})
		if err != nil {
			t.Errorf("invoke: %v", err)
		}
		answers <- a
	}()
	d.WaitFor("IN FLIGHT")
	d.Signal(syscall.SIGTERM)
	harness.Eventually(t, harness.Patience, func() string {
		a, err := d.Request("x")
		if err == nil && a.Status != http.StatusServiceUnavailable && a.Status != http.StatusTooManyRequests {
			return "new requests are still taken: " + string(a.Body)
		}
		return ""
	})
	select {
	case <-d.Done():
		t.Error("sandboxd ended with an invocation in flight")
	default:
	}
	harness.WriteFile(t, filepath.Join(code, "go"), nil, 0o644)
	if a := <-answers; a.Status != http.StatusOK || !strings.Contains(string(a.Body), `"results"`) {
		t.Errorf("status %d: %s", a.Status, a.Body)
	}
	if code := d.WaitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(d.Folders.Run, d.Instance)); err == nil {
		t.Error("the instance folder is still there")
	}
}
