//go:build integration

package containment

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// neighbour is another daemon's function, which must not notice what happens beside it.
type neighbour struct {
	d      *harness.Daemon
	before script.Report
}

func newNeighbour(t *testing.T) neighbour {
	t.Helper()
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	return neighbour{d, d.Do()}
}

// check invokes the neighbour, which must be the process that it was.
func (n neighbour) check(t *testing.T) {
	t.Helper()
	after := n.d.Do(script.Step{Op: "fork", N: 20}, script.Step{Op: "open", N: 500}, script.Step{Op: "fill", Path: "/tmp/n", N: 1 << 20}, script.Step{Op: "alloc", N: 16})
	if after.Started != n.before.Started {
		t.Error("the neighbour's runtime was replaced")
	}
	for _, r := range after.Results {
		if r.Error != "" {
			t.Errorf("neighbour: %+v", r)
		}
	}
}

// ACC-23, ENV-34, SEC-50.
func TestACC23Exhaustion(t *testing.T) {
	n := newNeighbour(t)

	t.Run("processes", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, "--timeout=60s", harness.Function(t))
		r := d.Do(script.Step{Op: "fork", N: 2000}).Results[0]
		// Each child of the Go program is several threads.
		if syscall.Errno(r.Errno) != syscall.EAGAIN || r.N < 50 || r.N > 1024 {
			t.Errorf("%+v; want EAGAIN before 1,024 processes", r)
		}
		n.check(t)
		d.Do()
	})
	t.Run("fork bomb", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, "--timeout=5s", harness.Function(t))
		before := d.Do()
		a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "bomb"}, {Op: "sleep", MS: 600_000}}})
		// A runtime without threads to spare may die before its time is up.
		if body := string(a.Body); !strings.Contains(body, `"Sandbox.Timedout"`) && !strings.Contains(body, `"Runtime.ExitError"`) {
			t.Errorf("answer %s; want Sandbox.Timedout or Runtime.ExitError", body)
		}
		n.check(t)
		if after := d.Do(); after.Started == before.Started {
			t.Error("the runtime survived")
		}
		if guests := d.Guests(); len(guests) != 1 {
			t.Errorf("%d processes in the sandbox after the reset, want 1", len(guests))
		}
	})
	t.Run("descriptors", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, harness.Function(t))
		before := d.Do()
		r := d.Do(script.Step{Op: "open", N: 5000}).Results[0]
		if syscall.Errno(r.Errno) != syscall.EMFILE || r.N < 900 || r.N > 1024 {
			t.Errorf("%+v; want EMFILE before 1,024 descriptors", r)
		}
		n.check(t)
		if after := d.Do(); after.Started != before.Started {
			t.Error("the runtime was replaced")
		}
	})
	t.Run("tmp", func(t *testing.T) {
		const size = 512 << 20
		// More than the memory limit: filling /tmp costs no memory of the function's.
		d := harness.Start(t, "--memory=384", "--timeout=600s", "--ephemeral-storage=512", harness.Function(t))
		r := d.Do(script.Step{Op: "fill", Path: "/tmp/full", N: 4 << 30}).Results[0]
		if syscall.Errno(r.Errno) != syscall.ENOSPC || r.N < size || r.N > size+size/25 {
			t.Errorf("%+v; want ENOSPC at 512 MiB, or a little later", r)
		}
		n.check(t)
		again := d.Do(
			script.Step{Op: "remove", Path: "/tmp/full"},
			script.Step{Op: "fill", Path: "/tmp/again", N: 100 << 20},
			script.Step{Op: "fill_inodes", Path: "/tmp/inodes", N: 1 << 20},
			script.Step{Op: "remove", Path: "/tmp/inodes"},
			script.Step{Op: "write", Path: "/tmp/last", Data: "x"})
		if r := again.Results[1]; r.Error != "" {
			t.Errorf("after removal: %+v", r)
		}
		if r := again.Results[2]; syscall.Errno(r.Errno) != syscall.ENOSPC {
			t.Errorf("inodes: %+v; want ENOSPC", r)
		}
		if r := again.Results[4]; r.Error != "" {
			t.Errorf("after removal of the inodes: %+v", r)
		}
		n.check(t)
	})
	t.Run("memory", func(t *testing.T) {
		d := harness.Start(t, "--memory=256", "--timeout=60s", harness.Function(t))
		before := d.Do()
		a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "alloc", N: 1024}}})
		a.WantError(t, "Runtime.OutOfMemory", "RequestId: <id> Error: Runtime exited with error: signal: killed: out of memory, the limit is 256 MB")
		if r := d.ReportOf(a.ID()); r.ErrorType != "Runtime.OutOfMemory" {
			t.Errorf("REPORT has the error type %q (INV-14)", r.ErrorType)
		}
		n.check(t)
		if after := d.Do(); after.LogStream == before.LogStream || after.Started == before.Started {
			t.Errorf("log stream %s after %s; want a fresh sandbox (docs/decisions/0037)", after.LogStream, before.LogStream)
		}
	})
	t.Run("memory of a child", func(t *testing.T) {
		d := harness.Start(t, "--memory=256", "--timeout=60s", harness.ShellFunction(t, []byte("#!/bin/sh\n"+
			"api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation\ncurl -s $api/next\ntail /dev/zero\nsleep 1000\n")))
		d.Invoke("x").WantError(t, "Runtime.OutOfMemory", "RequestId: <id> Error: Runtime exited with error: signal: killed: out of memory, the limit is 256 MB")
		n.check(t)
	})
	t.Run("memory of a child whose end is the runtime's", func(t *testing.T) {
		d := harness.Start(t, "--memory=256", "--timeout=60s", harness.ShellFunction(t, []byte("#!/bin/sh\n"+
			"api=http://$AWS_LAMBDA_RUNTIME_API/2018-06-01/runtime/invocation\ncurl -s $api/next\ntail /dev/zero || exit 3\n")))
		a := d.Invoke("x") // the runtime may exit before it is killed
		if body := string(a.Body); !strings.Contains(body, `"errorType":"Runtime.OutOfMemory"`) || !strings.Contains(body, ": out of memory, the limit is 256 MB") {
			t.Errorf("answer %s", body)
		}
		n.check(t)
	})
	t.Run("output", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, "--timeout=120s", "--log-level=info", harness.Function(t))
		before := d.Do()
		d.Do(script.Step{Op: "print", N: 20_000, Data: strings.Repeat("x", 1000) + "\n"})
		n.check(t)
		if after := d.Do(); after.Started != before.Started {
			t.Error("the runtime was replaced")
		}
	})
}

