//go:build integration

package serve

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/lambda"

	"github.com/sandboxd/sandboxd/daemon/control/secrets"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
	"github.com/sandboxd/sandboxd/state/sqlite"
)

// faulty is the build of sandboxd that has fail-points.
func faulty() string { return filepath.Join(harness.Testbin, "sandboxd-failpoint") }

// serveFaulty is serveKeyed for the build that has fail-points.
func serveFaulty(t *testing.T, f harness.Folders) *keyed {
	t.Helper()
	cmd := exec.Command(faulty(), append([]string{"serve", "--listen=127.0.0.1:0", "--pool=0"}, f.Flags()...)...)
	cmd.Env = append(os.Environ(), failpoint.Variable+"="+f.Faults().Path)
	d := &harness.Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}
	d.Run()
	d.Listening()
	return &keyed{d}
}

// hostKeys are the host keys in the file below the state folder.
func hostKeys(t *testing.T, f harness.Folders) *seal.Ring {
	t.Helper()
	text, err := seal.ReadFile(filepath.Join(f.State, "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := seal.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// resealed counts the secrets in the store of a daemon that has ended which are not encrypted
// with the first key of a ring, or not with any: those that Reseal changes, or cannot read. The
// store stays as it is.
func resealed(t *testing.T, f harness.Folders, ring *seal.Ring) secrets.Result {
	t.Helper()
	store := filepath.Join(t.TempDir(), "store")
	if err := os.CopyFS(store, os.DirFS(filepath.Join(f.State, "control", "store"))); err != nil {
		t.Fatal(err)
	}
	s, err := sqlite.Open(t.Context(), sqlite.Options{Folder: store})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r, err := secrets.Reseal(t.Context(), s, ring)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rotationLife is a daemon's state with secrets of each kind.
type rotationLife struct {
	folders    harness.Folders
	first, key accessKey
}

// check checks that no secret was lost: those of access keys, and a function's variable.
func (l *rotationLife) check(d *keyed, when string) {
	d.T.Helper()
	out, err := d.client(l.first).GetFunctionConfiguration(d.T.Context(), &lambda.GetFunctionConfigurationInput{FunctionName: aws.String("f")})
	if err != nil || out.Environment == nil || out.Environment.Variables["NAME"] != "secret-value" {
		d.T.Errorf("%s: %+v, %v", when, out, err)
	}
	if got := invoke(d.T.Context(), d.client(l.key), "f"); got != `"secret-value"` {
		d.T.Errorf("%s: %s", when, got)
	}
}

// finish starts the daemon anew after a rotation that was cut short, and checks that nothing is
// lost, and that the next rotation comes to its end.
func (l *rotationLife) finish(t *testing.T) {
	t.Helper()
	d := serveKeyed(t, l.folders)
	l.check(d, "after the next start")
	if out := d.key("rotate-host"); !strings.Contains(out, "has a new host key") {
		t.Errorf("%s", out)
	}
	if ids := hostKeys(t, l.folders).IDs(); len(ids) != 1 {
		t.Errorf("keys %v after the next rotation", ids)
	}
	l.check(d, "after the next rotation")
	d.Stop()
	if r := resealed(t, l.folders, hostKeys(t, l.folders)); r.Resealed != 0 || r.Unreadable != 0 {
		t.Errorf("secrets in the store after the next rotation: %+v", r)
	}
}

// A rotation of the host key that is killed at any of its steps, with the daemon, loses nothing,
// and can be repeated.
func TestRotationKilled(t *testing.T) {
	l := &rotationLife{folders: harness.NewFolders(t)}
	d := serveFaulty(t, l.folders)
	l.first = d.first()
	d.create(d.client(l.first), "f", "secret-value")
	l.key = findKey(t, d.key("create", "--invoke", "*"))
	d.Stop()
	faults := l.folders.Faults().Path
	for _, point := range failpoint.RotationSteps {
		t.Run(string(point), func(t *testing.T) {
			harness.WriteFile(t, faults, nil, 0o644)
			d := serveFaulty(t, l.folders)
			old := hostKeys(t, l.folders)
			harness.WriteFile(t, faults, []byte(string(point)+" kill\n"), 0o644)
			held := make(chan struct{})
			go func() { // the control process cannot kill the daemon
				defer close(held)
				if _, ok := d.Log.Wait(harness.Patience, func(line string) bool { return strings.HasPrefix(line, failpoint.Held) }); ok {
					d.Crash()
				}
			}()
			cmd := exec.CommandContext(t.Context(), faulty(), "key", "rotate-host", "--run-dir", l.folders.Run)
			cmd.Env = append(os.Environ(), failpoint.Variable+"="+faults)
			out, err := cmd.CombinedOutput()
			status, ok := errors.AsType[*exec.ExitError](err)
			switch {
			case point == failpoint.HalfResealed:
				if !ok || !strings.Contains(string(out), "but the old one is still needed") || !strings.Contains(string(out), "then run this command again") {
					t.Errorf("the command: %v: %s", err, out)
				}
			case !ok || status.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL:
				t.Errorf("the command was not killed: %v: %s", err, out)
			}
			d.Crash()
			<-held

			both := hostKeys(t, l.folders)
			if ids := both.IDs(); len(ids) != 2 || ids[1] != old.IDs()[0] {
				t.Errorf("keys %v, before %v", ids, old.IDs())
			}
			with, without := resealed(t, l.folders, both), resealed(t, l.folders, old)
			const all = 3 // two access keys and a function
			want := map[failpoint.Point]int{failpoint.HostKeyAdded: 0, failpoint.HalfResealed: 2, failpoint.HostKeyUnneeded: all}[point]
			if with.Unreadable != 0 || with.Resealed != all-want || without.Unreadable != want {
				t.Errorf("encrypted with the new key: want %d of %d; with both keys %+v, with the old one %+v", want, all, with, without)
			}
			harness.WriteFile(t, faults, nil, 0o644)
			l.finish(t)
		})
	}
}

// A control process that is killed while it encrypts secrets again is started again, and ends
// that work. The daemon and its sandboxes go on.
func TestRotationControlKilled(t *testing.T) {
	l := &rotationLife{folders: harness.NewFolders(t)}
	d := serveFaulty(t, l.folders)
	l.first = d.first()
	d.create(d.client(l.first), "f", "secret-value")
	l.key = findKey(t, d.key("create", "--invoke", "*"))
	faults := l.folders.Faults().Path
	harness.WriteFile(t, faults, []byte(string(failpoint.HalfResealed)+" hold\n"), 0o644)
	killed := make(chan error, 1)
	go func() {
		d.Log.Wait(harness.Patience, func(line string) bool { return strings.HasPrefix(line, failpoint.Held) })
		pids := d.processes("sandboxd-control")
		if len(pids) != 1 {
			killed <- fmt.Errorf("processes %v", pids)
			return
		}
		killed <- errors.Join(os.WriteFile(faults, nil, 0o644), syscall.Kill(pids[0], syscall.SIGKILL))
	}()
	out, err := d.command(nil, "rotate-host")
	if err == nil || !strings.Contains(out, "but the old one is still needed") {
		t.Errorf("the command: %v: %s", err, out)
	}
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	l.check(d, "with the next control process")
	d.Stop()
	both := hostKeys(t, l.folders)
	if r := resealed(t, l.folders, both); len(both.IDs()) != 2 || r.Resealed != 0 || r.Unreadable != 0 {
		t.Errorf("with keys %v: %+v", both.IDs(), r)
	}
	l.finish(t)
}
