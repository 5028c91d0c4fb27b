package confine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/host/hosttest"
)

// The test binary is the process that is confined when this variable is set: it tries
// what it names, and prints what became of it.
const helper = "CONFINE_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "":
		os.Exit(m.Run())
	case "landlock":
		fmt.Print(tryFiles())
	case "seccomp":
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			err = errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), Process())
		}
		if err == nil {
			err = serveConfined(l)
		}
		fmt.Print(err, "\n", tryCalls(forbiddenServer))
	case "split":
		for _, confine := range []func() error{Process, Files, FilesAndNetwork, Store} {
			fmt.Println(confineSplit(confine))
		}
	case "waits":
		err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), Process())
		fmt.Println(err)
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "files", "connected", "store":
		what := os.Getenv(helper)
		confine := map[string]func() error{"files": Files, "connected": FilesAndNetwork, "store": Store}[what]
		err := errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), confine())
		if err == nil {
			err = useFiles(os.Getenv("DIR"))
		}
		if err == nil && what == "connected" {
			err = useNetwork(os.Getenv("ADDR"))
		}
		if err == nil && what == "store" {
			err = keepFiles(os.Getenv("DIR"))
		}
		if what != "connected" {
			forbiddenFiles["connect"] = unix.SYS_CONNECT
		}
		if what == "store" { // it opens below folders of the operator's (docs/decisions/0059)
			delete(forbidden, "openat2")
		}
		fmt.Print(err, "\n", tryCalls(forbiddenFiles))
	}
	os.Exit(0)
}

// confined runs the test binary as the helper that what names, with Landlock on if asked.
func confined(t *testing.T, what string, restricted bool, env ...string) string {
	t.Helper()
	return confinedBut(t, Needs{}, what, restricted, env...)
}

// confinedBut is confined with what is needed left.
func confinedBut(t *testing.T, needs Needs, what string, restricted bool, env ...string) string {
	t.Helper()
	var out strings.Builder
	program := sealed(t)
	cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", program.Fd()))
	cmd.Env = append(env, helper+"="+what)
	cmd.Stdout, cmd.Stderr = &out, &out
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd.Stdin = null
	started := make(chan error)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		var err error
		if restricted {
			err = errors.Join(unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), needs.landlock())
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return out.String()
}

// sealed is a copy of the test binary in memory, which Landlock lets anybody execute: so
// sandboxd runs too.
func sealed(t *testing.T) *os.File {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(self); err != nil {
		t.Fatal(err)
	}
	readOnly, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd)) // nobody executes what is open for writing
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { readOnly.Close() })
	return readOnly
}

