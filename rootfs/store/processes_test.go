package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// childVariable makes the test binary another process that uses a store: what it is to do,
// and the folder of the test.
const childVariable = "STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if task, dir, ok := strings.Cut(os.Getenv(childVariable), " "); ok {
		if err := child(task, dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child does its task until that is done, or until it is killed.
func child(task, dir string) error {
	store, err := Open(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	if task != "hold" {
		seed, err := strconv.ParseUint(task, 10, 64)
		if err != nil {
			return err
		}
		return work(store, dir, seed, func() { fmt.Println("round") })
	}
	if _, err := store.AddZip(context.Background(), zipName(dir, 0), extract.Limits{}, nil); err != nil {
		return err
	}
	fmt.Println("held")
	for { // not select {}: with no other goroutine that is a deadlock to the Go runtime
		_ = unix.Pause()
	}
}

// startChild starts such a process. Its lines can be read from out.
func startChild(t *testing.T, task, dir string) (cmd *exec.Cmd, out *bufio.Reader) {
	t.Helper()
	cmd = exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+task+" "+dir)
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd, bufio.NewReader(pipe)
}

// The zips that the processes of a test share.
const (
	zips     = 4
	zipFiles = 12
)

func zipName(dir string, n int) string { return filepath.Join(dir, fmt.Sprintf("code%d.zip", n)) }

// zipBody is what a file of a zip holds.
func zipBody(n, file int) string { return strings.Repeat(fmt.Sprintf("%d/%d ", n, file), 400) }

func writeZips(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for n := range zips {
		var files []ziptest.File
		for f := range zipFiles {
			files = append(files, ziptest.File{Name: fmt.Sprintf("d%d/f%d", f%3, f), Body: zipBody(n, f)})
		}
		if err := os.WriteFile(zipName(dir, n), ziptest.Make(t, files...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// whole says what is not as it must be of a zip's files.
func whole(ref *Ref, n int) error {
	for f := range zipFiles {
		text, err := os.ReadFile(filepath.Join(ref.Dir, fmt.Sprintf("d%d/f%d", f%3, f)))
		if err != nil {
			return err
		}
		if string(text) != zipBody(n, f) {
			return fmt.Errorf("file %d of zip %d holds %d bytes of something else", f, n, len(text))
		}
	}
	return nil
}

// How much each process works.
const (
	workers = 4
	rounds  = 40 // of each worker
)

// work uses, collects and opens the store as daemons and prune do, in random order. A
// reference's files must be whole as long as it is open.
func work(store *Store, dir string, seed uint64, round func()) error {
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		random := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() {
			for range rounds {
				if errs[w] = step(store, dir, random); errs[w] != nil {
					return
				}
				round()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// step does one thing with the store.
func step(store *Store, dir string, random *rand.Rand) error {
	ctx := context.Background()
	switch random.IntN(10) {
	case 0:
		_, err := Plan(ctx, filepath.Join(dir, "store"), Retention{})
		return err
	case 1:
		_, err := Open(filepath.Join(dir, "store"))
		return err
	case 2, 3:
		_, err := store.Collect(ctx, Retention{})
		return err
	}
	n := random.IntN(zips)
	ref, err := store.AddZip(ctx, zipName(dir, n), extract.Limits{}, nil)
	if err != nil {
		return err
	}
	again, err := store.AddZip(ctx, zipName(dir, n), extract.Limits{}, nil)
	if err != nil {
		return err
	}
	return errors.Join(whole(ref, n), ref.Close(), whole(again, n), whole(again, n), again.Close())
}

// Several processes, one of which is killed, use, collect and prune the same few zips: what
// is in use is whole, and in the end nothing is left but what may be.
func TestProcessesShareAStore(t *testing.T) {
	dir := writeZips(t)
	seed := rand.Uint64N(1000)
	t.Logf("seed %d", seed)
	killed, lines := startChild(t, fmt.Sprint(seed), dir)
	other, otherLines := startChild(t, fmt.Sprint(seed+1), dir)
	rest := make(chan error)
	go func() {
		_, err := io.Copy(io.Discard, otherLines)
		rest <- err
	}()
	store := openTestStore(t, filepath.Join(dir, "store"))
	done := make(chan error)
	go func() { done <- work(store, dir, seed+2, func() {}) }()
	for range workers * rounds / 2 {
		if _, err := lines.ReadString('\n'); err != nil {
			t.Errorf("the process that was to be killed: %v", err)
			break
		}
	}
	if err := killed.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = killed.Wait()
	if err := <-done; err != nil {
		t.Errorf("in this process: %v", err)
	}
	if err := errors.Join(<-rest, other.Wait()); err != nil {
		t.Errorf("in another process: %v", err)
	}
	if len(store.holds) > 0 {
		t.Errorf("%d entries are held", len(store.holds))
	}

	for n := range zips { // all are there, some are more than may be
		ref, err := store.AddZip(t.Context(), zipName(dir, n), extract.Limits{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := whole(ref, n); err != nil {
			t.Error(err)
		}
		closeRef(t, ref)
	}
	one := collect(t, store, Retention{NoAge, NoBytes}).Unused[0].Bytes
	if r := collect(t, store, Retention{NoAge, 2 * one}); len(r.Unused) != 2 || len(r.Removed) != zips-2 || len(r.InUse) > 0 {
		t.Errorf("%+v", r)
	}
	if r := collect(t, store, Retention{}); len(r.Removed) != 2 {
		t.Errorf("%+v", r)
	}
	ziptest.WantTree(t, filepath.Join(dir, "store"), "sha256", "staging")
}

// A process that is killed keeps nothing in use: its locks end with it.
func TestKilledProcessKeepsNothing(t *testing.T) {
	dir := writeZips(t)
	holder, lines := startChild(t, "hold", dir)
	if _, err := lines.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	store := openTestStore(t, filepath.Join(dir, "store"))
	r := collect(t, store, Retention{})
	if len(r.InUse) != 1 || len(r.Removed) > 0 {
		t.Errorf("while the process lives: %+v", r)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	if after := collect(t, store, Retention{}); !slices.Equal(after.Removed, r.InUse) {
		t.Errorf("once it is dead: %+v, want %+v to be removed", after, r.InUse)
	}
}
