//go:build integration

package recovery

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// A worker that is killed, at whatever moment, takes its sandboxes with it, frozen ones
// too; the supervisor removes all that is left of them and says so.
func TestWorkerKilled(t *testing.T) {
	code, watched := harness.Function(t), harness.Layer(t, harness.Extensions{"watcher": harness.Idle()})
	kill := func(t *testing.T, d *harness.Daemon) {
		t.Helper()
		inside := d.Descendants()
		if err := syscall.Kill(d.Worker().PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if code := d.WaitExit(); code != 2 {
			t.Errorf("exit code %d, want 2", code)
		}
		if !strings.Contains(d.Log.Text(), "the worker has ended, and all sandboxes with it: signal: killed") {
			t.Errorf("the log does not tell:\n%s", d.Log.Text())
		}
		for _, p := range inside {
			if p.Alive() {
				t.Errorf("process %d (%s) is alive", p.PID, harness.Command(p.PID))
			}
		}
		harness.WantNothingLeft(t, d.Instance)
	}
	t.Run("frozen", func(t *testing.T) {
		d := harness.Start(t, harness.OneCPU, "--layer", watched, code)
		d.Do()
		d.WaitFrozen()
		kill(t, d)
	})
	t.Run("invoking", func(t *testing.T) {
		g := gates{t, code}
		g.shut("invoke")
		d := harness.Start(t, harness.OneCPU, "--timeout=60s", code)
		fire(d, script.Event{Report: true, Steps: []script.Step{harness.Note("invoked"), gate("invoke")}})
		d.WaitPrinted("runtime", "invoked", 1)
		kill(t, d)
		g.open("invoke")
	})
	t.Run("random", func(t *testing.T) {
		folders := harness.NewFolders(t)
		for range harness.Rounds(t, 10) {
			d := harness.StartIn(t, folders, harness.OneCPU, "--concurrency=3", "--pool=1", "--layer", watched, code)
			for range 3 {
				fire(d, "x")
			}
			time.Sleep(rand.N(150 * time.Millisecond)) // whatever it does then
			kill(t, d)
		}
	})
}

// A worker that does not come to its end is ended: nobody who has taken it over can keep
// the supervisor.
func TestWorkerHangs(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--drain-timeout=1s", harness.Function(t))
	d.Do()
	w, supervisor := d.Worker(), harness.Process{PID: d.Cmd.Process.Pid}
	if err := syscall.Kill(w.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		d.Signal(syscall.SIGTERM)
		harness.Eventually(t, harness.Patience, func() string { // two at once count as one
			if pending, err := strconv.ParseUint(supervisor.Status("ShdPnd"), 16, 64); err != nil || pending>>(uint(syscall.SIGTERM)-1)&1 != 0 {
				return fmt.Sprintf("the signal is pending: %x, %v", pending, err)
			}
			return ""
		})
	}
	if code := d.WaitExit(); code != 2 || w.Alive() {
		t.Errorf("exit code %d, want 2; the worker is alive: %v", code, w.Alive())
	}
}
