//go:build integration

package recovery

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// An injector lets chosen system calls of a daemon fail (S-10). It does what `strace -e
// inject` does, with seccomp's notifications in place of ptrace (docs/decisions/0014): strace
// cannot follow a daemon that has children traced itself, and counts by thread.
type injector struct {
	listener *os.File
	done     chan struct{}

	mu    sync.Mutex
	pid   int         // of the daemon, whose threads count and nobody else's
	calls map[int]int // how often each system call was made since reset
	armed *injection
	hit   bool
}

// injection is one failure: the nth call of a kind gets an errno instead of being made.
type injection struct {
	call  int // number of the system call
	nth   int // counted from 1
	errno unix.Errno
}

// injectee names the environment variable that makes the test binary an injectee: it
// installs the filter for the calls listed, and becomes the program in its arguments.
const injectee = "INTEGRATION_INJECTEE"

// becomeInjectee does that; it returns only if it fails.
func becomeInjectee(calls string) error {
	runtime.LockOSThread()                                                           // a filter is a thread's, and exec keeps this one
	prog := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}} // seccomp_data.nr
	for nr := range strings.SplitSeq(calls, ",") {
		n, err := strconv.Atoi(nr)
		if err != nil {
			return err
		}
		prog = append(prog,
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(n), Jt: 0, Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	prog = append(prog, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	fprog := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	argv0, argv, env := os.Args[1], os.Args[1:], os.Environ()
	const waitKillableRecv = 1 << 5 // SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: a signal does not take a call back
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|waitKillableRecv, uintptr(unsafe.Pointer(&fprog)))
	if errno != 0 {
		return fmt.Errorf("seccomp: %w", errno)
	}
	// Our own calls are held up from here on, until the test has taken the listener.
	if _, err := unix.FcntlInt(fd, unix.F_GETFD, 0); err != nil {
		return err
	}
	return syscall.Exec(argv0, argv, env)
}

// startInjected is startIn under an injector that can make these calls fail.
func startInjected(t *testing.T, f harness.Folders, calls []int, args ...string) (*harness.Daemon, *injector) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := harness.NewDaemon(t, self, f, args...)
	d.Cmd.Args = append([]string{self, harness.Sandboxd}, d.Cmd.Args[1:]...)
	list := strings.Trim(strings.ReplaceAll(fmt.Sprint(calls), " ", ","), "[]")
	d.Cmd.Env = append(d.Cmd.Env, injectee+"="+list)
	// When a start fails, libcontainer forgets descriptors that the collector closes; it
	// must not be waited for. What we forget ourselves, TestPlantedLeaks would see.
	d.Cmd.Env = append(d.Cmd.Env, "GOGC=1")
	d.Run()
	in := &injector{pid: d.Cmd.Process.Pid, calls: map[int]int{}, done: make(chan struct{})}
	harness.Eventually(t, harness.Patience, func() string {
		in.listener, err = listenerOf(in.pid)
		if err != nil {
			return err.Error()
		}
		return ""
	})
	go in.serve()
	t.Cleanup(func() {
		d.Cmd.Process.Kill()
		<-d.Done()
		<-in.done
		in.listener.Close()
	})
	return d.Listening(), in
}

// listenerOf takes the seccomp listener out of an injectee.
func listenerOf(pid int) (*os.File, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(pidfd)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && target == "anon_inode:seccomp notify" {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				return nil, err
			}
			fd, err := unix.PidfdGetfd(pidfd, n, 0)
			if err != nil {
				return nil, err
			}
			return os.NewFile(uintptr(fd), "seccomp"), nil
		}
	}
	return nil, fmt.Errorf("process %d has no seccomp listener yet", pid)
}

// seccompNotif and seccompResp are those of linux/seccomp.h.
type seccompNotif struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

type seccompResp struct {
	id    uint64
	val   int64
	err   int32
	flags uint32
}

// serve answers the notifications until no process is left that makes any.
func (in *injector) serve() {
	defer close(in.done)
	fd := int(in.listener.Fd())
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err == unix.EINTR {
			continue
		}
		if fds[0].Revents&unix.POLLIN == 0 {
			return // POLLHUP: all are gone
		}
		var n seccompNotif
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); errno != 0 {
			continue // whoever called is gone
		}
		r := seccompResp{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
		if errno := in.decide(int(n.nr), int(n.pid), n.args[0]); errno != 0 {
			r.err, r.flags = -int32(errno), 0
		}
		_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

// decide counts a call, whose first argument is given, and says with what it fails, 0 if it
// is to be made.
func (in *injector) decide(call, thread int, arg uint64) unix.Errno {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !harness.Exists(fmt.Sprintf("/proc/%d/task/%d", in.pid, thread)) {
		return 0 // a child's
	}
	in.calls[call]++
	if in.armed == nil || in.armed.call != call || in.calls[call] != in.armed.nth || in.readsPipe(call, arg) && in.armed.errno != unix.EINTR {
		return 0
	}
	in.hit = true
	return in.armed.errno
}

// readsPipe reports whether a call reads from a pipe. That fails for no want of memory or
// descriptors, and syscall.ForkExec relies on it: it takes every error but EINTR for news
// that the child has failed, and waits for the child's end.
func (in *injector) readsPipe(call int, fd uint64) bool {
	if call != unix.SYS_READ {
		return false
	}
	file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", in.pid, fd))
	return err == nil && strings.HasPrefix(file, "pipe:")
}

// arm counts anew and has an injection wait for its call; nil is none.
func (in *injector) arm(i *injection) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.armed, in.hit, in.calls = i, false, map[int]int{}
}

