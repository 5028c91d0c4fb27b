//go:build integration

package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/integration/script"
)

// LOG-26, issue 2: within 10 percent for 100 MB and more above the idle peak.
func TestMaxMemoryUsed(t *testing.T) {
	const mb = 200
	d := start(t, "--memory=512", "--timeout=30s", function(t, "testruntime"))
	idle := d.reportOf(d.invoke("x").id())
	a := d.invoke(script.Event{Steps: []script.Step{{Op: "alloc", N: mb}}})
	d.report(a)
	used := d.reportOf(a.id())
	want := idle.maxMemory + mb
	if off := used.maxMemory - want; off < -want/10 || off > want/10 {
		t.Errorf("Max Memory Used %d MB; want %d within 10 percent (idle %d)", used.maxMemory, want, idle.maxMemory)
	}
	if used.memorySize != 512 {
		t.Errorf("Memory Size %d MB, want 512", used.memorySize)
	}
}

// ENV-32, ARCHITECTURE decision 11: 1,769 MB are one CPU.
func TestCPUShare(t *testing.T) {
	for _, c := range []struct {
		memory  string
		threads int64
		share   float64
	}{
		{"--memory=885", 1, 0.5},
		{"--memory=885", 4, 0.5}, // threads do not widen it
		{"--memory=1769", 4, 1.0},
	} {
		d := start(t, c.memory, "--timeout=60s", initFlag(script.Step{Op: "spin", MS: 300, N: 1}), function(t, "testruntime"))
		d.do()
		r := d.do(script.Step{Op: "spin", MS: 3000, N: c.threads})
		share := float64(r.Results[0].MS) / float64(r.Results[0].N)
		if most := c.share * 1.1; share > most {
			t.Errorf("%s, %d threads: %.2f CPUs, want at most %.2f", c.memory, c.threads, share, most)
		}
		// Neighbours on the machine may take some of it, but not most.
		if least := c.share * 0.6; share < least {
			t.Errorf("%s, %d threads: %.2f CPUs, want at least %.2f", c.memory, c.threads, share, least)
		}
		// Initialisation is not throttled.
		if init := r.Init[0]; float64(init.MS) < 0.6*float64(init.N) {
			t.Errorf("%s: %d ms of CPU in %d ms of initialisation", c.memory, init.MS, init.N)
		}
	}
}

// Concurrent requests are served by more sandboxes, up to --concurrency; above it
// 429 (issue 2, INV-23, LC-20).
func TestConcurrency(t *testing.T) {
	const sandboxes, requests = 4, 8
	code := function(t, "testruntime")
	d := start(t, "--memory=512", "--timeout=120s", "--concurrency=4", code)
	event := script.Event{Steps: []script.Step{{Op: "await", Path: "/var/task/go"}}}
	answers := make(chan answer, requests)
	for range requests {
		go func() {
			a, err := d.request(event)
			if err != nil {
				t.Errorf("invoke: %v", err)
			}
			answers <- a
		}()
	}
	for range requests - sandboxes { // these come while the others wait for the file
		a := <-answers
		if a.status != http.StatusTooManyRequests || a.header.Get("x-amzn-errortype") != "TooManyRequestsException" {
			t.Errorf("status %d, %s, %s; want 429 TooManyRequestsException", a.status, a.header.Get("x-amzn-errortype"), a.body)
		}
	}
	writeFile(t, filepath.Join(code, "go"), nil, 0o644)
	streams := make(map[string]bool)
	for range sandboxes {
		a := <-answers
		if a.status != http.StatusOK {
			t.Fatalf("status %d: %s", a.status, a.body)
		}
		streams[d.report(a).LogStream] = true
	}
	if len(streams) != sandboxes {
		t.Errorf("%d sandboxes served %d requests at once", len(streams), sandboxes)
	}
	if inits := d.inits(); len(inits) != sandboxes {
		t.Errorf("%d sandboxes on the host, want %d", len(inits), sandboxes)
	}
	d.do() // and it still serves
}

// SIGTERM drains: what is in flight is answered, new requests are not taken.
func TestSIGTERMDrains(t *testing.T) {
	code := function(t, "testruntime")
	d := start(t, oneCPU, "--timeout=60s", code)
	answers := make(chan answer, 1)
	go func() {
		a, err := d.request(script.Event{Steps: []script.Step{{Op: "print", Data: "IN FLIGHT", N: 1}, {Op: "await", Path: "/var/task/go"}}})
		if err != nil {
			t.Errorf("invoke: %v", err)
		}
		answers <- a
	}()
	d.waitFor("IN FLIGHT")
	d.signal(syscall.SIGTERM)
	eventually(t, patience, func() string {
		a, err := d.request("x")
		if err == nil && a.status != http.StatusServiceUnavailable && a.status != http.StatusTooManyRequests {
			return "new requests are still taken: " + string(a.body)
		}
		return ""
	})
	select {
	case <-d.exited:
		t.Error("sandboxd ended with an invocation in flight")
	default:
	}
	writeFile(t, filepath.Join(code, "go"), nil, 0o644)
	if a := <-answers; a.status != http.StatusOK || !strings.Contains(string(a.body), `"results"`) {
		t.Errorf("status %d: %s", a.status, a.body)
	}
	if code := d.waitExit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if _, err := os.Stat(filepath.Join(d.folders.run, d.instance)); err == nil {
		t.Error("the instance folder is still there")
	}
}
