//go:build integration

package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// faultyBuild makes the build of sandboxd that has fail-points, unless it came with the
// test programs.
var faultyBuild = sync.OnceValues(func() (string, error) {
	path := filepath.Join(testbin, "sandboxd-failpoint")
	if exists(path) {
		return path, nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-tags", "seccomp,failpoint", "-o", path, "../cmd/sandboxd")
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
func startFaulty(t *testing.T, f folders, args ...string) *daemon {
	t.Helper()
	return launchBinary(t, faultySandboxd(t), f, args...).listening()
}

// faults are what the daemons of a folder, if built so, are told to do wrong.
type faults struct{ path string }

func (f folders) faults() faults { return faults{filepath.Join(filepath.Dir(f.Run), "faults")} }

// set has point p do that from now on.
func (f faults) set(t *testing.T, p failpoint.Point, action string) {
	t.Helper()
	writeFile(t, f.path, []byte(string(p)+" "+action+"\n"), 0o644) // in place: the worker has it open
}

// skip has the daemon leave out what is done at these points.
func (f faults) skip(t *testing.T, points ...failpoint.Point) {
	t.Helper()
	var text strings.Builder
	for _, p := range points {
		text.WriteString(string(p) + " skip\n")
	}
	writeFile(t, f.path, []byte(text.String()), 0o644)
}

// clear ends every fault.
func (f faults) clear(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(f.path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

// The binary that is shipped cannot be made to fail: it has neither the variable nor
// the names of the points. The other one has, so the test can see them.
func TestReleaseHasNoFailPoints(t *testing.T) {
	words := []string{failpoint.Variable}
	for _, p := range failpoint.Steps {
		if strings.Contains(string(p), "-") { // "idle" may be anybody's
			words = append(words, string(p))
		}
	}
	release, faulty := readFile(t, sandboxd), readFile(t, faultySandboxd(t))
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
	neighbour := start(t, oneCPU, function(t))
	before := neighbour.do()
	for _, step := range failpoint.Steps {
		t.Run(string(step), func(t *testing.T) {
			f := newFolders(t)
			args := []string{oneCPU, "--timeout=60s", "--layer", layer(t, extensions{"watcher": watch()}), zippedRuntime(t)}
			var d *daemon
			switch step {
			case failpoint.ZipStaged: // before it serves
				f.faults().set(t, step, "kill")
				d = launchBinary(t, faultySandboxd(t), f, args...)
			case failpoint.ShuttingDown, failpoint.HalfTornDown:
				d = startFaulty(t, f, args...)
				d.do()
				f.faults().set(t, step, "kill")
				d.signal(syscall.SIGTERM)
			default:
				d = startFaulty(t, f, args...)
				f.faults().set(t, step, "kill")
				d.fire(script.Event{Report: true})
			}
			d.waitKilled()
			mark := f.Run // no other has it; the instance is not known before it serves
			if d.Instance != "" {
				mark = d.Instance
			}
			wantDeadSoon(t, mark)
			f.faults().clear(t)

			var foreign []string
			if d.Instance != "" {
				foreign = plantForeign(t, f, d.Instance)
			}
			begin := time.Now()
			next := startFaulty(t, f, args...)
			wantWithin(t, "the next start", time.Since(begin), 2*time.Second)
			if d.Instance != "" {
				wantNothingLeft(t, d.Instance)
			}
			for _, path := range foreign {
				if !exists(path) {
					t.Errorf("not ours, and gone: %s", path)
				}
			}
			next.do()
			next.stop()
			wantNothingLeft(t, f.State, f.Run)
		})
	}
	if after := neighbour.do(); after.Started != before.Started {
		t.Error("another daemon's sandbox was replaced")
	}
}

// zippedRuntime is a zip of the test runtime.
func zippedRuntime(t *testing.T) string {
	t.Helper()
	program, err := os.Open(filepath.Join(testbin, actor))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	return zipFile(t, "bootstrap", 0o755, program)
}

// killWhenHeld kills the daemon when its worker has come to a fail-point at which that is
// to happen. It returns when the daemon has ended.
func (d *daemon) killWhenHeld() {
	if _, ok := d.Log.Wait(time.Hour, func(line string) bool { return strings.HasPrefix(line, failpoint.Held) }); ok {
		d.signal(syscall.SIGKILL)
	}
}

// waitKilled waits until the daemon has died of SIGKILL.
func (d *daemon) waitKilled() {
	d.t.Helper()
	d.waitExit()
	if st := d.Cmd.ProcessState.Sys().(syscall.WaitStatus); !st.Signaled() || st.Signal() != syscall.SIGKILL {
		d.t.Fatalf("the daemon ended with %v, not by its fail-point; its log:\n%s", d.Cmd.ProcessState, d.Log.Text())
	}
}

// wantDeadSoon wants that every process that carries the mark ends within a second of
// now, the death of its daemon (S-01).
func wantDeadSoon(t *testing.T, mark string) {
	t.Helper()
	begin := time.Now()
	marked := func(text string) bool { return strings.Contains(text, mark) }
	eventually(t, patience, func() string {
		for _, p := range markedProcesses(t, marked) {
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
	if limit := busy * scaled(t, bound); took > limit {
		t.Errorf("%s took %v; want %v at most", what, took, limit)
	}
}