// tryFiles says, a line each, what of the host can be reached by a path or a port.
func tryFiles() string {
	var b strings.Builder
	dir := os.Getenv("DIR")
	try := func(name string, err error) { fmt.Fprintf(&b, "%s: %v\n", name, err == nil) }
	_, err := os.ReadFile(filepath.Join(dir, "file"))
	try("read", err)
	try("write", os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	try("create", os.WriteFile(filepath.Join(dir, "new"), nil, 0o600))
	try("mkdir", os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	try("remove", os.Remove(filepath.Join(dir, "victim")))
	_, err = os.ReadDir(dir)
	try("list", err)
	var plain net.ListenConfig
	plain.SetMultipathTCP(false) // Landlock knows TCP alone
	l, err := plain.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err == nil {
		l.Close()
	}
	try("listen", err)
	conn, err := net.Dial("tcp", os.Getenv("ADDR"))
	if err == nil {
		conn.Close()
	}
	try("connect", err)
	return b.String()
}

// Landlock takes every file and port, and the same probe outside shows that it would
// have reached them.
func TestLandlock(t *testing.T) {
	hosttest.Need(t, NeedLandlock(1))
	version := LandlockVersion()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for restricted, want := range map[bool]string{false: "true", true: "false"} {
		dir, err := filepath.EvalSymlinks(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"file", "victim"} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		out := confined(t, "landlock", restricted, "DIR="+dir, "ADDR="+l.Addr().String())
		if strings.Count(out, "\n") != 8 {
			t.Fatalf("probe: %s", out)
		}
		for line := range strings.Lines(out) {
			name, got, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if version < 4 && (name == "listen" || name == "connect") {
				continue // ports came with version 4
			}
			if got != want {
				t.Errorf("restricted %v: %s is %s, want %s", restricted, name, got, want)
			}
		}
	}
}

// A kernel whose Landlock is too old is a host that cannot, in an error that says what to do.
func TestNeedLandlock(t *testing.T) {
	err := NeedLandlock(1 << 20)
	if !host.Lacks(err, host.Landlock) || !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "lsm=") {
		t.Errorf("%v, want that the host lacks Landlock", err)
	}
	if err := NeedLandlock(LandlockVersion()); (err == nil) != (LandlockVersion() > 0) {
		t.Errorf("of the version that there is: %v", err)
	}
}

// serveConfined does what a server does, with many threads and collections of garbage.
func serveConfined(l net.Listener) error {
	// The other end of the connections was made before; a confined process makes none.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	const threads = 64
	var wg, there sync.WaitGroup
	there.Add(threads)
	for range threads {
		wg.Go(func() {
			runtime.LockOSThread()
			there.Done()
			there.Wait() // all at once
			_ = make([]byte, 1<<20)
		})
	}
	wg.Wait()
	runtime.GC()
	if _, err := w.WriteString("through"); err != nil {
		return err
	}
	if n, err := unix.IoctlGetInt(int(r.Fd()), unix.TIOCINQ); err != nil || n != len("through") {
		return fmt.Errorf("%d bytes are in the pipe, %w", n, err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Sendto(pair[0], []byte("x"), 0, nil), unix.Close(pair[0]), unix.Close(pair[1])); err != nil {
		return err
	}
	w.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "through" {
		return fmt.Errorf("pipe: %q, %w", b, err)
	}
	if err := l.(*net.TCPListener).SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
		return err
	}
	if _, err := l.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("accept: %w", err)
	}
	return nil
}

// forbidden are calls that must fail, one for each thing that a worker taken over would
// like to have.
var forbidden = map[string]uintptr{
	"openat2": unix.SYS_OPENAT2, "socket": unix.SYS_SOCKET, "socketpair": unix.SYS_SOCKETPAIR,
	"bind": unix.SYS_BIND, "execve": unix.SYS_EXECVE, "execveat": unix.SYS_EXECVEAT, "ptrace": unix.SYS_PTRACE, "process_vm_readv": unix.SYS_PROCESS_VM_READV,
	"mount": unix.SYS_MOUNT, "move_mount": unix.SYS_MOVE_MOUNT, "unshare": unix.SYS_UNSHARE, "setns": unix.SYS_SETNS, "kill": unix.SYS_KILL,
	"pidfd_open": unix.SYS_PIDFD_OPEN, "bpf": unix.SYS_BPF, "io_uring_setup": unix.SYS_IO_URING_SETUP, "userfaultfd": unix.SYS_USERFAULTFD,
	"keyctl": unix.SYS_KEYCTL, "prctl": unix.SYS_PRCTL, "setuid": unix.SYS_SETUID, "memfd_create": unix.SYS_MEMFD_CREATE, "clone": unix.SYS_CLONE,
}

// forbiddenServer are those of a server besides.
var forbiddenServer = map[string]uintptr{"openat": unix.SYS_OPENAT, "connect": unix.SYS_CONNECT}

// forbiddenFiles are those of an extractor besides.
var forbiddenFiles = map[string]uintptr{
	"fallocate": unix.SYS_FALLOCATE, "setxattr": unix.SYS_SETXATTR, "fsetxattr": unix.SYS_FSETXATTR, "lsetxattr": unix.SYS_LSETXATTR, "mknodat": unix.SYS_MKNODAT,
	"shmget": unix.SYS_SHMGET, "listen": unix.SYS_LISTEN, "setsid": unix.SYS_SETSID, "ioctl": unix.SYS_IOCTL, "chroot": unix.SYS_CHROOT,
}

