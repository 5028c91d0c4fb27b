package harness

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// Folders are the places where a daemon keeps what it has, and the host that it is on.
// Several daemons of a test may share them, one after the other or at once.
type Folders struct {
	testdaemon.Folders
	Host *Space // the network namespace that plays the host for the daemons; nil is the machine's own
}

// NewFolders makes folders that go with the test, and wants that nothing is left of
// what was in them. Their paths are short because sockets live in them.
func NewFolders(t *testing.T) Folders {
	t.Helper()
	root, err := os.MkdirTemp("", "sbx")
	if err != nil {
		t.Fatal(err)
	}
	f, err := testdaemon.NewFolders(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // after those of the daemons
		WantNothingLeft(t, f.State, f.Run)
		if err := os.RemoveAll(root); err != nil {
			t.Errorf("remove the daemon's folders: %v", err)
		}
	})
	return Folders{Folders: f}
}

// Daemon is one `sandboxd run` of a test, T.
type Daemon struct {
	*testdaemon.Daemon
	T       *testing.T
	Folders Folders
}

// Start runs sandboxd with the flags and code given, and waits until it serves. At
// the end of the test it is stopped, and nothing may be left of it.
func Start(t *testing.T, args ...string) *Daemon {
	t.Helper()
	return StartIn(t, NewFolders(t), args...)
}

// StartIn is Start with folders that others may have too.
func StartIn(t *testing.T, f Folders, args ...string) *Daemon {
	t.Helper()
	return Launch(t, f, args...).Listening()
}

// Listening waits until the daemon serves. At the end of the test it is stopped, and
// nothing may be left of it.
func (d *Daemon) Listening() *Daemon {
	t := d.T
	t.Helper()
	if err := d.Daemon.Listening(Patience); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Stop()
		WantNothingLeft(t, d.Instance)
		if t.Failed() {
			t.Logf("log of sandboxd %s:\n%s", d.Instance, d.Log.Text())
		}
	})
	return d
}

// Launch runs sandboxd without waiting for anything. It has one sandbox at once
// and none in the pool unless args say otherwise: with more, an invocation that meets
// a busy one would get another, and tests that follow one sandbox would lose it. Its
// function has as long as the tests are patient: 3 s, the default, can be too little
// for anything on a slow machine.
func Launch(t *testing.T, f Folders, args ...string) *Daemon {
	t.Helper()
	return LaunchBinary(t, Sandboxd, f, args...)
}

// LaunchBinary is Launch for another build of sandboxd.
func LaunchBinary(t *testing.T, binary string, f Folders, args ...string) *Daemon {
	t.Helper()
	d := NewDaemon(t, binary, f, args...)
	d.Run()
	if binary != Sandboxd {
		go d.killWhenHeld()
	}
	return d
}

// NewDaemon is a daemon that does not run yet. Its command may be changed until Run.
func NewDaemon(t *testing.T, binary string, f Folders, args ...string) *Daemon {
	cmd := f.Host.Command(binary, append(append([]string{"run", "--listen=127.0.0.1:0", "--concurrency=1", "--pool=0", "--timeout=" + Patience.String()}, f.Flags()...), args...)...)
	cmd.Env = append(os.Environ(), failpoint.Variable+"="+f.Faults().Path) // heard by builds with fail-points only
	return &Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}
}

// Run starts the daemon's process. It is killed at the end of the test, whatever
// happened before.
func (d *Daemon) Run() {
	d.T.Helper()
	if err := d.Start(); err != nil {
		d.T.Fatal(err)
	}
	d.T.Cleanup(d.Kill)
}

// Signal sends sig to the daemon.
func (d *Daemon) Signal(sig syscall.Signal) {
	d.T.Helper()
	if err := d.Daemon.Signal(sig); err != nil {
		d.T.Error(err)
	}
}

// WaitExit waits for the end of the daemon and returns its exit code, -1 after a
// signal.
func (d *Daemon) WaitExit() int {
	d.T.Helper()
	if err := d.Daemon.Wait(Patience); err != nil {
		d.T.Errorf("%v; its log:\n%s", err, d.Log.Text())
	}
	return d.ExitCode()
}

// Stop ends the daemon in order, unless it has ended already.
func (d *Daemon) Stop() {
	d.T.Helper()
	if err := d.Daemon.Stop(Patience); err != nil {
		d.T.Errorf("%v; its log:\n%s", err, d.Log.Text())
	}
}

// Crash ends the daemon with SIGKILL.
func (d *Daemon) Crash() {
	d.T.Helper()
	d.Kill()
}

// Faults are what the daemons of a folder, if built so, are told to do wrong. Path is the
// file that tells them.
type Faults struct{ Path string }

// Faults are those of the daemons that have these folders.
func (f Folders) Faults() Faults { return Faults{filepath.Join(filepath.Dir(f.Run), "faults")} }

// killWhenHeld kills the daemon when its worker has come to a fail-point at which that is
// to happen. It returns when the daemon has ended.
func (d *Daemon) killWhenHeld() {
	if _, ok := d.Log.Wait(time.Hour, func(line string) bool { return strings.HasPrefix(line, failpoint.Held) }); ok {
		d.Signal(syscall.SIGKILL)
	}
}
