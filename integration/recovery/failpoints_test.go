//go:build integration

package recovery

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// faultyBuild makes the build of sandboxd that has fail-points, unless it came with the
// test programs.
var faultyBuild = sync.OnceValues(func() (string, error) {
	path := filepath.Join(harness.Testbin, "sandboxd-failpoint")
	if harness.Exists(path) {
		return path, nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "seccomp,failpoint", "-o", path, "../../cmd/sandboxd")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building sandboxd with fail-points: %w\n%s", err, out)
	}
	return path, nil
})

func faultySandboxd(t *testing.T) string {
	t.Helper()
	path, err := faultyBuild()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startFaulty is startIn for the build with fail-points.
func startFaulty(t *testing.T, f harness.Folders, args ...string) *harness.Daemon {
	t.Helper()
	return harness.LaunchBinary(t, faultySandboxd(t), f, args...).Listening()
}

// set has point p do that from now on.
func set(f harness.Faults, t *testing.T, p failpoint.Point, action string) {
	t.Helper()
	harness.WriteFile(t, f.Path, []byte(string(p)+" "+action+"\n"), 0o644) // in place: the worker has it open
}

// skip has the daemon leave out what is done at these points.
func skip(f harness.Faults, t *testing.T, points ...failpoint.Point) {
	t.Helper()
	var text strings.Builder
	for _, p := range points {
		text.WriteString(string(p) + " skip\n")
	}
	harness.WriteFile(t, f.Path, []byte(text.String()), 0o644)
}

// clear ends every fault.
func clear(f harness.Faults, t *testing.T) {
	t.Helper()
	if err := os.WriteFile(f.Path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The binary that is shipped cannot be made to fail: it has neither the variable nor
// the names of the points. The other one has, so the test can see them.
func TestReleaseHasNoFailPoints(t *testing.T) {
	words := []string{failpoint.Variable, string(failpoint.WorkerStarted)}
	for _, p := range slices.Concat(failpoint.Steps, failpoint.StoreSteps, failpoint.RotationSteps) {
		if strings.Contains(string(p), "-") { // "idle" may be anybody's
			words = append(words, string(p))
		}
	}
	release, faulty := harness.ReadFile(t, harness.Sandboxd), harness.ReadFile(t, faultySandboxd(t))
	for _, word := range words {
		if bytes.Contains(release, []byte(word)) {
			t.Errorf("the release has %q", word)
		}
		if !bytes.Contains(faulty, []byte(word)) {
			t.Errorf("the build with fail-points has no %q: this test sees nothing", word)
		}
	}
}

// S-01: kill -9 of the daemon at each step of a sandbox's life.
func TestDaemonKilledAtEachStep(t *testing.T) {
	neighbour := harness.Start(t, harness.OneCPU, harness.Function(t))
	before := neighbour.Do()
	for _, step := range failpoint.Steps {
		t.Run(string(step), func(t *testing.T) {
			f := harness.NewFolders(t)
			args := []string{harness.OneCPU, "--timeout=60s", "--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Watch()}), zippedRuntime(t)}
			var d *harness.Daemon
			switch step {
			case failpoint.ZipStaged: // before it serves
				set(f.Faults(), t, step, "kill")
				d = harness.LaunchBinary(t, faultySandboxd(t), f, args...)
			case failpoint.ShuttingDown, failpoint.HalfTornDown:
				d = startFaulty(t, f, args...)
				d.Do()
				set(f.Faults(), t, step, "kill")
				d.Signal(syscall.SIGTERM)
			default:
				d = startFaulty(t, f, args...)
				set(f.Faults(), t, step, "kill")
				fire(d, script.Event{Report: true})
			}
			waitKilled(d)
			mark := f.Run // no other has it; the instance is not known before it serves
			if d.Instance != "" {
				mark = d.Instance
			}
			wantDeadSoon(t, mark)
			clear(f.Faults(), t)

			var foreign []string
			if d.Instance != "" {
				foreign = plantForeign(t, f, d.Instance)
			}
			begin := time.Now()
			next := startFaulty(t, f, args...)
			wantWithin(t, "the next start", time.Since(begin), 2*time.Second)
			if d.Instance != "" {
				harness.WantNothingLeft(t, d.Instance)
			}
			for _, path := range foreign {
				if !harness.Exists(path) {
					t.Errorf("not ours, and gone: %s", path)
				}
			}
			next.Do()
			next.Stop()
			harness.WantNothingLeft(t, f.State, f.Run)
		})
	}
	if after := neighbour.Do(); after.Started != before.Started {
		t.Error("another daemon's sandbox was replaced")
	}
}

// zippedRuntime is a zip of the test runtime.
func zippedRuntime(t *testing.T) string {
	t.Helper()
	program, err := os.Open(filepath.Join(harness.Testbin, harness.Actor))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	return harness.ZipFile(t, "bootstrap", 0o755, program)
}

// waitKilled waits until the daemon has died of SIGKILL.
func waitKilled(d *harness.Daemon) {
	d.T.Helper()
	d.WaitExit()
	if st := d.Cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
		d.T.Fatalf("the daemon ended with %v, not by its fail-point; its log:\n%s", d.Cmd.ProcessState, d.Log.Text())
	}
}

// wantDeadSoon wants that every process that carries the mark ends within a second of
// now, the death of its daemon (S-01).
func wantDeadSoon(t *testing.T, mark string) {
	t.Helper()
	begin := time.Now()
	marked := func(text string) bool { return strings.Contains(text, mark) }
	harness.Eventually(t, harness.Patience, func() string {
		for _, p := range harness.MarkedProcesses(t, marked) {
			return p
		}
		return ""
	})
	wantWithin(t, "the death of everything inside", time.Since(begin), time.Second)
}

// busy is how much longer than its bound something may take before that is a fault and
// not a neighbour's work on the machine.
const busy = 5

// wantWithin compares what something took with its bound on an idle machine. What
// fails in S-01 waits for a timeout or stays for ever.
func wantWithin(t *testing.T, what string, took, bound time.Duration) {
	t.Helper()
	t.Logf("%s took %v, the bound is %v", what, took.Round(time.Millisecond), bound)
	if limit := busy * harness.Scaled(t, bound); took > limit {
		t.Errorf("%s took %v; want %v at most", what, took, limit)
	}
}
