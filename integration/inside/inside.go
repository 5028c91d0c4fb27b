// Package inside holds what test programs look up about themselves when they run
// in a sandbox.
package inside

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Processes lists every process in sight as "pid command line".
func Processes() ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var list []string
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		text, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue // gone since
		}
		args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		list = append(list, e.Name()+" "+strings.Join(args, " "))
	}
	return list, nil
}

// InheritedFDs lists the descriptors that came through exec as "fd target". A
// descriptor that the Go runtime opened itself is marked close-on-exec, and so
// cannot be one.
func InheritedFDs() []string {
	var list []string
	for fd := range 1024 {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue
		}
		target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
		if err != nil {
			target = err.Error()
		}
		list = append(list, fmt.Sprintf("%d %s", fd, target))
	}
	return list
}
