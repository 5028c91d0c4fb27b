package actor

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// visibleProcesses lists every process in /proc as "pid command line".
func visibleProcesses() ([]string, error) {
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
			continue // it has ended since
		}
		args := strings.Split(strings.TrimRight(string(text), "\x00"), "\x00")
		list = append(list, e.Name()+" "+strings.Join(args, " "))
	}
	return list, nil
}

// inheritedFDs lists the descriptors that came through exec as "fd target". The Go
// runtime marks a descriptor that it opens itself as close-on-exec, so it is not listed.
func inheritedFDs() []string {
	var list []string
	for fd := range uintptr(1024) {
		flags, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_GETFD, 0)
		if errno != 0 || flags&syscall.FD_CLOEXEC != 0 {
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