// useFiles does what an extractor does with files.
func useFiles(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	err = errors.Join(root.MkdirAll("a/b", 0o755), root.WriteFile("a/b/f", []byte("x"), 0o600), root.Symlink("b/f", "a/l"), root.Link("a/b/f", "a/h"),
		root.Rename("a/h", "g"), root.Chmod("g", 0o755), root.Chtimes("g", time.Unix(1, 0), time.Unix(1, 0)))
	if b, rerr := root.ReadFile("a/l"); rerr != nil || string(b) != "x" {
		err = errors.Join(err, fmt.Errorf("%q, %w", b, rerr))
	}
	if list, rerr := os.ReadDir(filepath.Join(dir, "a")); rerr != nil || len(list) != 2 {
		err = errors.Join(err, fmt.Errorf("%v, %w", list, rerr))
	}
	return errors.Join(err, root.RemoveAll("a"), root.Remove("g"))
}

// keepFiles does what a database does with files, beside useFiles.
func keepFiles(dir string) error {
	f, err := os.Create(filepath.Join(dir, "store"))
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	var st unix.Statfs_t
	n, err := unix.Pwritev(fd, [][]byte{[]byte("one"), []byte("two")}, 0)
	if err == nil && n != 6 {
		err = fmt.Errorf("%d bytes are written", n)
	}
	root, openErr := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if openErr == nil {
		var below int
		if below, openErr = unix.Openat2(root, "store", &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH}); openErr == nil {
			unix.Close(below)
		}
		unix.Close(root)
	}
	return errors.Join(err, openErr, unix.Fdatasync(fd), unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB), unix.Fstatfs(fd, &st), unix.Statfs(dir, &st),
		unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}))
}

// useNetwork does what who asks a registry does: it looks up a name, in vain, and connects.
func useNetwork(addr string) error {
	resolver := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "udp", addr)
		if err == nil {
			_, err = conn.Write([]byte("question"))
			conn.Close()
		}
		return nil, errors.Join(errAsked, err)
	}}
	if _, err := resolver.LookupHost(context.Background(), "host.invalid."); err == nil || !strings.HasSuffix(err.Error(), errAsked.Error()) {
		return fmt.Errorf("name: %w", err)
	}
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	if _, err := net.Dial("unix", "/run/no-such-socket"); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("a socket with a path: %w", err)
	}
	return conn.Close()
}

var errAsked = errors.New("asked")

// tryCalls makes each forbidden call on every thread's behalf, and says what failed
// otherwise than it should.
func tryCalls(more map[string]uintptr) string {
	var b strings.Builder
	maps.Copy(more, forbidden)
	for name, number := range more {
		_, _, errno := unix.RawSyscall6(number, 0, 0, 0, 0, 0, 0)
		if errno != unix.EPERM {
			fmt.Fprintf(&b, "%s: %v\n", name, errno)
		}
	}
	for name, errno := range map[string]error{
		"sendto":  unix.Sendto(-1, nil, unix.MSG_FASTOPEN, &unix.SockaddrInet4{}),
		"sendmsg": unix.Sendmsg(-1, nil, nil, &unix.SockaddrInet4{}, unix.MSG_FASTOPEN),
	} {
		if errno != unix.EPERM {
			fmt.Fprintf(&b, "%s that connects: %v\n", name, errno)
		}
	}
	if _, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0); err != unix.EPERM {
		fmt.Fprintf(&b, "socketpair for datagrams: %v\n", err)
	}
	if err := unix.SetsockoptString(-1, unix.IPPROTO_TCP, unix.TCP_ULP, "tls"); err != unix.EPERM {
		fmt.Fprintf(&b, "another protocol on top of TCP: %v\n", err)
	}
	if err := unix.SetsockoptInt(-1, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != unix.EBADF {
		fmt.Fprintf(&b, "setsockopt: %v\n", err)
	}
	if err := unix.Sendto(-1, nil, 0, &unix.SockaddrInet4{}); err != unix.EBADF {
		fmt.Fprintf(&b, "sendto: %v\n", err)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_CLONE3, 0, 0, 0); errno != unix.ENOSYS {
		fmt.Fprintf(&b, "clone3: %v\n", errno)
	}
	return b.String()
}

