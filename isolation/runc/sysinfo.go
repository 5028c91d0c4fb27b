package runc

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// auditArch is the number of an architecture's system call interface (AUDIT_ARCH_* of
// linux/audit.h).
var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// withSysinfo returns the seccomp program with instructions in front that leave sysinfo(2) to
// the listener, which is the init handler (docs/decisions/0049). All other calls, and calls of
// other interfaces, reach program.
func withSysinfo(program []byte) []byte {
	const number, arch = 0, 4 // offsets in struct seccomp_data
	front := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arch},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: auditArch[runtime.GOARCH], Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SYSINFO, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	var b []byte
	for _, i := range front {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return append(b, program...)
}

// CheckSysinfo checks whether the init handler can answer sysinfo(2) on this host. If it
// cannot, functions get the host's memory from that call, and the error is a
// [host.Unsupported].
func CheckSysinfo() error {
	scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := checkPtraceScope(strings.TrimSpace(string(scope))); err != nil {
		return err
	}
	err = onOwnThread(func() error { // it ends with its filter
		allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
		form := unix.SockFprog{Len: 1, Filter: &allow}
		fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&form)))
		if errno != 0 {
			return errno
		}
		return unix.Close(int(fd))
	})
	if err != nil {
		return &host.Unsupported{Feature: host.Sysinfo, Need: "seccomp user notification", Err: err,
			Fix: "run sandboxd outside of containers whose manager intercepts system calls"}
	}
	return nil
}

// checkPtraceScope checks the value of kernel.yama.ptrace_scope, "" if there is no Yama. With
// 2 or more an ancestor may not write to the memory of a process.
func checkPtraceScope(scope string) error {
	if scope != "" && scope != "0" && scope != "1" {
		return &host.Unsupported{Feature: host.Sysinfo, Need: "kernel.yama.ptrace_scope is " + scope, Fix: "sysctl -w kernel.yama.ptrace_scope=1"}
	}
	return nil
}