// disarm ends an injection and tells how often each call was made, and whether it failed.
func (in *injector) disarm() (calls map[int]int, hit bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.armed = nil
	return in.calls, in.hit
}

// injected are the system calls that make and remove sandboxes, by name and number. Not
// among them are close, which closes whatever it says, the waits for children, which fail
// for none of these reasons, and what the Go runtime waits and schedules with.
var injected = map[string]int{
	"access": unix.SYS_ACCESS, "bind": unix.SYS_BIND, "clone": unix.SYS_CLONE, "clone3": unix.SYS_CLONE3, "connect": unix.SYS_CONNECT,
	"copy_file_range": unix.SYS_COPY_FILE_RANGE, "dup": unix.SYS_DUP, "dup3": unix.SYS_DUP3, "epoll_ctl": unix.SYS_EPOLL_CTL,
	"eventfd2": unix.SYS_EVENTFD2, "faccessat2": unix.SYS_FACCESSAT2, "fchmod": unix.SYS_FCHMOD, "fchmodat": unix.SYS_FCHMODAT,
	"fchown": unix.SYS_FCHOWN, "fchownat": unix.SYS_FCHOWNAT, "fcntl": unix.SYS_FCNTL, "flock": unix.SYS_FLOCK,
	"fsconfig": unix.SYS_FSCONFIG, "fsmount": unix.SYS_FSMOUNT, "fsopen": unix.SYS_FSOPEN, "fstat": unix.SYS_FSTAT,
	"fstatfs": unix.SYS_FSTATFS, "ftruncate": unix.SYS_FTRUNCATE, "getdents64": unix.SYS_GETDENTS64, "getsockname": unix.SYS_GETSOCKNAME,
	"getsockopt": unix.SYS_GETSOCKOPT, "ioctl": unix.SYS_IOCTL, "kill": unix.SYS_KILL, "linkat": unix.SYS_LINKAT,
	"listen": unix.SYS_LISTEN, "lseek": unix.SYS_LSEEK, "memfd_create": unix.SYS_MEMFD_CREATE, "mkdirat": unix.SYS_MKDIRAT,
	"mknodat": unix.SYS_MKNODAT, "mount": unix.SYS_MOUNT, "mount_setattr": unix.SYS_MOUNT_SETATTR, "move_mount": unix.SYS_MOVE_MOUNT,
	"newfstatat": unix.SYS_NEWFSTATAT, "openat": unix.SYS_OPENAT, "openat2": unix.SYS_OPENAT2, "open_tree": unix.SYS_OPEN_TREE,
	"pidfd_open": unix.SYS_PIDFD_OPEN, "pidfd_send_signal": unix.SYS_PIDFD_SEND_SIGNAL, "pipe2": unix.SYS_PIPE2,
	"prctl": unix.SYS_PRCTL, "pread64": unix.SYS_PREAD64, "prlimit64": unix.SYS_PRLIMIT64, "pwrite64": unix.SYS_PWRITE64,
	"read": unix.SYS_READ, "readlinkat": unix.SYS_READLINKAT, "recvmsg": unix.SYS_RECVMSG, "renameat": unix.SYS_RENAMEAT,
	"rmdir": unix.SYS_RMDIR, "sendmsg": unix.SYS_SENDMSG, "sendto": unix.SYS_SENDTO, "setns": unix.SYS_SETNS,
	"setsockopt": unix.SYS_SETSOCKOPT, "socket": unix.SYS_SOCKET, "socketpair": unix.SYS_SOCKETPAIR, "statfs": unix.SYS_STATFS,
	"statx": unix.SYS_STATX, "symlinkat": unix.SYS_SYMLINKAT, "umount2": unix.SYS_UMOUNT2, "unlinkat": unix.SYS_UNLINKAT,
	"unshare": unix.SYS_UNSHARE, "write": unix.SYS_WRITE,
}

// injectErrnos are what every call may fail with.
var injectErrnos = []unix.Errno{unix.ENOMEM, unix.EMFILE, unix.EAGAIN, unix.EINTR}

