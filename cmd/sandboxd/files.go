package main

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	// filesOfSandbox is what a sandbox has open in the supervisor, and in the worker, at
	// most: 16 and 14 were counted, to which come those of a domain for external extensions.
	filesOfSandbox = 24
	// filesOfDaemon is what each of them has open besides, with some connections.
	filesOfDaemon = 64
)

// filesAtOnce is how many descriptors each of the daemon's processes comes to.
func filesAtOnce(concurrency int) int {
	return filesOfDaemon + sandboxesAtOnce(concurrency)*filesOfSandbox
}

// growFileTable makes the kernel's table of this process's descriptors large enough for n
// of them, at eight bytes each, or for as many as the process may open. It would grow when
// somebody's sandbox does not fit in any more: for that a process with threads waits for
// a grace period of RCU, 10 to 30 ms (expand_fdtable in Linux' fs/file.c). So this waits,
// beside its caller, who needs the channel only to know when, and of what it failed.
func growFileTable(n int) <-chan error {
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
