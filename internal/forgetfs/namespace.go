package forgetfs

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// inside is set in the processes that Main has started.
const inside = "FORGETFS_INSIDE"

// Main is a package's TestMain: it runs the tests in a mount namespace of their own, so that
// the host sees none of their mounts, and none is left however the tests end. The processes
// that they start are in it too.
func Main(m interface{ Run() int }) int {
	if os.Getenv(inside) != "" {
		return m.Run()
	}
	runtime.LockOSThread() // the signal comes at the end of the thread that started the process
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "run the tests in a mount namespace:", err)
		return 1
	}
	return 0
}
