//go:build integration

package lifecycle

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// startManaged serves the test runtime in managed mode, n invocations a sandbox.
func startManaged(t *testing.T, n int, args ...string) *harness.Daemon {
	t.Helper()
	all := append([]string{harness.OneCPU, fmt.Sprint("--managed=", n), "--log-format=JSON", "--timeout=2s"}, args...)
	return harness.Start(t, append(all, harness.Function(t))...)
}

// RT-60, RT-67, RT-68, LC-84: invocations of one sandbox overlap; one that times out
// disturbs no other; a crash ends them all, and the next request has another sandbox.
func TestManaged(t *testing.T) {
	d := startManaged(t, 4)
	together := script.Event{Report: true, Steps: []script.Step{{Op: "env"}, {Op: "sleep", MS: 500}}}
	var running []<-chan harness.Answer
	for range 4 {
		running = append(running, d.InvokeLater(together))
	}
	streams, pids, ends := map[string]bool{}, map[int]bool{}, []int64{}
	for _, c := range running {
		r := d.Report(<-c)
		streams[r.LogStream], pids[r.PID] = true, true
		ends = append(ends, r.Received)
		if !slices.Contains(r.Results[0].List, "AWS_LAMBDA_MAX_CONCURRENCY=4") ||
			!slices.Contains(r.Results[0].List, "AWS_LAMBDA_INITIALIZATION_TYPE=lambda-managed-instances") {
			t.Errorf("environment %q", r.Results[0].List)
		}
	}
	if len(streams) != 1 || len(pids) != 1 {
		t.Errorf("%d sandboxes, %d processes; want one of each", len(streams), len(pids))
	}
	if spread := time.Duration(slices.Max(ends)-slices.Min(ends)) * time.Microsecond; spread > 400*time.Millisecond {
		t.Errorf("the last of four began %v after the first: they did not overlap", spread)
	}

	slow := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 3000}}})
	for i := range 5 {
		if r := d.Do(script.Step{Op: "sleep", MS: 100}); !streams[r.LogStream] {
			t.Errorf("%d ran in another sandbox", i)
		}
	}
	if a := <-slow; !strings.Contains(string(a.Body), "Task timed out after 2.00 seconds") {
		t.Errorf("%s", a.Body)
	}
	d.WaitPrinted("runtime", "late", 1) // RT-63: its answer got a 410, and its worker goes on

	beside := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{harness.Note("beside"), {Op: "sleep", MS: 1000}}})
	d.WaitPrinted("runtime", "beside", 1)
	crash := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 3}}})
	for _, a := range []harness.Answer{crash, <-beside} {
		if !strings.Contains(string(a.Body), "Runtime.ExitError") || !strings.Contains(string(a.Body), "exit status 3") {
			t.Errorf("%s", a.Body)
		}
	}
	if r := d.Do(); streams[r.LogStream] {
		t.Error("the sandbox lives on after its runtime has ended (RT-68)")
	}
}

// Section 1.9: requests beyond one sandbox's share get another; beyond all, a 429.
func TestManagedScales(t *testing.T) {
	d := startManaged(t, 2, "--concurrency=2")
	var running []<-chan harness.Answer
	for range 4 {
		running = append(running, d.InvokeLater(script.Event{Report: true, Steps: []script.Step{harness.Note("here"), {Op: "sleep", MS: 1000}}}))
	}
	d.WaitPrinted("runtime", "here", 4)
	if a, err := d.Request(script.Event{}); err != nil || a.Status != http.StatusTooManyRequests {
		t.Errorf("the fifth: %d %s %v", a.Status, a.Body, err)
	}
	count := map[string]int{}
	for _, c := range running {
		count[d.Report(<-c).LogStream]++
	}
	if len(count) != 2 {
		t.Errorf("invocations by sandbox: %v, want two of each", count)
	}
	if rows := len(d.Inits()); rows != 2 {
		t.Errorf("%d sandboxes, want 2", rows)
	}
}

// RT-69, RT-62: streams of one sandbox do not mix.
func TestManagedStreams(t *testing.T) {
	d := startManaged(t, 3)
	type got struct {
		i int
		s *harness.Streamed
	}
	done := make(chan got)
	for i := range 3 {
		go func() {
			done <- got{i, d.StreamOf(harness.Answering(harness.Streaming(100*time.Millisecond, fmt.Sprint("a", i), fmt.Sprint("b", i))))}
		}()
	}
	for range 3 {
		g := <-done
		if want := fmt.Sprintf("a%db%d", g.i, g.i); g.s.Text != want {
			t.Errorf("stream %d: %q, want %q", g.i, g.s.Text, want)
		}
	}
}