func TestProcess(t *testing.T) {
	if out := confined(t, "seccomp", false); out != "<nil>\n" {
		t.Errorf("confined: %s", out)
	}
}

// confineSplit calls confine while another thread has a filter of its own.
func confineSplit(confine func() error) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	ready, done := make(chan error), make(chan struct{})
	defer close(done)
	go func() {
		runtime.LockOSThread() // never unlocked
		ready <- ownFilter()
		<-done
	}()
	if err := <-ready; err != nil {
		return err
	}
	return confine()
}

// ownFilter gives the calling thread, and no other, a filter that allows everything.
func ownFilter() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	all := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	prog := unix.SockFprog{Len: 1, Filter: &all}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0)
}

// A thread that cannot have the filter is an error: the kernel reports it without an
// errno, and no thread has the filter then.
func TestThreadWithAnotherFilter(t *testing.T) {
	out := confined(t, "split", false)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 4 {
		t.Fatalf("probe: %s", out)
	}
	for _, line := range lines {
		if !strings.Contains(line, "has a filter of its own") {
			t.Errorf("with a thread that has another filter: %s, want an error that names the thread", line)
		}
	}
}

// inForce finds no filter where there is none, and where another one is in force.
func TestInForce(t *testing.T) {
	for name, prepare := range map[string]func() error{"no filter": func() error { return nil }, "another filter": ownFilter} {
		got := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked
			got <- errors.Join(prepare(), inForce())
		}()
		if err := <-got; err == nil || !strings.Contains(err.Error(), "not in force") {
			t.Errorf("%s: %v, want an error", name, err)
		}
	}
}

// Check looks at every thread of another process.
func TestCheck(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = []string{helper + "=waits"}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer in.Close()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "<nil>\n" {
		t.Fatalf("%s, %v", line, err)
	}
	if err := Check(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	if err := Check(os.Getpid()); err == nil {
		t.Error("this process passes, and is not confined")
	}
	// One thread is enough.
	status := "NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n"
	if err := checkStatus(status); err != nil {
		t.Error(err)
	}
	for _, less := range []string{strings.Replace(status, "2", "0", 1), strings.Replace(status, "1", "0", 1), ""} {
		if checkStatus(less) == nil {
			t.Errorf("%q passes", less)
		}
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := Check(cmd.Process.Pid); err != nil {
		t.Errorf("of a process that is gone: %v", err)
	}
}

func TestFiles(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, what := range []string{"files", "connected", "store"} {
		if out := confined(t, what, false, "DIR="+t.TempDir(), "ADDR="+l.Addr().String()); out != "<nil>\n" {
			t.Errorf("%s: %s", what, out)
		}
	}
}

// What is needed is left, and nothing else: files to be read, and connections out.
func TestLandlockNeeds(t *testing.T) {
	hosttest.Need(t, NeedLandlock(4))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"file", "victim"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(filepath.Join(dir, "file"), link); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		needs Needs
		want  string // what works
	}{
		{Needs{Files: []string{dir, "/no/such/file", "/dev/null/x"}}, "read list "},
		{Needs{Files: []string{link}}, "read "}, // what it leads to
		{Needs{Connect: true}, "connect "},
	} {
		out := confinedBut(t, test.needs, "landlock", true, "DIR="+dir, "ADDR="+l.Addr().String())
		var got string
		for line := range strings.Lines(out) {
			if name, ok := strings.CutSuffix(strings.TrimSpace(line), ": true"); ok {
				got += name + " "
			}
		}
		if got != test.want {
			t.Errorf("%+v leaves %q, want %q", test.needs, got, test.want)
		}
	}
}
