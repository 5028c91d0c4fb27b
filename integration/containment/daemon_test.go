//go:build integration

package containment

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// S-05: memory that a sandbox uses up is not the daemon's: none of its processes is in a
// cgroup of a sandbox.
func TestDaemonIsInNoSandbox(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	d.Do()
	for _, p := range []harness.Process{{PID: d.Cmd.Process.Pid}, d.Worker()} {
		if in := harness.ReadFile(t, fmt.Sprintf("/proc/%d/cgroup", p.PID)); strings.Contains(string(in), d.Instance+"/") {
			t.Errorf("%s is in the cgroup of a sandbox:\n%s", harness.Command(p.PID), in)
		}
	}
	if guests := d.Guests(); !slices.ContainsFunc(guests, func(p harness.Process) bool {
		return strings.Contains(string(harness.ReadFile(t, fmt.Sprintf("/proc/%d/cgroup", p.PID))), d.Instance+"/")
	}) {
		t.Errorf("control: %v are in no cgroup of a sandbox either", guests)
	}
}
