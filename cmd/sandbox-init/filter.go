package main

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// filterFD holds the seccomp filter of the domain, a struct sock_filter array.
const filterFD = 4

// putFilter puts the filter that descriptor fd holds on every thread of this process,
// and with it on every process that is ever started in the domain. It closes fd, and
// what libcontainer has left open behind it. The process has no_new_privs, without
// which an unprivileged one may not do this.
func putFilter(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	// An instruction is of 8 bytes, and the kernel takes 4096 (BPF_MAXINSNS).
	if st.Size <= 0 || st.Size%unix.SizeofSockFilter != 0 || st.Size > 4096*unix.SizeofSockFilter {
		return errors.New("a seccomp filter has no such size")
	}
	program := make([]unix.SockFilter, st.Size/unix.SizeofSockFilter)
	// By position: the file is every domain's.
	n, err := unix.Pread(fd, unsafe.Slice((*byte)(unsafe.Pointer(&program[0])), st.Size), 0)
	if err != nil {
		return os.NewSyscallError("pread", err)
	}
	if int64(n) != st.Size {
		return errors.New("the seccomp filter is cut short")
	}
	form := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&form)))
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	if thread != 0 {
		return errors.New("seccomp: a thread cannot have the filter")
	}
	return os.NewSyscallError("close_range", unix.CloseRange(uint(fd), 1<<32-1, 0))
}
