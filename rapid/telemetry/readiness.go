package telemetry

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxStreams is the largest number of streams of one process: lines and frames.
const maxStreams = 2

// readiness says which streams of a process have got bytes, in the order in which they got
// them. It is an epoll instance of its own with edges: the kernel appends a stream to the
// instance's list at the first write since the list was last taken
// (docs/decisions/0043-output-order.md). The netpoller watches the instance.
type readiness struct {
	file *os.File
	raw  syscall.RawConn
}

// newReadiness watches the non-blocking descriptors fds, which take names by their index.
func newReadiness(fds []int) (*readiness, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	for i, fd := range fds {
		event := unix.EpollEvent{Events: unix.EPOLLIN | uint32(unix.EPOLLET&0xffffffff), Fd: int32(i)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			_ = unix.Close(epoll)
			return nil, os.NewSyscallError("epoll_ctl", err)
		}
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // for NewFile, which has the netpoller watch it then
		_ = unix.Close(epoll)
		return nil, os.NewSyscallError("fcntl", err)
	}
	r := &readiness{file: os.NewFile(uintptr(epoll), "readiness of output")}
	if r.raw, err = r.file.SyscallConn(); err != nil {
		_ = r.file.Close()
		return nil, fmt.Errorf("watch the output of a process: %w", err)
	}
	return r, nil
}

// take returns the indices of the streams that got bytes, or ended, since the last call,
// the first of them first. It stores them in events. It does not wait. fd is the descriptor
// of r.file.
func take(fd int, events *[maxStreams]unix.EpollEvent) []unix.EpollEvent {
	for {
		// epoll_wait is not among the calls of the worker (internal/confine).
		n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(&events[0])), maxStreams, 0, 0, 0)
		switch errno {
		case 0:
			return events[:n]
		case unix.EINTR:
		default: // cannot happen with a descriptor that is open
			return nil
		}
	}
}
