package inspect

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// Profiles are the seccomp filters that may be in force, in the kernel's form, an array of
// struct sock_filter, by their names.
type Profiles map[string][]byte

const (
	// otherProfile is a filter that is none of the reader's profiles: another version of
	// sandboxd has put it there, or somebody else.
	otherProfile = "another"
	// filterTime is how long a process may take to stop for the question.
	filterTime = time.Second
)

// name is the name of a filter.
func (p Profiles) name(filter []byte) string {
	for _, name := range slices.Sorted(maps.Keys(p)) {
		if bytes.Equal(p[name], filter) {
			return name
		}
	}
	return otherProfile
}

// unknown stands for the name of a filter that could not be had.
func unknown(err error) string { return "(" + err.Error() + ")" }

// What the kernel may have against telling the filter; neither says that it is another one.
var (
	errNotShown   error = &host.Unsupported{Feature: host.FilterContent, Need: "not told: the kernel shows no filters, since it was built without CONFIG_CHECKPOINT_RESTORE"}
	errNotStopped       = errors.New("not told: the process does not stop, as where the freezer of cgroup v1 holds it")
)

// filterOf asks the kernel for the seccomp filter that the main thread of a process has put
// on last. The process stops for the moment of the question, frozen or not; a system call
// in which it waits is begun anew, or is interrupted. So ask one of ours.
func (r Reader) filterOf(pid int) ([]byte, error) {
	type answer struct {
		filter []byte
		err    error
	}
	answers := make(chan answer, 1)
	go func() {
		// Never unlocked: the tracer is a thread, and with its end so is the tracing.
		runtime.LockOSThread()
		filter, err := r.traceFilter(pid)
		answers <- answer{filter, err}
	}()
	a := <-answers
	return a.filter, a.err
}

// traceFilter is filterOf on a thread that ends afterwards.
func (r Reader) traceFilter(pid int) ([]byte, error) {
	deadline := time.Now().Add(filterTime)
	for {
		err := ptrace(unix.PTRACE_SEIZE, pid, 0, 0)
		if err == nil {
			break
		}
		// It has ended, or somebody else asks it now.
		if _, e := os.ReadFile(r.path(strconv.Itoa(pid), "mountinfo")); gone(e) {
			return nil, unix.ESRCH
		}
		if err != unix.EPERM || time.Now().After(deadline) {
			return nil, fmt.Errorf("ptrace: seize: %w", err)
		}
		time.Sleep(time.Millisecond) // nothing tells that the other has asked
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, pid, 0, 0); err != nil {
		return nil, fmt.Errorf("ptrace: interrupt: %w", err)
	}
	// A wait for the stop has no time limit, and only this thread could end it: so it looks.
	for ; ; time.Sleep(100 * time.Microsecond) {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG|unix.WALL, nil)
		if err != nil && err != unix.EINTR {
			return nil, fmt.Errorf("ptrace: wait: %w", err)
		}
		if got == pid && status.Stopped() {
			break
		}
		if got == pid {
			return nil, unix.ESRCH // it has ended
		}
		if time.Now().After(deadline) {
			return nil, errNotStopped
		}
	}
	defer func() { _ = ptrace(unix.PTRACE_DETACH, pid, 0, 0) }() // the thread's end does it too
	n, err := ptraceFilter(pid, nil)
	if errors.Is(err, unix.EIO) {
		return nil, errNotShown
	}
	filter := make([]byte, n*unix.SizeofSockFilter)
	if err == nil && n > 0 {
		_, err = ptraceFilter(pid, filter)
	}
	if err != nil {
		return nil, fmt.Errorf("ptrace: filter: %w", err)
	}
	return filter, nil
}

func ptrace(request, pid int, addr, data uintptr) error {
	if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, data, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// ptraceFilter copies the filter that was put on last, if into has room, and returns the
// number of its instructions (PTRACE_SECCOMP_GET_FILTER).
func ptraceFilter(pid int, into []byte) (int, error) {
	var to unsafe.Pointer
	if len(into) > 0 {
		to = unsafe.Pointer(&into[0])
	}
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), 0, uintptr(to), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// profile is that of the only filter; inspect without --posture tells which it is.
func profile(s subject) (string, error) {
	if _, known := s.reader.Profiles[s.Profile]; known {
		return "one of sandboxd's", nil
	}
	for _, err := range []error{errNotShown, errNotStopped} {
		if s.Profile == unknown(err) {
			return "not told by the kernel", nil
		}
	}
	return s.Profile, nil
}
