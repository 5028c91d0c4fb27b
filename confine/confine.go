// Package confine takes from a process what it does not need, for good, before the
// process exists: what a thread has lost, its children never have.
package confine

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Thread confines the calling thread, and with it every process that it starts: no
// capability can be gained any more (the bounding set is empty, no_new_privs is on), and
// Landlock lets it open nothing but what is needed to start a program, and what is in
// the folders. An error that is
// [ErrNoLandlock] means that all but Landlock is in force. The caller has locked the
// thread, and never unlocks it.
func Thread(folders ...*os.File) error {
	for c := uintptr(0); ; c++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break // there is no such capability
		}
		if err != nil {
			return fmt.Errorf("confine: bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: no_new_privs: %w", err)
	}
	return landlock(folders...)
}
