package main

import (
	"bytes"
	"errors"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// An answerer answers sysinfo(2) for every process of the domain with the memory that
// /proc/meminfo shows there. The kernel would tell the host's (docs/decisions/0049). Its
// methods run on one thread, which opens files as the sandbox user: it can write to the
// memory of a process where that user could, and nowhere else.
//
// It allocates nothing for a call, however many come: the memory of this process is the
// function's.
type answerer struct {
	listener int
	answer   unix.Sysinfo_t // Totalram is 0 before the first call
	call     notification
	verdict  verdict
	path     [len("/proc/2147483647/mem\x00")]byte // of the caller's memory
}

// notification is the kernel's struct seccomp_notif, verdict its seccomp_notif_resp.
type (
	notification struct {
		id         uint64
		pid, flags uint32 // pid is the thread's, in this process's pid namespace
		number     int32
		arch       uint32
		address    uint64
		args       [6]uint64
	}
	verdict struct {
		id    uint64
		value int64
		errno int32
		flags uint32
	}
)

// run answers until the process ends.
func (a *answerer) run(uid, gid uint32) {
	runtime.LockOSThread() // the ids below are the thread's own
	if err := openFilesAs(uid, gid); err != nil {
		die(exitFailed, err)
	}
	for {
		a.call = notification{} // the kernel insists
		switch errno := a.ioctl(unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&a.call)); errno {
		case 0:
		case unix.EINTR, unix.ENOENT: // ENOENT: the caller is gone, or a signal has interrupted it
			continue
		default:
			die(exitFailed, os.NewSyscallError("receive a call of sysinfo", errno))
		}
		a.verdict = verdict{id: a.call.id, errno: -int32(a.tell(&a.call))}
		for a.ioctl(unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&a.verdict)) == unix.EINTR { // of others, see above
		}
	}
}

// openFilesAs makes the calling thread open files with the rights of these ids. Signals
// and ptrace(2) go by its other ids, so that processes of the ids get no hold of it.
func openFilesAs(uid, gid uint32) error {
	if err := unix.Setfsgid(int(gid)); err != nil {
		return os.NewSyscallError("setfsgid", err)
	}
	if err := unix.Setfsuid(int(uid)); err != nil {
		return os.NewSyscallError("setfsuid", err)
	}
	// These two calls report no failure. With -1 they change nothing and return the id.
	for call, want := range map[uintptr]uint32{unix.SYS_SETFSGID: gid, unix.SYS_SETFSUID: uid} {
		if got, _, _ := unix.RawSyscall(call, ^uintptr(0), 0, 0); uint32(got) != want {
			return os.NewSyscallError("setfsuid and setfsgid", unix.EPERM)
		}
	}
	// The kernel resets what tieToDaemon has set: for this thread, and as fs.suid_dumpable says.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl PR_SET_PDEATHSIG", err)
	}
	return os.NewSyscallError("prctl PR_SET_DUMPABLE", unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0))
}

func (a *answerer) ioctl(request uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(a.listener), request, uintptr(arg))
	return errno
}

// tell writes the answer into the memory of the caller, and returns what sysinfo shall
// return: 0, EFAULT where the kernel would, or EPERM if the caller lets nobody write into
// its memory (PR_SET_DUMPABLE).
func (a *answerer) tell(n *notification) unix.Errno {
	if err := a.prepare(); err != nil { // such as too many open files on the host
		return unix.EPERM
	}
	path := append(strconv.AppendUint(append(a.path[:0], "/proc/"...), uint64(n.pid), 10), "/mem\x00"...)
	at := unix.AT_FDCWD
	fd, _, errno := unix.Syscall6(unix.SYS_OPENAT, uintptr(at), uintptr(unsafe.Pointer(&path[0])), unix.O_WRONLY|unix.O_CLOEXEC, 0, 0, 0)
	if errno != 0 {
		return unix.EPERM
	}
	mem := int(fd)
	defer unix.Close(mem)
	// While the call is valid, its thread lives, and the pid was its own when mem was opened. From
	// then on mem is the memory of that time, whoever has the pid. A signal may still end the
	// call before the write (docs/decisions/0049).
	if errno := a.ioctl(unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.id)); errno != 0 {
		return unix.EPERM
	}
	answer := unsafe.Slice((*byte)(unsafe.Pointer(&a.answer)), unsafe.Sizeof(a.answer))
	if written, err := unix.Pwrite(mem, answer, int64(n.args[0])); err != nil || written < len(answer) {
		return unix.EFAULT
	}
	return 0
}

// prepare brings the answer up to date. The load is 0, and there is 1 process, as in
// /proc/stat.
func (a *answerer) prepare() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return err
	}
	if a.answer.Totalram == 0 { // the file does not change once there are processes
		text, err := readFile("/proc/meminfo")
		if err != nil {
			return err
		}
		a.answer = unix.Sysinfo_t{Totalram: kilobytes(text, "MemTotal:"), Freeram: kilobytes(text, "MemFree:"), Unit: 1, Procs: 1}
	}
	if a.answer.Totalram == 0 {
		return errors.New("/proc/meminfo has no MemTotal")
	}
	a.answer.Uptime = now.Sec
	return nil
}

// readFile reads the beginning of a file, up to 4 KB. See writeFile.
func readFile(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	text := make([]byte, 4<<10)
	n, err := unix.Read(fd, text)
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return text[:n], nil
}

// kilobytes returns in bytes what the line of /proc/meminfo with that name tells in kB, or 0
// if there is no such line.
func kilobytes(meminfo []byte, name string) uint64 {
	for len(meminfo) > 0 {
		line := meminfo
		if end := bytes.IndexByte(meminfo, '\n'); end >= 0 {
			line, meminfo = meminfo[:end], meminfo[end+1:]
		} else {
			meminfo = nil
		}
		if len(line) < len(name) || string(line[:len(name)]) != name {
			continue
		}
		var kB uint64
		for _, c := range line[len(name):] {
			if c >= '0' && c <= '9' {
				kB = kB*10 + uint64(c-'0')
			}
		}
		return kB << 10
	}
	return 0
}
