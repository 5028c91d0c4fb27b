//go:build integration

package forgetfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childVariable makes the test binary a program that uses the file system: which, and the
// folder where it is mounted.
const childVariable = "FORGETFS_TEST_CHILD"

func TestMain(m *testing.M) {
	if task, dir, ok := strings.Cut(os.Getenv(childVariable), " "); ok {
		if err := programs[task](dir); err != nil {
			fmt.Fprintln(os.Stderr, task+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(Main(m))
}

// programs are what the tests run.
var programs = map[string]func(dir string) error{
	"careless": func(dir string) error { return save(dir, false, false) },
	"careful":  func(dir string) error { return save(dir, true, true) },
	"nameless": func(dir string) error { return save(dir, true, false) },
	"mapped":   mapped,
	"osync": func(dir string) error {
		f, err := os.OpenFile(dir+"/file", os.O_CREATE|os.O_WRONLY|os.O_SYNC, 0o600)
		if err != nil {
			return err
		}
		_, err = f.WriteString(content)
		return errors.Join(err, syncFolder(dir))
	},
	"lock": func(dir string) error {
		f, err := os.OpenFile(dir+"/lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
			return err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			return err
		}
		fmt.Println("locked")
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	},
}

// content is longer than what is written as a whole.
var content = strings.Repeat("content\n", 1000)

// save replaces dir/file as programs do, with the syncs that it is told.
func save(dir string, file, folder bool) error {
	f, err := os.Create(dir + "/temporary")
	if err != nil {
		return err
	}
	if _, err := f.WriteString(content); err != nil {
		return err
	}
	if file {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := errors.Join(f.Close(), os.Rename(dir+"/temporary", dir+"/file")); err != nil || !folder {
		return err
	}
	return syncFolder(dir)
}

func syncFolder(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// mapped writes through a shared mapping, and syncs it. Another mapping of the file shows it
// at once.
func mapped(dir string) error {
	f, err := os.Create(dir + "/file")
	if err != nil {
		return err
	}
	if err := f.Truncate(int64(len(content))); err != nil {
		return err
	}
	one, err := unix.Mmap(int(f.Fd()), 0, len(content), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	g, err := os.Open(dir + "/file")
	if err != nil {
		return err
	}
	two, err := unix.Mmap(int(g.Fd()), 0, len(content), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(one, content)
	if string(two) != content {
		return errors.New("the mappings differ")
	}
	return errors.Join(unix.Msync(one, unix.MS_SYNC), syncFolder(dir))
}

// mount mounts a new file system, with old in the file "file".
func mount(t *testing.T, space int64) (*FS, string) {
	t.Helper()
	disk, dir := t.TempDir(), t.TempDir()
	if err := os.WriteFile(disk+"/file", []byte("old"), 0o640); err != nil {
		t.Fatal(err)
	}
	f, err := Mount(dir, disk, space)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, dir
}

func program(task, dir string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childVariable+"="+task+" "+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// survivors returns what each of some cuts leaves of dir/file: old, new, missing or torn.
func survivors(t *testing.T, f *FS) map[string]int {
	t.Helper()
	f.Stop()
	left := map[string]int{}
	for seed := range uint64(100) {
		dir := t.TempDir()
		if _, err := f.Survivors(seed, dir); err != nil {
			t.Fatal(err)
		}
		switch got, err := os.ReadFile(dir + "/file"); {
		case errors.Is(err, os.ErrNotExist):
			left["missing"]++
		case err != nil:
			t.Fatal(err)
		case string(got) == content:
			left["new"]++
		case string(got) == "old":
			left["old"]++
		default:
			left["torn"]++
		}
	}
	return left
}

// The control of all tests that use the file system: what does not sync is seen to lose, what
// syncs is seen to keep.
func TestProgramsLoseWhatTheyDoNotSync(t *testing.T) {
	for task, want := range map[string]string{
		"careless": "new old torn",
		"nameless": "new old", // of a name, the old file or the new one
		"careful":  "new",
		"mapped":   "new",
		"osync":    "new",
	} {
		t.Run(task, func(t *testing.T) {
			f, dir := mount(t, 0)
			if err := program(task, dir).Run(); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(dir + "/file"); err != nil || string(got) != content {
				t.Fatalf("before the cut: %d bytes, %v", len(got), err)
			}
			left := survivors(t, f)
			t.Log(left)
			for _, what := range []string{"new", "old", "torn", "missing"} {
				if wanted := strings.Contains(want, what); wanted != (left[what] > 0) {
					t.Errorf("%d of 100 cuts leave the file %s, want some: %v", left[what], what, wanted)
				}
			}
		})
	}
}

// A power cut fails what is asked for from then on, at the change that was named.
func TestStopAfter(t *testing.T) {
	for n := range 8 {
		f, dir := mount(t, 0)
		before := f.Counts().Changes
		f.StopAfter(n + 1)
		err := save(dir, true, true) // five changes: create, write, sync, rename, sync
		if cut := n < 5; cut != (err != nil) {
			t.Errorf("cut at change %d: %v", n+1, err)
		} else if cut {
			<-f.Stopped()
			if _, err := os.ReadDir(dir); !errors.Is(err, unix.EIO) {
				t.Errorf("after the cut: %v", err)
			}
		}
		if done := f.Counts().Changes - before; done != min(n, 5) {
			t.Errorf("cut at change %d: %d were made", n+1, done)
		}
	}
}

// Syncs are counted.
func TestCounts(t *testing.T) {
	f, dir := mount(t, 0)
	before := f.Counts()
	for range 3 {
		if err := save(dir, true, true); err != nil {
			t.Fatal(err)
		}
	}
	after := f.Counts()
	if after.FileSyncs-before.FileSyncs != 3 || after.FolderSyncs-before.FolderSyncs != 3 {
		t.Errorf("%+v, then %+v", before, after)
	}
}

// Locks hold between processes, and go with them.
func TestLocks(t *testing.T) {
	_, dir := mount(t, 0)
	cmd := program("lock", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "locked\n" {
		t.Fatal(line, err)
	}
	f, err := os.OpenFile(dir+"/lock", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	region := &unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, region); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a region that another process has locked: %v", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("a file that another process has locked: %v", err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(unix.FcntlFlock(f.Fd(), unix.F_SETLK, region), unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)); err != nil {
		t.Errorf("after its end: %v", err)
	}
}

// It is an ordinary file system as long as there is power.
func TestOrdinary(t *testing.T) {
	_, dir := mount(t, 0)
	at := func(name string) string { return filepath.Join(dir, name) }
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000)
	err := errors.Join(
		os.MkdirAll(at("a/b/c"), 0o750),
		os.WriteFile(at("a/b/c/file"), big, 0o640),
		os.Symlink("b/c/file", at("a/link")),
		os.Link(at("a/b/c/file"), at("a/hard")),
		os.Rename(at("a/b"), at("moved")),
		os.Chmod(at("a/hard"), 0o604),
		os.Chown(at("a/hard"), 1000, 1001),
		os.Truncate(at("file"), 1),
	)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(at("moved/c/file")); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	var st unix.Stat_t
	if err := unix.Stat(at("moved/c/file"), &st); err != nil || st.Mode != unix.S_IFREG|0o604 || st.Uid != 1000 || st.Gid != 1001 || st.Nlink != 2 {
		t.Errorf("%+v, %v", st, err)
	}
	if target, err := os.Readlink(at("a/link")); err != nil || target != "b/c/file" {
		t.Errorf("%q, %v", target, err)
	}
	if got, err := os.ReadFile(at("file")); err != nil || string(got) != "o" {
		t.Errorf("%q, %v", got, err)
	}
	for name, want := range map[string]error{"moved": unix.ENOTEMPTY, "missing": unix.ENOENT, "file": unix.ENOTDIR} {
		if err := unix.Rmdir(at(name)); !errors.Is(err, want) {
			t.Errorf("rmdir of %s: %v, want %v", name, err, want)
		}
	}
	if err := unix.Mkfifo(at("fifo"), 0o600); !errors.Is(err, unix.EPERM) {
		t.Errorf("a FIFO: %v", err)
	}
	// A file without a name is one until it is closed.
	f, err := os.Open(at("a/hard"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(os.RemoveAll(at("a")), os.RemoveAll(at("moved"))); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, big) {
		t.Errorf("without a name: %d bytes, %v", len(got), err)
	}
	for i := range 300 {
		if err := os.WriteFile(at(fmt.Sprintf("%0100d", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || len(list) != 301 {
		t.Errorf("%d names, %v", len(list), err)
	}
}

// A disk that is full says so, and has room again when files go.
func TestSpace(t *testing.T) {
	_, dir := mount(t, 100_000)
	f, err := os.Create(dir + "/big")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 200_000)); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("too much: %v", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || int64(st.Bavail)*st.Bsize > 100_000 {
		t.Errorf("%+v, %v", st, err)
	}
	if err := errors.Join(f.Truncate(0), os.WriteFile(dir+"/other", make([]byte, 90_000), 0o600)); err != nil {
		t.Errorf("after it is gone: %v", err)
	}
}

// A file system can be closed whatever processes do with it: they get errors.
func TestCloseInUse(t *testing.T) {
	disk, dir := t.TempDir(), t.TempDir()
	fs, err := Mount(dir, disk, 0)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(dir + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs.mu.Lock() // whoever asks now waits
	asked := make(chan error)
	go func() {
		_, err := f.Write([]byte("x"))
		asked <- err
	}()
	if err := unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH); err != nil { // as Close begins
		t.Error(err)
	}
	if err := <-asked; err == nil {
		t.Error("a write to what is gone")
	}
	fs.mu.Unlock()
	<-fs.served
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("it is still mounted: %v", err)
	}
}