// ACC-24, LC-69, SUP-13.
func TestACC24Daemon(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	r := d.Do(script.Step{Op: "daemon"})
	if r.Results[0].N == 0 {
		t.Fatalf("no daemon: %+v", r.Results)
	}
	daemons := slices.DeleteFunc(d.Guests(), func(p harness.Process) bool { return !strings.Contains(harness.Command(p.PID), script.DaemonName) })
	if len(daemons) != 1 {
		t.Fatalf("%d daemons on the host, want 1; in the sandbox are %v", len(daemons), d.Guests())
	}
	d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}}).
		WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 1")
	for _, line := range d.Do(script.Step{Op: "ps"}).Results[0].List {
		if strings.Contains(line, script.DaemonName) {
			t.Errorf("after the reset: %s", line)
		}
	}
	if daemons[0].Alive() {
		t.Error("the daemon lives on, on the host")
	}
}

// SEC-39: what a function leaves in shared memory and /tmp is seen by
// itself, and neither by a sandbox beside it nor by the one that takes its place.
func TestNothingOfOthers(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--concurrency=2", "--tenant-isolation", harness.Function(t))
	do := func(tenant string, steps ...script.Step) script.Report {
		t.Helper()
		a, err := d.AskTenant(tenant, script.Event{Report: true, Steps: steps})
		if err != nil {
			t.Fatal(err)
		}
		return d.Report(a)
	}
	const key = 0x5bd1
	leave := []script.Step{{Op: "shmget", N: key}, {Op: "write", Path: "/dev/shm/left", Data: "x"}, {Op: "write", Path: "/tmp/left", Data: "x"}}
	look := []script.Step{{Op: "read", Path: "/proc/sysvipc/shm"}, {Op: "list", Path: "/dev/shm"}, {Op: "list", Path: "/tmp"}}
	seen := func(r script.Report) (list []string) {
		if strings.Contains(r.Results[0].Text, fmt.Sprintf(" %d ", key)) {
			list = append(list, "segment")
		}
		for i, name := range []string{"/dev/shm", "/tmp"} {
			if slices.Contains(r.Results[i+1].List, "left") {
				list = append(list, name)
			}
		}
		return list
	}
	do("beside") // is there already
	for i, r := range do("one", leave...).Results {
		if r.Error != "" {
			t.Errorf("%+v: %+v", leave[i], r)
		}
	}
	own := do("one", look...)
	if got := seen(own); len(got) != 3 {
		t.Errorf("control: the function itself sees %q of what it has left", got)
	}
	if got := seen(do("beside", look...)); len(got) > 0 {
		t.Errorf("the sandbox beside it sees %q", got)
	}
	d.KillSandboxes()
	after := do("one", look...)
	if got := seen(after); after.LogStream == own.LogStream || len(got) > 0 {
		t.Errorf("another sandbox (%v) sees %q of one that has ended", after.LogStream != own.LogStream, got)
	}
}
