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
	_ "github.com/sandboxd/sandboxd/isolation/runc/reexec" // what this program is when libcontainer executes it
	_ "github.com/sandboxd/sandboxd/isolation/runc/stage"  // and what it makes way for
)

// SealSelf re-executes the daemon once, from a sealed copy of its binary and in a
// mount namespace of its own, and returns nil in the process that results.
//
// The sealed copy lets libcontainer start domains without copying the binary each
// time, and no domain can reach the file on disk (CVE-2019-5736). In the private
// mount namespace everything that the daemon mounts goes when the daemon and its
// domains are gone, however they died. Call it before the process has state: file
// descriptors that are not close-on-exec and the environment survive.
func SealSelf() error {
	if exeseal.IsSelfExeCloned() {
		return nil
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("open own binary: %w", err)
	}
	info, err := self.Stat()
	if err != nil {
		return fmt.Errorf("size of own binary: %w", err)
	}
	sealed, err := exeseal.CloneBinary(self, info.Size(), "sandboxd", os.TempDir())
	if err != nil {
		return fmt.Errorf("sealed copy of own binary: %w", err)
	}
	if !exeseal.IsCloned(sealed) { // it would do this again for ever
		return &host.Unsupported{Feature: host.ExecutableMemory, Need: "sealed copy of own binary: the kernel gives no file in memory that can be executed",
			Fix: "set vm.memfd_noexec to 0 or 1"}
	}
	runtime.LockOSThread() // the namespace is this thread's until exec makes it the process's
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("private mount namespace: %w (sandboxd needs root with CAP_SYS_ADMIN)", err)
	}
	// Unmounts on the host still arrive here, so that nothing of the host is kept busy.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	err = descriptor.Use(sealed, func(fd int) error { return unix.Exec("/proc/self/fd/"+strconv.Itoa(fd), os.Args, os.Environ()) })
	return fmt.Errorf("execute sealed copy of own binary: %w", err)
}
