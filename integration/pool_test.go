//go:build integration

package integration

import (
	"fmt"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// waitInits waits until the daemon has n init handlers and returns them.
func (d *daemon) waitInits(n int) (inits []process) {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		if inits = d.inits(); len(inits) != n {
			return fmt.Sprintf("%d init handlers, want %d", len(inits), n)
		}
		return ""
	})
	return inits
}

// A cold start takes a sandbox that was ready before (ARCHITECTURE decision 2), the
// pool refills, holds no more than there may be, and goes with the daemon.
func TestPool(t *testing.T) {
	d := start(t, oneCPU, "--concurrency=3", "--pool=2", function(t))
	ready := d.waitInits(2)
	if n := len(d.guests()); n != 0 {
		t.Errorf("%d processes of a function before the first invocation", n)
	}
	d.do()
	all := d.waitInits(3)
	guests := d.guests()
	if len(guests) != 1 || !slices.ContainsFunc(ready, func(p process) bool { return p.pid == guests[0].parent }) {
		t.Errorf("the function runs in %v, want it in one of the sandboxes that were ready, %v", guests, ready)
	}

	// A pooled sandbox that dies is replaced by a new one when its turn comes.
	for _, p := range all {
		if p.pid != guests[0].parent {
			if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			eventually(t, patience, func() string {
				if p.alive() {
					return fmt.Sprintf("killed process %d is still there", p.pid)
				}
				return ""
			})
		}
	}
	busy := make(chan error, 1)
	go func() {
		_, err := d.request(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 500}}})
		busy <- err
	}()
	d.do()
	if err := <-busy; err != nil {
		t.Error(err)
	}
}

// Both processes of the daemon have room for the descriptors of all sandboxes that there
// may be before there is one: a table that grows later makes a cold start wait.
func TestRoomForDescriptors(t *testing.T) {
	d := start(t, oneCPU, "--concurrency=100", "--pool=0", function(t))
	supervisor, ok := readProcess(d.Cmd.Process.Pid)
	if !ok {
		t.Fatal("the supervisor is gone")
	}
	for _, p := range []process{supervisor, d.worker()} {
		eventually(t, patience, func() string {
			if n, err := strconv.Atoi(p.status("FDSize")); n < 2*100*14 { // so many has the smallest sandbox, and as many as serve may end
				return fmt.Sprintf("%s has room for %d descriptors (%v)", command(p.pid), n, err)
			}
			return ""
		})
	}
}

// Idle sandboxes hold no more memory than warm-memory says, whatever their idle time-out.
func TestWarmMemory(t *testing.T) {
	d := start(t, config(t, "warm-memory: 1\nidle-timeout: 0s\n"), oneCPU, function(t))
	d.do()
	d.waitEmpty()
	d.do() // the next request gets a new one
}
