// Command sandbox-init is the init handler: PID 1 of a domain. The supervisor starts
// it, through libcontainer, as uid 0 of the domain's user namespace, with the control
// socket (package wire) as descriptor 3 and the seccomp filter as descriptor 4. It puts
// the filter on itself, gives up what it does not need, sends its handshake, and then starts,
// signals and reaps processes on request until the daemon is gone. Then it ends, and
// the kernel ends everything else in the domain with it.
//
// It takes no arguments, and no environment but Go's. It exits with 0 when the daemon closed
// the socket, with 1 when it could not go on, and with 2 when it was not started by
// sandboxd; the reason is one line on standard error.
//
// It is linked statically and kept small (no fmt, no net): every domain maps it.
package main

import (
	"errors"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation/wire"
)

const (
	controlFD = 3

	exitFailed = 1
	exitUsage  = 2
)

func main() {
	if os.Getpid() != 1 { // and never get near kill(-1) on a host
		die(exitUsage, errors.New("this is PID 1 of a sandbox and only sandboxd starts it: use sandboxd run"))
	}
	listener, err := putFilter(filterFD)
	if err != nil { // before anything of the sandbox is touched
		die(exitUsage, errors.New("descriptor 4 is no seccomp filter, only sandboxd starts this program: "+err.Error()))
	}
	conn, err := openControl()
	if err != nil {
		die(exitUsage, errors.New("descriptor 3 is no control socket, only sandboxd starts this program: "+err.Error()))
	}
	if err := serve(conn, listener); err != nil {
		die(exitFailed, err)
	}
}

// openControl takes the control socket, and makes sure that no child inherits it or
// anything else that libcontainer may have left open.
func openControl() (*wire.Conn, error) {
	if err := unix.CloseRange(controlFD, 1<<32-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("close_range", err)
	}
	return wire.NewConn(os.NewFile(controlFD, "control socket"))
}

// serve returns nil when the daemon is gone. listener is the result of putFilter.
func serve(conn *wire.Conn, listener int) error {
	if err := tieToDaemon(); err != nil {
		return err
	}
	if err := writeLimits("/proc/sys/user"); err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := replaceNull(null); err != nil {
		return err
	}
	// If the daemon died before the death signal was set, this is where it shows.
	if err := conn.Send(wire.Handshake{Version: wire.Version}); err != nil {
		return daemonGone(err)
	}
	// One for the loop, and two that the waits for children and for sysinfo may hold. The daemon starts this
	// program with one, so that it has few threads while each must give up privileges.
	runtime.GOMAXPROCS(3)
	reserveThreads() // while there is no other process yet
	return daemonGone(newHandler(conn, null, listener).loop())
}

// replaceNull puts null, the domain's own, in the place of standard input, output and
// error where the daemon gave another /dev/null for one.
func replaceNull(null *os.File) error {
	var own, given unix.Stat_t
	if err := unix.Fstat(int(null.Fd()), &own); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	for fd := range 3 {
		if err := unix.Fstat(fd, &given); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		if given.Mode&unix.S_IFMT != unix.S_IFCHR || given.Rdev != own.Rdev {
			continue
		}
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return os.NewSyscallError("dup3", err)
		}
	}
	return nil
}

// daemonGone turns the errors that the end of the daemon causes into nil.
func daemonGone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return nil
	}
	return err
}

func die(code int, err error) {
	_, _ = os.Stderr.WriteString("sandbox-init: " + err.Error() + "\n")
	os.Exit(code)
}
