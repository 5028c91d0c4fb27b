package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/state"
)

// The test binary is another process when this variable is set: it does what it names with
// the store in the folder of its only argument, and prints what became of it.
const helper = "STATE_SQLITE_TEST"

func TestMain(m *testing.M) {
	dir := os.Args[len(os.Args)-1]
	switch os.Getenv(helper) {
	case "":
		os.Exit(m.Run())
	case "open":
		s, err := Open(context.Background(), Options{Folder: dir})
		if err == nil {
			err = s.Close()
		}
		fmt.Print(err)
	case "confined":
		fmt.Print(useConfined(dir))
	case "full":
		fmt.Print(fillDisk(dir))
	case "events":
		fmt.Print(storeEvents(dir))
	}
}

// run runs the test binary as another process.
func run(t *testing.T, what, dir string, attr *syscall.SysProcAttr) string {
	t.Helper()
	return runProgram(t, "/proc/self/exe", what, dir, attr)
}

func runProgram(t *testing.T, program, what, dir string, attr *syscall.SysProcAttr) string {
	t.Helper()
	cmd := exec.Command(program, dir)
	cmd.Env = append(os.Environ(), helper+"="+what)
	cmd.SysProcAttr = attr
	cmd.Stdin = strings.NewReader("") // none opens /dev/null, which a confined thread cannot
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", what, err, out, errs.Bytes())
	}
	return string(out)
}

func put(key, value string) func(*state.Tx) error {
	return func(tx *state.Tx) error { return tx.Put(key, []byte(value)) }
}

// TestInUse opens a store that is open, in this process and in another one.
func TestInUse(t *testing.T) {
	dir := t.TempDir()
	s := folder(dir).Open(t)
	_, err := Open(t.Context(), Options{Folder: dir})
	for _, got := range []string{fmt.Sprint(err), run(t, "open", dir, nil)} {
		if !strings.Contains(got, "in use by another sandboxd") || !strings.Contains(got, "--state-dir") || !strings.Contains(got, dir) {
			t.Errorf("opened again: %s", got)
		}
	}
	if !errors.Is(err, state.ErrInUse) {
		t.Errorf("opened again: %v", err)
	}
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Errorf("the first one is disturbed: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if got := run(t, "open", dir, nil); got != "<nil>" {
		t.Errorf("opened after it was closed: %s", got)
	}
}

// TestSettings looks at what SQLite says of itself, and at the files.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	s := folder(dir).Open(t)
	defer s.Close()
	if err := s.Update(t.Context(), put("a", "1")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, e.Name()+" "+info.Mode().String())
	}
	if got, want := fmt.Sprint(names), "[lock -rw------- mark -rw------- store.db -rw------- store.db-wal -rw-------]"; got != want {
		t.Errorf("files %s, want %s", got, want)
	}
	e := folder(t.TempDir()).Engine(t)
	defer e.Close()
	for pragma, want := range map[string]string{"synchronous": "2", "journal_mode": "wal", "temp_store": "2", "secure_delete": "1"} {
		var got string
		if err := e.DB.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s is %s (%v), want %s", pragma, got, err, want)
		}
	}
	// A setting that SQLite does not take is an error.
	if _, err := Engine(t.Context(), Options{Folder: t.TempDir(), Synchronous: "SOMETIMES"}); err == nil || !strings.Contains(err.Error(), "synchronous") {
		t.Errorf("a setting that there is not: %v", err)
	}
}

// useConfined uses a store with no socket and no other process; Landlock leaves it the
// folder.
func useConfined(dir string) error {
	if _, err := os.ReadFile("/etc/passwd"); err == nil && confine.NeedLandlock(1) == nil {
		return errors.New("the process reads /etc/passwd")
	}
	if err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), confine.Files()); err != nil {
		return err
	}
	for range 2 { // made, and opened again
		s, err := Open(context.Background(), Options{Folder: dir})
		if err != nil {
			return err
		}
		for i := range 300 {
			if err := s.Update(context.Background(), put(strconv.Itoa(i), strings.Repeat("x", 20000))); err != nil {
				return err
			}
		}
		if err := s.View(context.Background(), func(r *state.Reader) error { _, err := r.List("", "", 500); return err }); err != nil {
			return err
		}
		b, err := os.Create(filepath.Join(dir, "backup"))
		if err != nil {
			return err
		}
		if _, err := s.Backup(context.Background(), b, nil); err != nil {
			return err
		}
		if err := errors.Join(b.Close(), s.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestConfined uses a store in a process that is confined as control is.
func TestConfined(t *testing.T) {
	dir, programs := t.TempDir(), t.TempDir()
	var folders []*os.File
	for _, path := range []string{dir, programs} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		folders = append(folders, f)
	}
	program := filepath.Join(programs, "test") // one that Landlock lets be started
	self, err := os.ReadFile("/proc/self/exe")
	if err == nil {
		err = os.WriteFile(program, self, 0o700)
	}
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := confine.Thread(folders...); err != nil && !host.Lacks(err, host.Landlock) {
			t.Error(err)
		} else if got := runProgram(t, program, "confined", dir, nil); got != "<nil>" {
			t.Error(got)
		}
	}()
	<-done
}

