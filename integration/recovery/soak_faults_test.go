//go:build integration

package recovery

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
)

// soakFaults are what a faulted cycle may suffer. Of 1,000, weight many do; the rest
// are runtimes that exit.
var soakFaults = []struct {
	name   string
	weight int
	cycle  func(*soak)
}{
	{"the runtime exits with 1", 0, func(s *soak) { s.wantFailure("exit status 1", script.Step{Op: "exit", N: 1}) }},
	{"the runtime exits with 0", 150, func(s *soak) { s.wantFailure("Runtime.ExitError", script.Step{Op: "exit"}) }},
	{"the runtime exits after its response", 150, (*soak).exitAfterResponse},
	{"the runtime is killed", 100, func(s *soak) { s.wantFailure("signal: killed", script.Step{Op: "signal", N: int64(syscall.SIGKILL)}) }},
	{"out of memory", 80, func(s *soak) { s.wantFailure("signal: killed", script.Step{Op: "alloc", N: 1500}) }},
	{"time-out, deaf to SIGTERM, with a daemon", 20, func(s *soak) {
		s.wantFailure("Task timed out", script.Step{Op: "daemon"}, harness.BeatAtSIGTERM, script.Step{Op: "sleep", MS: 60_000})
	}},
	{"time-out, stopped by itself", 10, func(s *soak) {
		s.wantFailure("Task timed out", script.Step{Op: "signal", N: int64(syscall.SIGSTOP)})
	}},
	{"the caller leaves", 100, func(s *soak) {
		s.ask(script.Event{Report: true, Steps: []script.Step{{Op: "sleep", MS: 100}}}, time.Duration(s.random.below(60))*time.Millisecond)
	}},
	{"an init handler is killed", 80, (*soak).killInit},
	{"the daemon is stopped for a while", 20, (*soak).stopDaemon},
	{"the daemon is killed at random", 40, (*soak).killDaemon},
	{"the daemon is killed at a step", 60, (*soak).killAtStep},
	{"rmdir of a cgroup fails", 20, func(s *soak) { s.failStep(failpoint.RemoveCgroup, "EBUSY") }},
	{"umount of a root fails", 10, func(s *soak) { s.failStep(failpoint.UnmountRoot, "EBUSY") }},
	{"the disk is full", 30, (*soak).fillDisk},
}

// faultOf chooses a fault by chance, after each was there once.
func (s *soak) faultOf(i int) int {
	if i < len(soakFaults) {
		return i
	}
	x := s.random.below(1000)
	for k, f := range soakFaults {
		if x < f.weight {
			return k
		}
		x -= f.weight
	}
	return 0
}

func (s *soak) exitAfterResponse() {
	r := s.ask(script.Event{Report: true, Steps: []script.Step{
		harness.Respond(`"early"`), {Op: "exit", N: 1}}}, harness.Patience)
	if (r.fate != answered || r.text != `"early"`) && !r.upset {
		s.t.Errorf("%s: fate %d, answer %.300s; want the response that came before the exit", r.id, r.fate, r.text)
	}
}

// beside lets a plain cycle run while do does something to the daemon, at a random
// moment within some 200 ms.
func (s *soak) beside(do func(*harness.Daemon)) {
	s.alone.Lock()
	defer s.alone.Unlock()
	s.disturb()
	defer s.disturb()
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.echo()
	}()
	time.Sleep(time.Duration(s.random.below(200)) * time.Millisecond)
	do(s.daemon)
	<-done
}

// killInit kills PID 1 of any domain, one in the pool perhaps.
func (s *soak) killInit() {
	s.beside(func(d *harness.Daemon) {
		if inits := d.Inits(); len(inits) > 0 {
			_ = syscall.Kill(inits[s.random.below(len(inits))].PID, syscall.SIGKILL) // it may be gone
		}
	})
}

func (s *soak) stopDaemon() {
	s.beside(func(d *harness.Daemon) {
		d.Signal(syscall.SIGSTOP)
		time.Sleep(500 * time.Millisecond)
		d.Signal(syscall.SIGCONT)
	})
}

func (s *soak) killDaemon() {
	s.beside(func(d *harness.Daemon) {
		d.Signal(syscall.SIGKILL)
		s.exchange()
	})
}

// killAtStep has the daemon killed at a step that cycles pass.
func (s *soak) killAtStep() {
	steps := failpoint.Steps[1:] // the first is passed before there are cycles
	s.beside(func(d *harness.Daemon) {
		set(s.folders.Faults(), s.t, steps[s.random.below(len(steps))], "kill")
		for alive := true; alive; {
			select {
			case <-d.Done():
				alive = false
			default:
				s.drive(d)
			}
		}
		s.exchange()
	})
}

// drive makes one request, whatever comes of it.
func (s *soak) drive(d *harness.Daemon) {
	r := s.send(d, "x", harness.Patience)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests[r.id] = request{r.fate, d}
}

// exchange starts the next daemon after one that was killed. Nothing may be left of
// that one.
func (s *soak) exchange() {
	last := s.daemon
	waitKilled(last)
	clear(s.folders.Faults(), s.t)
	s.use(startFaulty(s.t, s.folders, s.args...))
	harness.WantNothingLeft(s.t, last.Instance)
}

// failStep lets a step of the tear-down fail for some cycles.
func (s *soak) failStep(p failpoint.Point, errno string) {
	s.beside(func(d *harness.Daemon) {
		set(s.folders.Faults(), s.t, p, errno)
		for range 3 {
			s.drive(d)
		}
		clear(s.folders.Faults(), s.t)
	})
}

// fillDisk leaves no room in the file system of the state folder for some cycles.
func (s *soak) fillDisk() {
	s.beside(func(d *harness.Daemon) {
		full := filepath.Join(s.folders.State, "full")
		if err := fillUp(full); err != nil {
			s.t.Error(err)
		}
		for range 3 {
			s.drive(d)
		}
		if err := os.Remove(full); err != nil {
			s.t.Error(err)
		}
	})
}

// fillUp writes to a file until its file system is full.
func fillUp(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 1} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("fill %s: %w", path, err)
	}
	return nil
}
