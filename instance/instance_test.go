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
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain makes the test binary a second daemon when it is asked to be one: it
// acquires an instance and a lease, says which, and waits to be killed.
func TestMain(m *testing.M) {
	if runDir := os.Getenv("INSTANCE_TEST_RUN_DIR"); runDir != "" {
		i, err := Acquire(runDir)
		if err != nil {
			panic(err)
		}
		base, err := openTestLeases(runDir).Acquire(i)
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

func openTestLeases(runDir string) *Leases {
	l, err := OpenLeases(filepath.Join(runDir, "ids"), Pool{Base: DefaultIDBase, Ranges: 2})
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
	if _, err := leases.Acquire(own); !errors.Is(err, ErrNoRange) {
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
	if _, err := leases.Acquire(own); !errors.Is(err, ErrNoRange) {
		t.Fatalf("the dead one's range before reconciliation: %v, want ErrNoRange", err)
	}

	// A clean that fails keeps folder and lease for the next time.
	cause := errors.New("busy")
	_, err = Reconcile(t.Context(), runDir, leases, func(context.Context, Info) error { return cause })
	if !errors.Is(err, cause) {
		t.Fatalf("Reconcile: %v, want the error of clean", err)
	}
	if _, err := leases.Acquire(own); !errors.Is(err, ErrNoRange) {
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
	base, err := leases.Acquire(own)
	if err != nil || base != deadBase || base == liveBase {
		t.Errorf("lease %d, %v; want the dead one's %d", base, err, deadBase)
	}
}

func TestLeasesAreDistinctAndReturn(t *testing.T) {
	runDir := t.TempDir()
	i, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	const n = 64
	leases, err := OpenLeases(filepath.Join(runDir, "ids"), Pool{Base: DefaultIDBase, Ranges: n})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	seen := map[uint32]bool{}
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			base, err := leases.Acquire(i)
			mu.Lock()
			defer mu.Unlock()
			if err != nil || seen[base] || base < DefaultIDBase || (base-DefaultIDBase)%RangeSize != 0 {
				t.Errorf("lease %d (seen %v): %v", base, seen[base], err)
			}
			seen[base] = true
		})
	}
	wg.Wait()
	const returned = DefaultIDBase + 7*RangeSize
	if err := leases.Release(returned); err != nil {
		t.Fatal(err)
	}
	if base, err := leases.Acquire(i); err != nil || base != returned {
		t.Errorf("after a release: %d, %v; want %d", base, err, returned)
	}

	// Leases end with their instance's folder, also where nobody released them.
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	other, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := leases.Acquire(other); err != nil {
		t.Errorf("void lease: %v", err)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	i, err := Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(i.Dir()); err != nil || fi.Mode().Perm() != folderMode {
		t.Fatalf("instance folder: %v, %v; want mode 0711", fi.Mode(), err)
	}
	if err := os.WriteFile(i.ControlSocket(), nil, 0o600); err != nil {
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

func TestNewPool(t *testing.T) {
	tests := map[string]struct {
		base           uint32
		subuid, subgid string
		ranges         uint32 // 0: an error that names want
		want           string
	}{
		"default":              {base: DefaultIDBase, subuid: "ann:100000:65536\n", ranges: 4094},
		"not aligned":          {base: DefaultIDBase + 1, want: "multiple of 65536"},
		"host users":           {base: 0, want: "host's own users"},
		"container range":      {base: 1 << 20, want: "systemd's container range"},
		"foreign range":        {base: 0x7FFE0000, want: "systemd's foreign range"},
		"kernel":               {base: 0xFFFF0000, want: "kernel"},
		"cut by foreign range": {base: DefaultIDBase + 10*RangeSize, ranges: 4084},
		"cut by subuid":        {base: DefaultIDBase, subuid: fmt.Sprintf("# c\nbad\nann:%d:10\n", DefaultIDBase+3*RangeSize+5), ranges: 3},
		"in subuid":            {base: DefaultIDBase, subuid: "ann:1000000000:1000000000\n", want: "belong to ann"},
		"in subgid":            {base: DefaultIDBase, subgid: "bob:1000000000:1000000000\n", want: "belong to bob"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			os.Mkdir(filepath.Join(root, "etc"), 0o755)
			os.WriteFile(filepath.Join(root, "etc/subuid"), []byte(tt.subuid), 0o644)
			os.WriteFile(filepath.Join(root, "etc/subgid"), []byte(tt.subgid), 0o644)
			pool, err := NewPool(tt.base, root)
			if tt.ranges == 0 {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%+v, %v; want an error with %q", pool, err, tt.want)
				}
				return
			}
			if err != nil || pool != (Pool{tt.base, tt.ranges}) {
				t.Fatalf("%+v, %v; want %d ranges", pool, err, tt.ranges)
			}
		})
	}
}
