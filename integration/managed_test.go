//go:build integration

package integration

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// startManaged serves the test runtime in managed mode, n invocations a sandbox.
func startManaged(t *testing.T, n int, args ...string) *daemon {
	t.Helper()
	all := append([]string{oneCPU, fmt.Sprint("--managed=", n), "--log-format=JSON", "--timeout=2s"}, args...)
	return start(t, append(all, function(t))...)
}

// RT-60, RT-67, RT-68, LC-84: invocations of one sandbox overlap; one that times out
// disturbs no other; a crash ends them all, and the next request has another sandbox.
func TestManaged(t *testing.T) {
	d := startManaged(t, 4)
	together := script.Event{Report: true, Steps: []script.Step{{Op: "env"}, {Op: "sleep", MS: 500}}}
	var running []<-chan answer
	for range 4 {
		running = append(running, d.invokeLater(together))
	}
	streams, pids, ends := map[string]bool{}, map[int]bool{}, []int64{}
	for _, c := range running {
		r := d.report(<-c)
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

	slow := d.invokeLater(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 3000}}})
	for i := range 5 {
		if r := d.do(script.Step{Op: "sleep", MS: 100}); !streams[r.LogStream] {
			t.Errorf("%d ran in another sandbox", i)
		}
	}
	if a := <-slow; !strings.Contains(string(a.body), "Task timed out after 2.00 seconds") {
		t.Errorf("%s", a.body)
	}
	d.waitPrinted("runtime", "late", 1) // RT-63: its answer got a 410, and its worker goes on

	beside := d.invokeLater(script.Event{Report: true, Steps: []script.Step{note("beside"), {Op: "sleep", MS: 1000}}})
	d.waitPrinted("runtime", "beside", 1)
	crash := d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 3}}})
	for _, a := range []answer{crash, <-beside} {
		if !strings.Contains(string(a.body), "Runtime.ExitError") || !strings.Contains(string(a.body), "exit status 3") {
			t.Errorf("%s", a.body)
		}
	}
	if r := d.do(); streams[r.LogStream] {
		t.Error("the sandbox lives on after its runtime has ended (RT-68)")
	}
}

// Section 1.9: requests beyond one sandbox's share get another; beyond all, a 429.
func TestManagedScales(t *testing.T) {
	d := startManaged(t, 2, "--concurrency=2")
	var running []<-chan answer
	for range 4 {
		running = append(running, d.invokeLater(script.Event{Report: true, Steps: []script.Step{note("here"), {Op: "sleep", MS: 1000}}}))
	}
	d.waitPrinted("runtime", "here", 4)
	if a, err := d.request(script.Event{}); err != nil || a.status != http.StatusTooManyRequests {
		t.Errorf("the fifth: %d %s %v", a.status, a.body, err)
	}
	count := map[string]int{}
	for _, c := range running {
		count[d.report(<-c).LogStream]++
	}
	if len(count) != 2 {
		t.Errorf("invocations by sandbox: %v, want two of each", count)
	}
	if rows := len(d.inits()); rows != 2 {
		t.Errorf("%d sandboxes, want 2", rows)
	}
}

// RT-69, RT-62: streams of one sandbox do not mix.
func TestManagedStreams(t *testing.T) {
	d := startManaged(t, 3)
	type got struct {
		i int
		s *streamed
	}
	done := make(chan got)
	for i := range 3 {
		go func() {
			done <- got{i, d.streamOf(answering(streaming(100*time.Millisecond, fmt.Sprint("a", i), fmt.Sprint("b", i))))}
		}()
	}
	for range 3 {
		g := <-done
		if want := fmt.Sprintf("a%db%d", g.i, g.i); g.s.text != want {
			t.Errorf("stream %d: %q, want %q", g.i, g.s.text, want)
		}
	}
}
