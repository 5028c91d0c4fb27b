package suite

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// markVariable is in the environment of a command and of all that it starts. Its value is
// the folder of the start, which no other start has.
const markVariable = "CONFORMANCE_TARGET"

// awaitEnd waits until a child ends and leaves it a zombie, so that its process id, and
// with it the id of its process group, stays its own until the child is reaped.
func awaitEnd(pid int) error {
	const byPID, siginfoSize = 1, 128 // P_PID and sizeof(siginfo_t) of linux/wait.h
	var info [siginfoSize]byte
	for {
		_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, byPID, uintptr(pid), uintptr(unsafe.Pointer(&info)), syscall.WEXITED|syscall.WNOWAIT, 0, 0)
		if errno == 0 {
			return nil
		}
		if errno != syscall.EINTR {
			return fmt.Errorf("wait for process %d: %w", pid, errno)
		}
	}
}

// alive lists the processes of the start that still run: those of the command's process
// group, and those that have left it but carry the mark. Zombies do not count.
func (p *process) alive() ([]int, error) {
	entries, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var list []int
	for _, dir := range entries {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if p.owns(dir) {
			list = append(list, pid)
		}
	}
	return list, nil
}

// owns reports whether the process with that folder in /proc runs and belongs to the start.
func (p *process) owns(dir string) bool {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return false // it has ended since
	}
	f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // after the command: state, parent, group
	if len(f) < 3 || f[0] == "Z" || f[0] == "X" {
		return false
	}
	if f[2] == strconv.Itoa(p.cmd.Process.Pid) {
		return true
	}
	environ, err := os.ReadFile(filepath.Join(dir, "environ"))
	mark := []byte(markVariable + "=" + p.root)
	return err == nil && bytes.Contains(append([]byte{0}, environ...), append(append([]byte{0}, mark...), 0))
}

// signal sends sig to the command's process group and to each process of the start
// outside of it.
func (p *process) signal(sig syscall.Signal) error {
	err := syscall.Kill(-p.cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		err = nil // it has no group any more
	}
	list, listErr := p.alive()
	err = errors.Join(err, listErr)
	for _, pid := range list {
		handle, findErr := os.FindProcess(pid)
		if findErr != nil {
			continue // it has ended
		}
		// The handle is of whoever has that id now.
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		group, groupErr := syscall.Getpgid(pid)
		if p.owns(dir) && groupErr == nil && group != p.cmd.Process.Pid {
			if sigErr := handle.Signal(sig); !errors.Is(sigErr, os.ErrProcessDone) {
				err = errors.Join(err, sigErr)
			}
		}
		_ = handle.Release() // cannot fail
	}
	return err
}

// gone waits until no process of the start runs. Nobody tells when the last of them ends,
// so it looks again and again. It returns those that still run at the end of limit.
func (p *process) gone(limit time.Duration) ([]int, error) {
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(limit); ; <-again.C {
		list, err := p.alive()
		if err != nil || len(list) == 0 || time.Now().After(deadline) {
			return list, err
		}
	}
}

// end stops the command and everything that it has started: with SIGTERM, and after the
// target's patience with SIGKILL, which is an error.
func (p *process) end() error {
	list, err := p.alive()
	if err != nil || len(list) == 0 {
		return err
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop the command: %w", err)
	}
	list, err = p.gone(p.patience)
	if err != nil || len(list) == 0 {
		return err
	}
	var names []string
	for _, pid := range list {
		names = append(names, describe(pid))
	}
	late := fmt.Errorf("%s still ran %v after SIGTERM and had to be killed; the command must end with everything that it has started", strings.Join(names, ", "), p.patience)
	for deadline := time.Now().Add(p.patience); len(list) > 0 && err == nil; { // one may start another meanwhile
		if time.Now().After(deadline) {
			return errors.Join(late, fmt.Errorf("processes %v cannot be killed", list))
		}
		if err = p.signal(syscall.SIGKILL); err == nil {
			list, err = p.gone(50 * time.Millisecond)
		}
	}
	return errors.Join(late, err)
}

// describe names a process by its id and command line.
func describe(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return fmt.Sprint("process ", pid)
	}
	return fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(strings.ReplaceAll(string(text), "\x00", " ")))
}