// fillDisk mounts a small disk and fills it. What does not fit is refused, what is there
// can be read, and what is removed makes room.
func fillDisk(dir string) error {
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=2m"); err != nil {
		return err
	}
	ctx := context.Background()
	s, err := Open(ctx, Options{Folder: dir})
	if err != nil {
		return err
	}
	value := strings.Repeat("x", 100<<10)
	n := 0
	for ; err == nil; n++ {
		err = s.Update(ctx, put(strconv.Itoa(n), value))
	}
	if !errors.Is(err, state.ErrNoSpace) || n < 5 || n > 30 {
		return fmt.Errorf("after %d updates: %w", n, err)
	}
	// The log takes nothing more, not even what would make room, until there is some.
	if err := unix.Mount("none", dir, "tmpfs", unix.MS_REMOUNT, "size=16m"); err != nil {
		return err
	}
	for i := range n - 1 {
		if err := s.Update(ctx, func(tx *state.Tx) error {
			if got, err := tx.Get(strconv.Itoa(i)); err != nil || string(got) != value {
				return errors.Join(fmt.Errorf("key %d is lost", i), err)
			}
			return tx.Delete(strconv.Itoa(i))
		}); err != nil {
			return err
		}
	}
	if err := s.Update(ctx, put("after", value)); err != nil {
		return err
	}
	damage, err := s.Verify(ctx, nil)
	if len(damage) > 0 {
		err = fmt.Errorf("damage: %v", damage)
	}
	return errors.Join(err, s.Close())
}

func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test mounts a disk: run it as root")
	}
	if got := run(t, "full", t.TempDir(), &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}); got != "<nil>" {
		t.Error(got)
	}
}

// eventsTraced is how many events storeEvents stores, from eventWriters goroutines.
const (
	eventsTraced = 3200
	eventWriters = 64
)

func storeEvents(dir string) error {
	s, err := Open(context.Background(), Options{Folder: dir})
	if err != nil {
		return err
	}
	failed := make(chan error, eventWriters)
	var wg sync.WaitGroup
	for range eventWriters {
		wg.Go(func() {
			for range eventsTraced / eventWriters {
				err := s.Update(context.Background(), func(tx *state.Tx) error {
					_, err := tx.Enqueue("events", make([]byte, 1024), time.Now())
					return err
				})
				if err != nil {
					failed <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-failed:
		return err
	default:
		return s.Close()
	}
}

// TestEventsPerFsync counts, by a trace of the system calls, how many events share an fsync
// with 64 writers, and that no commit goes without one.
func TestEventsPerFsync(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace")
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("strace", "-f", "-e", "trace=fsync,fdatasync", "-o", trace, self, dir)
	cmd.Env = append(os.Environ(), helper+"=events")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "<nil>") {
		t.Fatalf("%v\n%s", err, out)
	}
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	// A call during which another thread was traced has two lines.
	syncs := strings.Count(string(b), "fsync(") + strings.Count(string(b), "fdatasync(")
	t.Logf("%d events, %d fsyncs: %.1f an fsync", eventsTraced, syncs, float64(eventsTraced)/float64(syncs))
	if syncs*4 > eventsTraced {
		t.Errorf("%d fsyncs stored %d events", syncs, eventsTraced)
	}
	if syncs < eventsTraced/maxBatch {
		t.Errorf("%d fsyncs cannot have stored %d events", syncs, eventsTraced)
	}
}

// maxBatch is that of package state: more updates than that do not share a commit.
const maxBatch = 256

var errStop = errors.New("stop")

// TestLogStaysSmall writes while one view or another reads all the time: each ends only
// when the next has begun.
func TestLogStaysSmall(t *testing.T) {
	dir := t.TempDir()
	s := folder(dir).Open(t)
	defer s.Close()
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := make(chan struct{})
	defer close(stop)
	turns := [2]chan struct{}{make(chan struct{}, 1), make(chan struct{}, 1)}
	turns[0] <- struct{}{}
	for i := range turns {
		wg.Go(func() {
			for {
				err := s.View(context.Background(), func(r *state.Reader) error {
					if _, err := r.Count(""); err != nil {
						return err
					}
					select {
					case turns[1-i] <- struct{}{}: // this one reads, that one may end
					case <-stop:
						return errStop
					}
					time.Sleep(30 * time.Millisecond) // a view of much
					select {
					case <-turns[i]:
						return nil
					case <-stop:
						return errStop
					}
				})
				if err != nil {
					if err != errStop {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	value := strings.Repeat("x", 1<<20)
	for i := range 400 {
		if err := s.Update(t.Context(), put(strconv.Itoa(i%10), value+strconv.Itoa(i))); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(filepath.Join(dir, Log))
	if err != nil || info.Size() > 3*maxLog {
		t.Errorf("the log has %d bytes (%v)", info.Size(), err)
	}
}
