// Command audit tells from inside of a sandbox, of any make, what it is confined to.
// It is static, reads and asks only, and needs no privilege.
//
//	audit calls FILE   what the seccomp filters say to the system calls in FILE
//	audit foreign ABI  makes a harmless system call of another interface: x32 or ia32
//	audit report NS…   all it finds out; NS are the host's namespaces, kind:[inode]
//	audit ids          real, effective and saved user and group ids, and capabilities
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "audit:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 2 && args[0] == "calls" {
		return calls(args[1])
	}
	if len(args) == 2 && args[0] == "foreign" {
		return foreign(args[1])
	}
	if len(args) > 1 && args[0] == "report" {
		return report(args[1:])
	}
	if len(args) == 1 && args[0] == "ids" {
		return printIDs()
	}
	return fmt.Errorf("unknown command line %q", args)
}

// calls reads a JSON list of [call] and prints the list of what they answer.
func calls(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var list []call
	if err := json.Unmarshal(text, &list); err != nil {
		return err
	}
	errnos, err := ask(list)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(errnos)
}

// foreign asks for the process id by a system call interface that no program for
// x86-64 uses. It prints "answered", "refused", or what ended the caller.
func foreign(abi string) error {
	if abi != "x32" && abi != "ia32" {
		return fmt.Errorf("no such interface: %s", abi)
	}
	pid, errno := forkAndCall(abi == "ia32")
	if errno != 0 {
		return os.NewSyscallError("fork", errno)
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(int(pid), &status, 0, nil); err != nil {
		return os.NewSyscallError("wait4", err)
	}
	what := "answered"
	switch {
	case status.Signaled():
		what = status.Signal().String()
	case status.ExitStatus() != 0:
		what = "refused"
	}
	_, err := fmt.Println(what)
	return err
}

// forkAndCall makes the call in a child of one thread, which exits with 0 if there is
// an answer and with 1 if there is an error. A filter that ends threads then ends a
// process. Nothing that needs the Go runtime may happen in the child.
//
//go:nosplit
//go:noinline
func forkAndCall(of32bits bool) (pid uintptr, errno unix.Errno) {
	const x32 = 0x40000000 // __X32_SYSCALL_BIT
	c := call{x32 | unix.SYS_GETPID}
	pid, _, errno = unix.RawSyscall(unix.SYS_FORK, 0, 0, 0)
	if pid != 0 || errno != 0 {
		return pid, errno
	}
	var answer uintptr
	if of32bits {
		answer = ia32(20) // getpid's number there
	} else {
		answer = probe(&c)
	}
	code := uintptr(0)
	if int32(answer) < 0 {
		code = 1
	}
	for {
		_, _, _ = unix.RawSyscall(unix.SYS_EXIT_GROUP, code, 0, 0)
	}
}

// printIDs prints the ids, and the effective capabilities as the kernel writes them.
func printIDs() error {
	ruid, euid, suid := unix.Getresuid()
	rgid, egid, sgid := unix.Getresgid()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:")
	_, err = fmt.Println(ruid, euid, suid, rgid, egid, sgid, strings.Fields(rest)[0])
	return err
}
