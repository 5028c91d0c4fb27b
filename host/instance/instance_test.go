package instance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/runfolder"
)

// TestMain makes the test binary a second daemon when it is asked to be one: it
// acquires an instance and a lease, says which, and waits to be killed.
func TestMain(m *testing.M) {
	if runDir := os.Getenv("INSTANCE_TEST_RUN_DIR"); runDir != "" {
		i, err := Acquire(runDir)
		if err != nil {
			panic(err)
		}
		base, err := openTestLeases(runDir).Acquire(i.Dir())
		if err != nil {
			panic(err)
		}
		fmt.Println(i.ID(), base)
		for { // not select {}: with no other goroutine that is a deadlock to the Go runtime
			_ = unix.Pause()
		}
	}
	os.Exit(m.Run())
}

func openTestLeases(runDir string) *subid.Leases {
	l, err := subid.OpenLeases(filepath.Join(runDir, "ids"), subid.Pool{Base: subid.DefaultIDBase, Ranges: 2})
	if err != nil {
		panic(err)
	}
	return l
}

// daemon starts a second process that holds an instance and a lease.
func daemon(t *testing.T, runDir string) (cmd *exec.Cmd, id string, base uint32) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "INSTANCE_TEST_RUN_DIR="+runDir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Sscan(line, &id, &base); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return cmd, id, base
}

func TestReconcileRemovesTheDeadOnly(t *testing.T) {
	runDir := t.TempDir()
	dead, deadID, deadBase := daemon(t, runDir)
	_, liveID, liveBase := daemon(t, runDir)
	leases := openTestLeases(runDir)

	never := func(context.Context, Info) error { t.Error("clean called for a live instance"); return nil }
	if removed, err := Reconcile(t.Context(), runDir, leases, never); err != nil || len(removed) != 0 {
		t.Fatalf("with all alive: removed %v, %v", removed, err)
	}
	own, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if _, err := leases.Acquire(own.Dir()); !errors.Is(err, subid.ErrNoRange) {
		t.Fatalf("third lease of two ranges: %v, want ErrNoRange", err)
	}

	if err := dead.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dead.Wait()
	infos, err := List(runDir)
	if err != nil {
		t.Fatal(err)
	}
	alive := map[string]bool{}
	for _, i := range infos {
		alive[i.ID] = i.Alive
	}
	if want := map[string]bool{deadID: false, liveID: true, own.ID(): true}; fmt.Sprint(alive) != fmt.Sprint(want) {
		t.Errorf("List: %v, want %v", alive, want)
	}
	if _, err := leases.Acquire(own.Dir()); !errors.Is(err, subid.ErrNoRange) {
		t.Fatalf("the dead one's range before reconciliation: %v, want ErrNoRange", err)
	}

	// A clean that fails keeps folder and lease for the next time.
	cause := errors.New("busy")
	_, err = Reconcile(t.Context(), runDir, leases, func(context.Context, Info) error { return cause })
	if !errors.Is(err, cause) {
		t.Fatalf("Reconcile: %v, want the error of clean", err)
	}
	if _, err := leases.Acquire(own.Dir()); !errors.Is(err, subid.ErrNoRange) {
		t.Fatalf("the range of one that could not be cleaned: %v, want ErrNoRange", err)
	}

	var cleaned []string
	removed, err := Reconcile(t.Context(), runDir, leases, func(_ context.Context, i Info) error {
		cleaned = append(cleaned, i.ID)
		return nil
	})
	if err != nil || !slices.Equal(removed, []string{deadID}) || !slices.Equal(cleaned, removed) {
		t.Fatalf("removed %v, cleaned %v, %v; want %s", removed, cleaned, err, deadID)
	}
	if _, err := os.Stat(filepath.Join(runDir, deadID)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder of the dead: %v", err)
	}
	base, err := leases.Acquire(own.Dir())
	if err != nil || base != deadBase || base == liveBase {
		t.Errorf("lease %d, %v; want the dead one's %d", base, err, deadBase)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	i, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(i.Dir()); err != nil || fi.Mode().Perm() != runfolder.Mode {
		t.Fatalf("instance folder: %v, %v; want mode 0711", fi.Mode(), err)
	}
	if err := os.WriteFile(i.Info().ControlSocket(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if infos, err := List(runDir); err != nil || len(infos) != 0 {
		t.Errorf("after Close: %v, %v", infos, err)
	}
	if infos, err := List(filepath.Join(runDir, "missing")); err != nil || infos != nil {
		t.Errorf("missing run folder: %v, %v; want none", infos, err)
	}
}

func TestAbandonLeavesADeadInstance(t *testing.T) {
	runDir := t.TempDir()
	i, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Abandon(); err != nil {
		t.Fatal(err)
	}
	infos, err := List(runDir)
	if err != nil || len(infos) != 1 || infos[0].Alive {
		t.Errorf("after Abandon: %+v, %v; want one dead instance", infos, err)
	}
}

func TestRunDirOthersCanChangeIsRefused(t *testing.T) {
	runDir := t.TempDir()
	if err := os.Chmod(runDir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(runDir); err == nil {
		t.Error("a world-writable run folder was accepted")
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(t.TempDir(), link); err != nil {
		t.Fatal(err)
	}
	if _, err := Acquire(link); err == nil {
		t.Error("a run folder that is a symbolic link was accepted")
	}
}
