//go:build integration

package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/forgetfs"
	"github.com/sandboxd/sandboxd/internal/testtime"
)

// Environment variables of the tests: how many times the power is cut, and how often a
// process is killed (`make power` sets them), and the seed, which each run draws and prints.
const (
	cutsVariable  = "POWER_CUTS"
	killsVariable = "POWER_KILLS"
	seedVariable  = "POWER_SEED"
)

// program is this package, built with fail-points.
var program string

func TestMain(m *testing.M) { os.Exit(forgetfs.Main(tests{m})) }

// tests runs the tests with a folder for temporary files in memory: what the tests ask of a
// disk is what forgetfs keeps, and syncs of the host's disk would only take time.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code, err := t.run()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func (t tests) run() (code int, err error) {
	dir, err := os.MkdirTemp("", "powercut")
	if err != nil {
		return 1, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "size=2g"); err != nil {
		return 1, fmt.Errorf("mount a tmpfs: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH), os.Remove(dir)) }()
	program = filepath.Join(os.Getenv("SANDBOXD_TESTBIN"), "powercut")
	if os.Getenv("SANDBOXD_TESTBIN") == "" {
		program = filepath.Join(dir, "powercut")
		if out, err := exec.Command("go", "build", "-tags", "failpoint", "-o", program, ".").CombinedOutput(); err != nil {
			return 1, fmt.Errorf("build the program that is killed: %v\n%s", err, out)
		}
	}
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return 1, err
	}
	return t.m.Run(), nil
}

// number is the value of a variable, or n without one.
func number(t *testing.T, variable string, n int) int {
	t.Helper()
	text := os.Getenv(variable)
	if text == "" {
		return testtime.Rounds(n)
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("%s: %v", variable, err)
	}
	return n
}

// seeded returns a source of random numbers, and prints its seed.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(seedVariable); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("%s=%d", seedVariable, seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// A ledger has what a process said of the changes of each worker.
type ledger struct {
	begun, done [workers]uint64
}

// note takes a line of the process.
func (l *ledger) note(line string) error {
	var what string
	var worker int
	var n uint64
	if _, err := fmt.Sscanf(line, "%s %d %d", &what, &worker, &n); err != nil || worker < 0 || worker >= workers {
		return fmt.Errorf("it says %q", line)
	}
	of := &l.begun[worker]
	if what == "done" {
		of = &l.done[worker]
	}
	if n != *of+1 && *of != 0 {
		return fmt.Errorf("worker %d: %s %d after %d", worker, what, n, *of)
	}
	*of = n
	return nil
}

// compare checks that what was acknowledged is there, and nothing that was not begun. before
// is what was there before the process began.
func (l *ledger) compare(before, counts [workers]uint64) error {
	var errs []error
	for worker, n := range counts {
		if done := max(l.done[worker], before[worker]); n < done {
			errs = append(errs, fmt.Errorf("worker %d has %d changes, and %d were acknowledged", worker, n, done))
		}
		if begun := max(l.begun[worker], before[worker]); n > begun {
			errs = append(errs, fmt.Errorf("worker %d has %d changes, and %d were begun", worker, n, begun))
		}
	}
	return errors.Join(errs...)
}

// then adds what the next process said.
func (l *ledger) then(next *ledger) {
	for worker := range workers {
		l.begun[worker] = max(l.begun[worker], next.begun[worker])
		l.done[worker] = max(l.done[worker], next.done[worker])
	}
}

// total is how many changes were acknowledged.
func (l *ledger) total(before [workers]uint64) (sum uint64) {
	for worker, n := range l.done {
		sum += n - min(n, before[worker])
	}
	return sum
}

// A flaw is how a program is made that does not sync what it must.
type flaw struct {
	synchronous string // of SQLite
	skip        failpoint.Point
}