// polled are the calls for which EAGAIN says that there is nothing to read, or no room to
// write, yet. Who hears that from a descriptor that is ready rightly waits for ever for
// the kernel to tell that it has become so: a failure that no kernel has.
var polled = []int{unix.SYS_READ, unix.SYS_WRITE, unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_SENDTO}

// TestInjectedErrors lets system calls of the daemon fail, one in each life of a sandbox
// (S-10): that life may fail, and nothing else may; nothing is left of it, and the next
// one is whole. A failure that ends the daemon is what S-01 is about.
//
// SOAK_INJECT is how many; SOAK_SEED chooses others.
func TestInjectedErrors(t *testing.T) {
	many := int(soakNumber(t, "SOAK_INJECT", uint64(harness.Rounds(t, 12))))
	seed := soakNumber(t, "SOAK_SEED", 1)
	t.Logf("SOAK_SEED=%d SOAK_INJECT=%d", seed, many)
	random := rand.New(rand.NewPCG(seed, 10))
	f := harness.NewFolders(t)
	args := []string{"--memory=512", "--timeout=10s", "--linger=0s", harness.Config(t, "idle-timeout: 1ms\n"),
		"--layer", harness.Layer(t, harness.Extensions{"watcher": harness.Idle()}), harness.Function(t)}
	var calls []int
	for _, nr := range injected {
		calls = append(calls, nr)
	}

	var d *harness.Daemon
	var in *injector
	var before census
	begin := func() {
		d, in = startInjected(t, f, calls, args...)
		d.Do()
		atRest(d, 0)
		d.Do()
		before = atRest(d, 0)
	}
	begin()
	in.arm(nil)
	d.Do()
	settle(d, before, harness.Patience)
	seen, _ := in.disarm()
	var all []injection
	names := map[int]string{}
	for name, nr := range injected {
		names[nr] = name
		for n := range seen[nr] {
			for _, errno := range injectErrnos {
				if errno == unix.EAGAIN && slices.Contains(polled, nr) {
					continue
				}
				all = append(all, injection{nr, n + 1, errno})
			}
		}
	}
	t.Logf("%d ways for a call to fail in the life of a sandbox", len(all))
	slices.SortFunc(all, func(a, b injection) int {
		return cmp.Or(cmp.Compare(a.call, b.call), cmp.Compare(a.nth, b.nth), cmp.Compare(a.errno, b.errno))
	})
	random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	hits, ended := 0, 0
	over := func(what string, err error) { // S-01
		ended++
		said := strings.Split(strings.TrimSpace(d.Log.Text()), "\n")
		t.Logf("%s ended the daemon: %v; it said: %s", what, err, said[len(said)-1])
		last := d.Instance
		begin()
		harness.WantNothingLeft(t, last)
	}
	for _, i := range all[:min(many, len(all))] {
		what := fmt.Sprintf("%s, call %d: %s", names[i.call], i.nth, unix.ErrnoName(i.errno))
		in.arm(&i)
		began := time.Now()
		late := time.AfterFunc(harness.Patience, func() {
			t.Errorf("%s: no answer after %v", what, harness.Patience)
			d.Cmd.Process.Kill()
		})
		_, err := d.Request(script.Event{Report: true}) // it may fail
		late.Stop()
		select {
		case <-d.Done():
			over(what, err)
			continue
		default:
		}
		// The removal may be what fails.
		harness.Eventually(t, harness.Patience, func() string {
			if left := d.Inits(); len(left) > 0 {
				return fmt.Sprintf("%s: %d domains are left", what, len(left))
			}
			return ""
		})
		_, hit := in.disarm()
		if hit {
			hits++
		}
		t.Logf("%s: met %t, over after %v", what, hit, time.Since(began).Round(time.Millisecond))
		a, err := d.Request(script.Event{Report: true})
		if err != nil && hit { // it is about to end
			select {
			case <-d.Done():
				hits-- // over counts it
				over(what, err)
				continue
			case <-time.After(harness.Patience):
			}
		}
		if err != nil || a.Status != http.StatusOK {
			t.Fatalf("after %s: %v, status %d, %s", what, err, a.Status, a.Body)
		}
		// What waits for the collector needs work that makes it run: a further life.
		grown := settle(d, before, harness.Patience/12).grown(before)
		for more := 0; len(grown) > 0 && more < 12; more++ {
			_, _ = d.Request(script.Event{Report: true})
			grown = settle(d, before, harness.Patience/12).grown(before)
		}
		if len(grown) > 0 {
			t.Fatalf("%s: leaked:\n\t%s", what, strings.Join(grown, "\n\t"))
		}
	}
	t.Logf("%d of %d calls failed as told, %d of them ended the daemon", hits+ended, min(many, len(all)), ended)
	if hits < many/4 {
		t.Errorf("only %d of %d injections met their call", hits, many)
	}
}
