package main

import (
	"errors"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterFD holds the seccomp filter of the domain, a struct sock_filter array.
const filterFD = 4

// putFilter puts the filter that descriptor fd holds on every thread of this process,
// and with it on every process that is ever started in the domain. It closes what
// libcontainer has left open behind fd. The process has no_new_privs, without which an
// unprivileged one may not do this.
//
// If the filter leaves a call to a listener, this process becomes the listener, at fd in
// the place of the filter. Else putFilter closes fd and returns -1.
func putFilter(fd int) (listener int, err error) {
	program, err := readFilter(fd)
	if err != nil {
		return -1, err
	}
	listens := slices.Contains(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	flags := uintptr(unix.SECCOMP_FILTER_FLAG_TSYNC)
	if listens { // the result is the listener, so that a thread is told by ESRCH
		flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH
	}
	form := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	result, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&form)))
	if errno != 0 {
		return -1, os.NewSyscallError("seccomp", errno)
	}
	if !listens {
		if result != 0 {
			return -1, errors.New("seccomp: a thread cannot have the filter")
		}
		return -1, os.NewSyscallError("close_range", unix.CloseRange(uint(fd), 1<<32-1, 0))
	}
	if err := unix.Dup3(int(result), fd, unix.O_CLOEXEC); err != nil {
		return -1, os.NewSyscallError("dup3", err)
	}
	return fd, os.NewSyscallError("close_range", unix.CloseRange(uint(fd)+1, 1<<32-1, 0))
}

// readFilter reads the filter that descriptor fd holds.
func readFilter(fd int) ([]unix.SockFilter, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, os.NewSyscallError("fstat", err)
	}
	// An instruction is of 8 bytes, and the kernel takes 4096 (BPF_MAXINSNS).
	if st.Size <= 0 || st.Size%unix.SizeofSockFilter != 0 || st.Size > 4096*unix.SizeofSockFilter {
		return nil, errors.New("a seccomp filter has no such size")
	}
	program := make([]unix.SockFilter, st.Size/unix.SizeofSockFilter)
	// By position: the file is every domain's.
	n, err := unix.Pread(fd, unsafe.Slice((*byte)(unsafe.Pointer(&program[0])), st.Size), 0)
	if err != nil {
		return nil, os.NewSyscallError("pread", err)
	}
	if int64(n) != st.Size {
		return nil, errors.New("the seccomp filter is cut short")
	}
	return program, nil
}
