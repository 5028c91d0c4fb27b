//go:build integration

package lifecycle

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// waitInits waits until the daemon has n init handlers and returns them.
func waitInits(d *harness.Daemon, n int) (inits []harness.Process) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		if inits = d.Inits(); len(inits) != n {
			return fmt.Sprintf("%d init handlers, want %d", len(inits), n)
		}
		return ""
	})
	return inits
}

// A cold start takes a sandbox that was ready before (docs/decisions/0008), the
// pool refills, holds no more than there may be, and goes with the daemon.
func TestPool(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--concurrency=3", "--pool=2", harness.Function(t))
	ready := waitInits(d, 2)
	if n := len(d.Guests()); n != 0 {
		t.Errorf("%d processes of a function before the first invocation", n)
	}
	d.Do()
	all := waitInits(d, 3)
	guests := d.Guests()
	if len(guests) != 1 || !slices.ContainsFunc(ready, func(p harness.Process) bool { return p.PID == guests[0].Parent }) {
		t.Errorf("the function runs in %v, want it in one of the sandboxes that were ready, %v", guests, ready)
	}

	// A pooled sandbox that dies is replaced by a new one when its turn comes.
	for _, p := range all {
		if p.PID != guests[0].Parent {
			if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, harness.Patience, func() string {
				if p.Alive() {
					return fmt.Sprintf("killed process %d is still there", p.PID)
				}
				return ""
			})
		}
	}
	busy := make(chan error, 1)
	go func() {
		_, err := d.Request(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 500}}})
		busy <- err
	}()
	d.Do()
	if err := <-busy; err != nil {
		t.Error(err)
	}
}

// Both processes of the daemon have room for the descriptors of all sandboxes that there
// may be before there is one: a table that grows later makes a cold start wait.
func TestRoomForDescriptors(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--concurrency=100", "--pool=0", harness.Function(t))
	supervisor, ok := harness.ReadProcess(d.Cmd.Process.Pid)
	if !ok {
		t.Fatal("the supervisor is gone")
	}
	for _, p := range []harness.Process{supervisor, d.Worker()} {
		harness.Eventually(t, harness.Patience, func() string {
			if n, err := strconv.Atoi(p.Status("FDSize")); n < 2*100*14 { // so many has the smallest sandbox, and as many as serve may end
				return fmt.Sprintf("%s has room for %d descriptors (%v)", harness.Command(p.PID), n, err)
			}
			return ""
		})
	}
}

// Idle sandboxes hold no more memory than warm-memory says, whatever their idle time-out.
func TestWarmMemory(t *testing.T) {
	d := harness.Start(t, harness.Config(t, "warm-memory: 1\nidle-timeout: 0s\n"), harness.OneCPU, harness.Function(t))
	d.Do()
	d.WaitEmpty()
	d.Do() // the next request gets a new one
}
