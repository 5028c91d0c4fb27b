//go:build integration

package recovery

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
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
		if !strings.Contains(d.Log.Text(), "the worker has exited, and all sandboxes with it: signal: killed") {
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

// What the worker is told is more than a pipe holds, and it ends, or stops, before it has
// read a byte: the daemon ends all the same, and nothing is left.
func TestWorkerEndsAtOnce(t *testing.T) {
	var env []string
	for i := range 200 {
		env = append(env, fmt.Sprintf("VARIABLE_%d=%s", i, strings.Repeat("x", 1000)))
	}
	image := harness.ImageLayout(t, map[string]any{"Entrypoint": []string{"/main"}, "WorkingDir": "/srv/app", "Env": env})
	const held = failpoint.Held + string(failpoint.WorkerStarted)
	for name, end := range map[string]func(t *testing.T, d *harness.Daemon){
		"killed": func(t *testing.T, d *harness.Daemon) {
			if err := syscall.Kill(d.Worker().PID, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"stopped": func(t *testing.T, d *harness.Daemon) {
			w := d.Worker()
			if err := syscall.Kill(w.PID, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			stopTwice(t, d)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := harness.NewFolders(t)
			set(f.Faults(), t, failpoint.WorkerStarted, "kill")
			d := harness.NewDaemon(t, faultySandboxd(t), f, "--image", image)
			d.Run()
			d.WaitFor(held)
			end(t, d)
			if code := d.WaitExit(); code != 2 || !strings.Contains(d.Log.Text(), "the worker has exited, and all sandboxes with it: signal: killed") {
				t.Errorf("exit code %d, want 2; the log:\n%s", code, d.Log.Text())
			}
			harness.WantNothingLeft(t, f.Run)
		})
	}
}

// A daemon that is told to end before it has executed its sealed copy ends; the copy would
// not know of the signal.
func TestStopBeforeSealing(t *testing.T) {
	f := harness.NewFolders(t)
	set(f.Faults(), t, failpoint.Sealing, "hold")
	d := harness.NewDaemon(t, faultySandboxd(t), f, harness.Function(t))
	d.Run()
	d.WaitFor(failpoint.Held + string(failpoint.Sealing))
	d.Signal(syscall.SIGTERM)
	if code := d.WaitExit(); code != -1 {
		t.Errorf("exit code %d, want the signal to end it", code)
	}
	harness.WantNothingLeft(t, f.Run)
}

// stopTwice asks a daemon to end, and then to end at once, and waits until it has.
func stopTwice(t *testing.T, d *harness.Daemon) {
	t.Helper()
	harness.Eventually(t, harness.Patience, func() string { // the kernel and Go's runtime take two at once for one
		if d.Ended() {
			return ""
		}
		d.Signal(syscall.SIGTERM)
		return "the daemon still runs"
	})
}

// A worker that does not come to its end is ended: nobody who has taken it over can keep
// the supervisor.
func TestWorkerHangs(t *testing.T) {
	d := harness.Start(t, harness.OneCPU, "--drain-timeout=1s", harness.Function(t))
	d.Do()
	w := d.Worker()
	if err := syscall.Kill(w.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopTwice(t, d)
	if code := d.WaitExit(); code != 2 || w.Alive() {
		t.Errorf("exit code %d, want 2; the worker is alive: %v", code, w.Alive())
	}
}
