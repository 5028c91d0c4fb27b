// Package filetable grows the kernel's table of this process's descriptors ahead of need.
//
// The table grows when a descriptor does not fit any more: for that a process with threads
// waits for a grace period of RCU, 10 to 30 ms (expand_fdtable in Linux' fs/file.c), which
// would be in the middle of somebody's cold start.
package filetable

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	// perSandbox is the most that a sandbox has open in the supervisor, and in the worker:
	// 16 and 14 were counted, to which come those of a domain for external extensions.
	perSandbox = 24
	// perProcess is what each of them has open besides, with some connections.
	perProcess = 64
)

// For is how many descriptors each of the daemon's processes comes to with so many
// sandboxes.
func For(sandboxes int) int { return perProcess + sandboxes*perSandbox }

// Grow makes the table large enough for n descriptors, at eight bytes each, or for as many
// as the process may open. It waits for that beside its caller, who needs the channel only
// to know when it is done, and of what it failed: then some sandbox waits.
func Grow(n int) <-chan error {
	grown := make(chan error, 1)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil { // now: the worker's filter will not allow it
		grown <- os.NewSyscallError("getrlimit", err)
		return grown
	}
	last := int(min(uint64(n), limit.Cur)) - 1
	go func() {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, last) // the table never shrinks again
		if err == nil {
			err = unix.Close(fd)
		}
		grown <- os.NewSyscallError("fcntl", err)
	}()
	return grown
}
