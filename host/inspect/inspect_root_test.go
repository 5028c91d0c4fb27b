//go:build integration

package inspect

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Files in memory are listed, and whose they are: those of a child that were made before it
// had its user namespace by somebody who is not in it are not its own.
func TestMemoryFiles(t *testing.T) {
	files := []*os.File{}
	for _, name := range []string{"its own", "ours"} {
		fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, os.NewFile(uintptr(fd), name))
		defer files[len(files)-1].Close()
	}
	const user = 1 << 30
	if err := files[0].Chown(user, user); err != nil {
		t.Fatal(err)
	}
	cmd := waiting()
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: user, Size: 1}},
	}
	startWaiting(t, cmd)
	p, err := Reader{}.Process(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if want := []MemoryFile{{3, "its own", true}, {4, "ours", false}}; !slices.Equal(p.MemoryFiles, want) {
		t.Errorf("%+v, want %+v", p.MemoryFiles, want)
	}
	if got, err := foreignMemory(subject{Process: p}); err != nil || got != "4:ours" {
		t.Errorf("%q, %v", got, err)
	}
}

// Who has no filter, and who is not there, cannot be asked for one, and lives on.
func TestFilterOfNobody(t *testing.T) {
	none := exec.Command("sleep", "1000") // without a filter
	if err := none.Start(); err != nil {
		t.Fatal(err)
	}
	defer none.Wait()
	defer none.Process.Kill()
	if _, err := (Reader{}).filterOf(none.Process.Pid); err == nil || errors.Is(err, errNotStopped) {
		t.Errorf("a process without a filter: %v", err)
	}
	if err := none.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("after the question: %v", err)
	}
	if _, err := (Reader{}).filterOf(1 << 22); !gone(err) { // beyond pid_max
		t.Errorf("no process: %v", err)
	}
}
