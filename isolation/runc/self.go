package runc

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	_ "github.com/sandboxd/sandboxd/isolation/runc/reexec" // what this program is when libcontainer executes it
	_ "github.com/sandboxd/sandboxd/isolation/runc/stage"  // and what it makes way for
)

// IsSealed reports whether this process runs from a sealed copy: SealSelf has been called.
func IsSealed() bool { return exeseal.IsSelfExeCloned() }

// SealSelf executes the daemon again, from a sealed copy of its binary and in a private mount
// namespace. In the process that results it returns nil.
//
// With the sealed copy libcontainer can start domains without copying the binary each time,
// and no domain can reach the file on disk (CVE-2019-5736). In the private mount namespace,
// everything that the daemon mounts disappears when the daemon and its domains have exited,
// even if they were killed. Call SealSelf before the process has state: only the environment
// and file descriptors that are not close-on-exec survive.
func SealSelf() error {
	if IsSealed() {
		return nil
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open the daemon's binary: %w", err)
	}
	info, err := self.Stat()
	if err != nil {
		return fmt.Errorf("get the size of the daemon's binary: %w", err)
	}
	sealed, err := exeseal.CloneBinary(self, info.Size(), "sandboxd", os.TempDir())
	if err != nil {
		return fmt.Errorf("create a sealed copy of the daemon's binary: %w", err)
	}
	if !exeseal.IsCloned(sealed) { // SealSelf would not recognize the copy, and repeat for ever
		return &host.Unsupported{Feature: host.ExecutableMemory, Need: "create a sealed copy of the daemon's binary: the kernel does not allow executable files in memory",
			Fix: "set vm.memfd_noexec to 0 or 1"}
	}
	runtime.LockOSThread() // only this thread is in the namespace until exec
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("create a private mount namespace: %w (sandboxd needs root with CAP_SYS_ADMIN)", err)
	}
	// Unmounts of the host still propagate here, so that the daemon keeps no file system busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	failpoint.Pass(failpoint.Sealing)
	err = descriptor.Use(sealed, func(fd int) error { return unix.Exec("/proc/self/fd/"+strconv.Itoa(fd), os.Args, os.Environ()) })
	return fmt.Errorf("execute the sealed copy of the daemon's binary: %w", err)
}
