package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/confine"
)

// minKernel is the oldest kernel that has all that sandboxd uses: memory.peak of
// cgroup v2 came with 5.19, cgroup.kill with 5.14, mount_setattr with 5.12.
var minKernel = [2]int{5, 19}

func lookRoot(context.Context, Host) outcome {
	if uid := os.Geteuid(); uid != 0 {
		return lacks(fmt.Sprintf("user %d", uid), "run it as root: sudo sandboxd …")
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&hdr, &caps[0]); err != nil {
		return lacks("capabilities: "+err.Error(), "run it as the host's root")
	}
	var missing []string
	for name, bit := range map[string]int{
		"SYS_ADMIN": unix.CAP_SYS_ADMIN, "SETUID": unix.CAP_SETUID, "SETGID": unix.CAP_SETGID, "NET_ADMIN": unix.CAP_NET_ADMIN,
		"CHOWN": unix.CAP_CHOWN, "KILL": unix.CAP_KILL, "MKNOD": unix.CAP_MKNOD, "SYS_PTRACE": unix.CAP_SYS_PTRACE,
	} {
		if caps[bit/32].Effective&(1<<(bit%32)) == 0 {
			missing = append(missing, "CAP_"+name)
		}
	}
	if len(missing) > 0 {
		return lacks("root without "+strings.Join(missing, ", "), "run it as the host's root, not inside a container")
	}
	return has("root with the capabilities needed")
}

func lookKernel(context.Context, Host) outcome {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return lacks(err.Error(), "")
	}
	release := unix.ByteSliceToString(u.Release[:])
	if !newEnough(release) {
		return lacks("Linux "+release, fmt.Sprintf("upgrade to Linux %d.%d or newer; Debian 12 has 6.1", minKernel[0], minKernel[1]))
	}
	return has("Linux " + release)
}

// newEnough compares a kernel release such as "6.1.0-18-amd64" with minKernel.
func newEnough(release string) bool {
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return false
	}
	return major > minKernel[0] || major == minKernel[0] && minor >= minKernel[1]
}

// domainNamespaces are the namespaces of a domain.
const domainNamespaces = syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET |
	syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS | syscall.CLONE_NEWCGROUP

// domainProcess starts a process in namespaces of its own, which waits until stop
// is called. The range of host ids is the one that sandboxes would have.
func domainProcess(ctx context.Context, h Host) (pid int, stop func() error, err error) {
	cmd := exec.CommandContext(ctx, "/bin/cat")
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(h.IDBase), Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: domainNamespaces, UidMappings: ids, GidMappings: ids, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		return 0, nil, err
	}
	if err := cmd.Start(); err != nil {
		return 0, nil, err
	}
	return cmd.Process.Pid, func() error { in.Close(); return cmd.Wait() }, nil
}

func lookNamespaces(ctx context.Context, h Host) outcome {
	_, stop, err := domainProcess(ctx, h)
	if err == nil {
		err = stop()
	}
	if err != nil {
		fix := "enable user, pid, mount, net, ipc, uts and cgroup namespaces in the kernel"
		if n, e := h.read("proc/sys/user/max_user_namespaces"); e == nil && strings.TrimSpace(n) == "0" {
			fix = "sysctl -w user.max_user_namespaces=10000"
		}
		return lacks("a process in namespaces of its own: "+err.Error(), fix)
	}
	return has("user, pid, mount, net, ipc, uts, cgroup")
}

// lookMountAPI clones a mount, which hangs nowhere, and makes the clone read-only.
func lookMountAPI(context.Context, Host) outcome {
	if err := cloneMount(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return lacks(err.Error(), "upgrade the kernel; in a container, allow open_tree and mount_setattr")
	}
	return has("open_tree, mount_setattr")
}

// lookIDMap makes a clone whose owners a user namespace maps.
func lookIDMap(ctx context.Context, h Host) outcome {
	const fix = "files inside belong to nobody instead of root: put the state folder on ext4, xfs or btrfs"
	pid, stop, err := domainProcess(ctx, h)
	if err != nil {
		return lacks(err.Error(), fix)
	}
	defer stop()
	userns, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns/user"))
	if err != nil {
		return lacks(err.Error(), fix)
	}
	defer userns.Close()
	if err := cloneMount(unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd())}); err != nil {
		return lacks("for /usr: "+err.Error(), fix)
	}
	return has("for /usr")
}

func lookLandlock(context.Context, Host) outcome {
	version := confine.LandlockVersion()
	if version == 0 {
		return lacks("the kernel has none, or it is off", "the worker, and what extracts zips and images, are confined by their users and seccomp alone; add landlock to the kernel's lsm= list")
	}
	return has(fmt.Sprintf("version %d", version))
}

// cloneMount makes a detached clone of /usr with the given attributes and drops it.
func cloneMount(attr unix.MountAttr) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/usr", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	return nil
}

func lookSeccomp(context.Context, Host) outcome {
	const getActionAvail = 2 // SECCOMP_GET_ACTION_AVAIL of linux/seccomp.h
	action := uint32(unix.SECCOMP_RET_KILL_PROCESS)
	if err := seccomp(getActionAvail, &action); err != nil {
		return lacks("seccomp: "+err.Error(), "use a kernel with CONFIG_SECCOMP_FILTER")
	}
	return has("filters, and killing the process")
}

// seccomp asks the kernel about seccomp without changing anything.
func seccomp(operation uintptr, arg *uint32) error {
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, operation, 0, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}

// lookFileSystem asks the kernel for a file system, which loads its module if needed.
func lookFileSystem(kind string) func(context.Context, Host) outcome {
	return func(context.Context, Host) outcome {
		fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
		if err != nil {
			return lacks(err.Error(), "modprobe "+kind)
		}
		unix.Close(fd)
		return has("in the kernel")
	}
}

func lookLoop(context.Context, Host) outcome {
	fd, err := unix.Open("/dev/loop-control", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return lacks("/dev/loop-control: "+err.Error(), "modprobe loop")
	}
	defer unix.Close(fd)
	n, err := unix.IoctlRetInt(fd, unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return lacks("no free device: "+err.Error(), "load the module with more devices: modprobe loop max_loop=0")
	}
	return has(fmt.Sprintf("/dev/loop%d is free", n))
}

func lookMke2fs(context.Context, Host) outcome {
	path, err := exec.LookPath("mke2fs")
	if err == nil {
		return has(path)
	}
	for _, path := range []string{"/usr/sbin/mke2fs", "/sbin/mke2fs"} { // a user's PATH may lack them
		if unix.Access(path, unix.X_OK) == nil {
			return has(path)
		}
	}
	return lacks("not found", "apt-get install e2fsprogs")
}

// missingFile says whether err means that a file is not there.
func missingFile(err error) bool { return errors.Is(err, fs.ErrNotExist) }
