package sqlite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
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

// image is what the files of a store are when its process is killed.
type image map[string][]byte

// keysOfImage is how many keys newImage stores.
const keysOfImage = 120

func valueOf(i int) string { return strings.Repeat(fmt.Sprintf("value %d,", i), 1+i*i%400) }

// newImage makes a store of which a part is in the database and another part in the log.
func newImage(t *testing.T) image {
	t.Helper()
	dir := t.TempDir()
	s := folder(dir).Open(t)
	store := func(from, to int) {
		for i := from; i < to; i++ {
			err := s.Update(t.Context(), func(tx *state.Tx) error {
				_, err1 := tx.Append("log", []byte(valueOf(i)))
				_, err2 := tx.Enqueue("queue", []byte(valueOf(i)), time.Unix(int64(i), 0))
				err3 := tx.SetTimer(fmt.Sprintf("timer %03d", i), time.Unix(int64(i), 0), []byte(valueOf(i)))
				return errors.Join(err1, err2, err3, put(fmt.Sprintf("key %03d", i), valueOf(i))(tx))
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	store(0, keysOfImage-10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = folder(dir).Open(t)
	defer s.Close()
	store(keysOfImage-10, keysOfImage)
	files := image{}
	for _, name := range []string{Database, Log, Mark, Lock} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = b
	}
	if len(files[Log]) < 20000 {
		t.Fatalf("the log has %d bytes", len(files[Log]))
	}
	return files
}

// look opens a store of these files and reads all of it. It fails the test if an answer is
// wrong, and returns what is known to be damaged.
func (f image) look(t *testing.T, what string) (damage string) {
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	for name, b := range f {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := Open(t.Context(), Options{Folder: dir})
	if err != nil {
		if !errors.Is(err, state.ErrDamaged) || !strings.Contains(err.Error(), "restore a backup") {
			t.Errorf("%s: opened with %v", what, err)
		}
		return err.Error()
	}
	defer s.Close()
	wrong := 0
	check := func(what string, err error, right bool) {
		switch {
		case err != nil && errors.Is(err, state.ErrDamaged):
			wrong++
		case err != nil || !right:
			t.Errorf("%s: %v, right %v", what, err, right)
		}
	}
	for i := range keysOfImage {
		err := s.View(t.Context(), func(r *state.Reader) error {
			v, err := r.Get(fmt.Sprintf("key %03d", i))
			check(fmt.Sprintf("%s: key %d", what, i), err, string(v) == valueOf(i))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	lists := []func(r *state.Reader) (int, error){
		func(r *state.Reader) (int, error) { l, err := r.List("", "", 1000); return len(l), err },
		func(r *state.Reader) (int, error) { return r.Count("") },
		func(r *state.Reader) (int, error) { l, err := r.ReadLog("log", 0, 1000); return len(l), err },
		func(r *state.Reader) (int, error) { l, err := r.ReadQueue("queue", 0, 1000); return len(l), err },
		func(r *state.Reader) (int, error) { l, err := r.Due(state.Forever, 1000); return len(l), err },
	}
	for i, list := range lists {
		if err := s.View(t.Context(), func(r *state.Reader) error {
			n, err := list(r)
			check(fmt.Sprintf("%s: list %d", what, i), err, n == keysOfImage)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if found := s.Damage(); len(found) > 0 {
		damage = found[0].String()
	} else if wrong > 0 {
		t.Errorf("%s: %d answers are damaged, and nobody knows", what, wrong)
	}
	if err := s.Update(t.Context(), put("new", "")); (damage == "") != (err == nil) {
		t.Errorf("%s: with the damage %q an update ends with %v", what, damage, err)
	}
	return damage
}

// TestKilled opens what a killed process has left.
func TestKilled(t *testing.T) {
	if damage := newImage(t).look(t, "as it was"); damage != "" {
		t.Errorf("damage: %s", damage)
	}
}

// TestDamagedFiles flips a bit and cuts off an end in each file, at places drawn at random.
// Damage that changes an answer is named, and no wrong answer is given.
func TestDamagedFiles(t *testing.T) {
	tries := 60
	if n, err := strconv.Atoi(os.Getenv("STATE_DAMAGES")); err == nil {
		tries = n
	}
	whole := newImage(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for _, name := range []string{Database, Log, Mark} {
		named := 0
		for i := range tries {
			damaged := image{}
			for n, b := range whole {
				damaged[n] = b
			}
			b := bytes.Clone(whole[name])
			at := r.IntN(len(b))
			if name == Database && i%3 == 0 {
				at = r.IntN(100) // its header
			}
			what := fmt.Sprintf("%s with byte %d of %d flipped", name, at, len(b))
			if i%4 == 3 {
				what = fmt.Sprintf("%s cut from %d to %d bytes", name, len(b), at)
				b = b[:at]
			} else {
				b[at] ^= 1 << r.IntN(8)
			}
			damaged[name] = b
			if damaged.look(t, what) != "" {
				named++
			}
		}
		t.Logf("%s: %d of %d damages are named", name, named, tries)
		if name == Log && named == 0 {
			t.Error("no damage of the log was found")
		}
	}
}

// TestLostFiles removes and empties files whole.
func TestLostFiles(t *testing.T) {
	whole := newImage(t)
	for _, c := range []struct {
		name  string
		empty bool
		named bool
	}{
		{Database, true, true}, {Database, false, true}, {Log, true, true}, {Log, false, true},
		{Mark, true, false}, {Mark, false, false}, // nothing that anybody asks for
	} {
		files := image{}
		for n, b := range whole {
			files[n] = b
		}
		if files[c.name] = nil; !c.empty {
			delete(files, c.name)
		}
		what := fmt.Sprintf("%s emptied %v", c.name, c.empty)
		if damage := files.look(t, what); (damage != "") != c.named {
			t.Errorf("%s: damage %q", what, damage)
		}
	}
}
