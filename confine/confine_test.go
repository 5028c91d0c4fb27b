package confine

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary is the process that is confined when this variable is set: it tries
// what it names, and prints what became of it.
const helper = "CONFINE_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "":
		os.Exit(m.Run())
	case "landlock":
		fmt.Print(tryFiles())
	}
	os.Exit(0)
}

// confined runs the test binary as the helper that what names, with Landlock on if asked.
func confined(t *testing.T, what string, restricted bool, env ...string) string {
	t.Helper()
	var out strings.Builder
	program := sealed(t)
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
	cmd.Env = append(env, helper+"="+what)
	cmd.Stdout, cmd.Stderr = &out, &out
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdin = null
	started := make(chan error)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var err error
		if restricted {
			err = errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), landlock())
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return out.String()
}

// sealed is a copy of the test binary in memory, which Landlock lets anybody execute: so
// sandboxd runs too.
func sealed(t *testing.T) *os.File {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(self); err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // nobody executes what is open for writing
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { readOnly.Close() })
	return readOnly
}

// tryFiles says, a line each, what of the host can be reached by a path or a port.
func tryFiles() string {
	var b strings.Builder
	dir := os.Getenv("DIR")
	try := func(name string, err error) { fmt.Fprintf(&b, "%s: %v\n", name, err == nil) }
	_, err := os.ReadFile(filepath.Join(dir, "file"))
	try("read", err)
	try("write", os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	try("create", os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	try("mkdir", os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	try("remove", os.Remove(filepath.Join(dir, "victim")))
	_, err = os.ReadDir(dir)
	try("list", err)
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // Landlock knows TCP alone
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	try("listen", err)
	conn, err := net.Dial("tcp", os.Getenv("ADDR"))
	if err == nil {
		conn.Close()
	}
	try("connect", err)
	return b.String()
}

// Landlock takes every file and port, and the same probe outside shows that it would
// have reached them.
func TestLandlock(t *testing.T) {
	version := LandlockVersion()
	if version == 0 {
		t.Skip(ErrNoLandlock)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for restricted, want := range map[bool]string{false: "true", true: "false"} {
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"file", "victim"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out := confined(t, "landlock", restricted, "DIR="+dir, "ADDR="+l.Addr().String())
		if strings.Count(out, "\n") != 8 {
			t.Fatalf("probe: %s", out)
		}
		for line := range strings.Lines(out) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if version < 4 && (name == "listen" || name == "connect") {
				continue // ports came with version 4
			}
			if got != want {
				t.Errorf("restricted %v: %s is %s, want %s", restricted, name, got, want)
			}
		}
	}
}