// start starts a process that changes the store in dir. Its lines are given to said, whose
// error ends the reading; finished gets how it ended, with what it said on standard error.
func start(t *testing.T, dir string, f flaw, said func(line string) error) (cmd *exec.Cmd, finished <-chan error) {
	t.Helper()
	cmd = exec.Command(program, "load", dir, f.synchronous)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if f.skip != "" {
		orders := filepath.Join(t.TempDir(), "failpoints")
		if err := os.WriteFile(orders, []byte(string(f.skip)+" skip\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd.Env = append(os.Environ(), failpoint.Variable+"="+orders)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() }) // if the test fails before it is killed
	ended := make(chan error, 1)
	go func() {
		var err error
		for lines := bufio.NewScanner(out); err == nil && lines.Scan(); {
			err = said(lines.Text())
		}
		if err != nil {
			cmd.Process.Kill()
		}
		if end := cmd.Wait(); err == nil && end != nil {
			err = fmt.Errorf("%w: %s", end, strings.TrimSpace(stderr.String()))
		}
		ended <- err
	}()
	return cmd, ended
}

// mount mounts a disk that can lose its power.
func mount(t *testing.T, disk string) (fs *forgetfs.FS, dir string) {
	t.Helper()
	dir = t.TempDir()
	fs, err := forgetfs.Mount(dir, disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fs.Close(); err != nil {
			t.Error(err)
		}
	})
	return fs, dir
}

// kill has a process change the store in dir until it is killed, at the nth change of the disk.
func kill(t *testing.T, fs *forgetfs.FS, dir string, n int) *ledger {
	t.Helper()
	var l ledger
	var cmd *exec.Cmd
	started := make(chan struct{})
	fs.At(n, func() {
		<-started
		cmd.Process.Kill()
	})
	cmd, finished := start(t, dir, flaw{}, l.note)
	close(started)
	select {
	case err := <-finished:
		if cmd.ProcessState.ExitCode() >= 0 {
			t.Fatalf("the program ended before it was killed: %v", err)
		}
	case <-time.After(testtime.Limit(2 * time.Minute)):
		t.Fatalf("%d changes of the disk take too long: %+v", n, fs.Counts())
	}
	return &l
}

// cut has a process change the store in dir until the power is cut, at the nth change of the
// disk.
func cut(t *testing.T, fs *forgetfs.FS, dir string, n int, f flaw) *ledger {
	t.Helper()
	fs.StopAfter(n)
	var l ledger
	cmd, finished := start(t, dir, f, l.note)
	select {
	case <-fs.Stopped():
		cmd.Process.Kill()
		<-finished // killed, or by an error of the disk
	case err := <-finished:
		select {
		case <-fs.Stopped():
		default:
			t.Fatalf("the program ended with power: %v", err)
		}
	case <-time.After(testtime.Limit(2 * time.Minute)):
		t.Fatalf("%d changes of the disk take too long: %+v", n, fs.Counts())
	}
	return &l
}

// moment chooses at which change of the disk the power is cut: some cuts come while the
// process starts, and some after SQLite has moved its log into the database.
func moment(r *rand.Rand) int {
	return 1 + r.IntN([]int{60, 600, 3000, 12_000}[r.IntN(4)])
}

// newDisk makes a folder that may outlive the test.
func newDisk(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "disk")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// survivors is what the disk holds after a cut, by one of the outcomes, in a new folder.
func survivors(t *testing.T, fs *forgetfs.FS, seed uint64) string {
	t.Helper()
	dir := newDisk(t)
	if _, err := fs.Survivors(seed, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// However often the power is cut, nothing is lost that was acknowledged, and nothing is half
// there that was not. Of each cut several outcomes are looked at; the next cut comes after
// one of them.
func TestPowerCuts(t *testing.T) {
	r := seeded(t)
	cuts := number(t, cutsVariable, 20)
	const generations = 8 // cuts of one store
	var acknowledged uint64
	var at lineage
	for i := range cuts {
		if i%generations == 0 {
			at.remove(t)
			at = lineage{disk: t.TempDir()}
		}
		n := moment(r)
		if !t.Run(strconv.Itoa(i), func(t *testing.T) {
			fs, dir := mount(t, at.disk)
			l := &ledger{}
			if r.IntN(2) == 0 { // a killed process may leave what it has not synced
				l = kill(t, fs, dir, moment(r))
			}
			l.then(cut(t, fs, dir, n, flaw{}))
			acknowledged += l.total(at.counts)
			next, err := at.outcomes(t, r, fs, l)
			if err != nil {
				t.Fatalf("cut at change %d: %v", n, err)
			}
			at.remove(t)
			at = next
		}) {
			return
		}
	}
	t.Logf("%d cuts, %d changes were acknowledged", cuts, acknowledged)
	if acknowledged < uint64(cuts) {
		t.Error("too few to show anything")
	}
}

// A lineage is a disk after some cuts, and how many changes of each worker it has at least.
type lineage struct {
	disk   string
	counts [workers]uint64
}

func (at lineage) remove(t *testing.T) {
	t.Helper()
	if at.disk == "" {
		return
	}
	if err := os.RemoveAll(at.disk); err != nil {
		t.Error(err)
	}
}

// outcomes checks some outcomes of a cut and returns one for the next cut: as the disk is
// after the check, which has mended and closed it, or as it was before.
func (at lineage) outcomes(t *testing.T, r *rand.Rand, fs *forgetfs.FS, l *ledger) (next lineage, err error) {
	t.Helper()
	for range 3 {
		next.remove(t)
		seed := r.Uint64()
		disk := survivors(t, fs, seed)
		if next.counts, err = check(t.Context(), disk); err == nil {
			err = l.compare(at.counts, next.counts)
		}
		if err != nil {
			return next, fmt.Errorf("outcome %d, in %s: %w", seed, disk, err)
		}
		next.disk = disk
		if r.IntN(2) == 0 {
			next.remove(t)
			next.disk = survivors(t, fs, seed)
			continue
		}
		for worker := range next.counts {
			next.counts[worker]++ // check goes on
		}
	}
	return next, nil
}

// A process that was killed while it made a store leaves names and contents that are there and
// not on the disk. The next one must not build on them as if they were.
func TestKilledBeforeCut(t *testing.T) {
	r := seeded(t)
	kills := number(t, killsVariable, 20)
	const first = 400 // changes of the disk that make a store, and some more
	step := 1
	for n := 1; n <= first; n += step {
		if n == 16 { // what makes the host key is within the first ones
			step = max(first/kills, 1)
			n += r.IntN(step)
		}
		t.Run(strconv.Itoa(n), func(t *testing.T) {
			fs, dir := mount(t, t.TempDir())
			l := kill(t, fs, dir, n)
			l.then(cut(t, fs, dir, first+r.IntN(first), flaw{}))
			next, err := (lineage{}).outcomes(t, r, fs, l)
			if err != nil {
				t.Fatal(err)
			}
			next.remove(t)
		})
	}
}

// The control: the same cuts find what a program loses that leaves out a sync.
func TestPowerCutsFindFlaws(t *testing.T) {
	for name, f := range map[string]flaw{
		"synchronous off":      {synchronous: "OFF"},
		"synchronous normal":   {synchronous: "NORMAL"},
		"blob not synced":      {skip: failpoint.SyncBlob},
		"blob's name unsynced": {skip: failpoint.SyncBlobFolder},
	} {
		t.Run(name, func(t *testing.T) {
			r := seeded(t)
			const most = 40
			for i := range most {
				fs, dir := mount(t, t.TempDir())
				l := cut(t, fs, dir, 500+r.IntN(1500), f)
				next, err := (lineage{}).outcomes(t, r, fs, l)
				if err != nil {
					t.Logf("cut %d finds it: %v", i+1, err)
					return
				}
				next.remove(t)
			}
			t.Errorf("%d cuts have found nothing", most)
		})
	}
}

// A process that is killed loses nothing that it acknowledged.
func TestKills(t *testing.T) {
	r := seeded(t)
	kills := number(t, killsVariable, 20)
	at := lineage{disk: t.TempDir()}
	var acknowledged uint64
	for i := range kills {
		n := moment(r)
		if !t.Run(strconv.Itoa(i), func(t *testing.T) {
			fs, dir := mount(t, at.disk)
			l := kill(t, fs, dir, n)
			acknowledged += l.total(at.counts)
			next := lineage{disk: newDisk(t)}
			if err := fs.Seen(next.disk); err != nil {
				t.Fatal(err)
			}
			counts, err := check(t.Context(), next.disk)
			if err := errors.Join(err, l.compare(at.counts, counts)); err != nil {
				t.Fatalf("kill at change %d: %v", n, err)
			}
			for worker := range counts {
				next.counts[worker] = counts[worker] + 1 // check goes on
			}
			at.remove(t)
			at = next
		}) {
			return
		}
	}
	t.Logf("%d kills, %d changes were acknowledged", kills, acknowledged)
}

// Updates that come while another is committed share a sync of the disk, which is counted
// where the disk is.
func TestUpdatesShareSyncs(t *testing.T) {
	const each = 40
	for _, tt := range []struct {
		writers int
		least   float64 // updates per sync
	}{{1, 0.9}, {64, 4}} {
		fs, dir := mount(t, t.TempDir())
		cmd := exec.Command(program, "group", dir, strconv.Itoa(tt.writers), strconv.Itoa(each))
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		lines := bufio.NewScanner(out)
		wait := func(want string) forgetfs.Counts {
			t.Helper()
			if !lines.Scan() || lines.Text() != want {
				t.Fatalf("it says %q, want %q", lines.Text(), want)
			}
			return fs.Counts()
		}
		before := wait("ready")
		fmt.Fprintln(in)
		after := wait("done")
		updates, syncs := tt.writers*each, after.FileSyncs-before.FileSyncs
		if syncs == 0 || float64(updates)/float64(syncs) < tt.least || syncs > updates+updates/10 {
			t.Errorf("%d writers: %d updates in %d syncs, want at least %.1f in one", tt.writers, updates, syncs, tt.least)
		}
		t.Logf("%d writers: %d updates in %d syncs", tt.writers, updates, syncs)
	}
}
