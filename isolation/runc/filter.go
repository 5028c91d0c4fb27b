package runc

import (
	"fmt"
	"runtime"

	"github.com/opencontainers/runc/libcontainer/seccomp"

	"github.com/sandboxd/sandboxd/isolation"
)

// FilterThread puts the default seccomp profile on the calling thread, and with it on
// every process that the thread starts. The thread has no_new_privs; the caller has
// locked it, and never unlocks it.
func FilterThread() error {
	c, err := isolation.SeccompConfig(isolation.DefaultProfile, runtime.GOARCH)
	if err == nil {
		_, err = seccomp.InitSeccomp(c)
	}
	if err != nil {
		return fmt.Errorf("runc: seccomp filter of a thread: %w", err)
	}
	return nil
}
