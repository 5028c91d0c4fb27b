package stage

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMain is also what goes on as itself: what was to be swapped and was not.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "init" {
		fmt.Println("not swapped")
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// The program of descriptor 5 takes over if it is sealed, in libcontainer's process only.
func TestSwap(t *testing.T) {
	const libcontainer = "_LIBCONTAINER_INITPIPE=4"
	sealed := echo(t, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	for _, c := range []struct {
		name    string
		args    []string
		env     []string
		program *os.File
		want    string
	}{
		{"libcontainer's process", []string{"init"}, []string{libcontainer}, sealed, "init\n"},
		{"a user's command", []string{"init"}, []string{"A=b"}, sealed, "not swapped\n"},
		{"another command", []string{"init", "x"}, []string{libcontainer}, sealed, "not swapped\n"},
		{"no program", []string{"init"}, []string{libcontainer}, nil, "not swapped\n"},
		{"one that could be changed", []string{"init"}, []string{libcontainer}, echo(t, 0), "not swapped\n"},
	} {
		cmd := exec.Command("/proc/self/exe", c.args...)
		cmd.Env = c.env
		cmd.ExtraFiles = []*os.File{nil, nil, c.program}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, out, err, c.want)
		}
	}
}

// echo is a memory file with the program of that name, which prints its arguments.
func echo(t *testing.T, seals int) *os.File {
	t.Helper()
	program, err := os.ReadFile("/bin/echo")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("echo", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "echo")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(program); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		t.Fatal(err)
	}
	return f
}
