//go:build integration

package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// The test binary plays other parts when its first argument names one.
const (
	partEnter  = "part:enter"  // becomes sandbox-init in its new namespaces
	partParent = "part:parent" // starts such a process and waits to be killed
	partReport = "part:report" // prints what it sees of itself as a report
	partDaemon = "part:daemon" // leaves a process behind in a session of its own
	partAsk    = "part:ask"    // prints what sysinfo(2) answers, and to whom it does not
	partFlood  = "part:flood"  // calls sysinfo(2) on many threads for ever
	partCanary = "part:canary" // calls sysinfo(2) on many threads and executes itself meanwhile
	partGrip   = "part:grip"   // tries to get hold of each thread of PID 1, and prints what it reached
)

// files holds the program under test and a copy of this one, readable for all ids.
var files string

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && strings.HasPrefix(os.Args[1], "part:") {
		if err := play(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1], err)
			os.Exit(99)
		}
		os.Exit(0)
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("the integration tests of sandbox-init make namespaces: run them as root")
	}
	// Domains whose maker has died come to this process to be reaped.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 0, err
	}
	files, err = os.MkdirTemp("", "sandbox-init-test-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(files)
	if err := os.Chmod(files, 0o755); err != nil {
		return 0, err
	}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", initPath(), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build: %w: %s", err, out)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return 0, err
	}
	if err := os.WriteFile(helperPath(), self, 0o755); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

func initPath() string   { return filepath.Join(files, "sandbox-init") }
func helperPath() string { return filepath.Join(files, "helper") }

func play(part string, args []string) error {
	switch part {
	case partEnter:
		return enter(args[0])
	case partParent:
		return parent(args[0], args[1])
	case partReport:
		return printReport()
	case partDaemon:
		cmd := exec.Command("/bin/sleep", "1000")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		return cmd.Start()
	}
	return playSysinfo(part, args)
}

// enter does what libcontainer does before PID 1: a procfs, limits, no_new_privs.
func enter(program string) error {
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for resource, limit := range map[int]unix.Rlimit{
		unix.RLIMIT_NOFILE: {Cur: 1000, Max: 1024},
		unix.RLIMIT_CORE:   {},
		unix.RLIMIT_NPROC:  {Cur: nproc, Max: nproc},
	} {
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("setrlimit %d: %w", resource, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return syscall.Exec(program, []string{program}, []string{"GOMAXPROCS=1"})
}

// nproc bounds the processes of each id in a test domain.
const nproc = 24

// command makes PID 1 of a new domain, with control as its descriptor 3 and filter as 4.
func command(program string, base int, control, filter *os.File) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", partEnter, program)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{control, filter}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base, Size: isolation.IDCount}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings:                ids,
		GidMappings:                ids,
		GidMappingsEnableSetgroups: true,
		Credential:                 &syscall.Credential{Uid: 0, Gid: 0},
	}
	return cmd
}

// allowAll is a seccomp filter of one instruction, which lets every call pass.
var allowAll = []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}}

// filterFile makes a file of a seccomp filter, as the engine does.
func filterFile(t testing.TB, filter any) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("filter", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "filter")
	t.Cleanup(func() { f.Close() })
	if err := binary.Write(f, binary.NativeEndian, filter); err != nil {
		t.Fatal(err)
	}
	return f
}

// parent runs a domain as a child of this process, whose control socket somebody
// else holds.
func parent(program, base string) error {
	var id int
	if _, err := fmt.Sscan(base, &id); err != nil {
		return err
	}
	cmd := command(program, id, os.NewFile(3, "control"), os.NewFile(4, "filter"))
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println(cmd.Process.Pid)
	select {}
}

type domain struct {
	t    testing.TB
	base int
	pid  int // on the host
	cmd  *exec.Cmd
	conn *wire.Conn
	next uint32
}

var ranges atomic.Int32

func newBase() int { return 1879048192 + int(ranges.Add(1))*isolation.IDCount }

func newDomain(t testing.TB) *domain {
	t.Helper()
	return newDomainWith(t, allowAll)
}

// newDomainWith makes a domain with another filter.
func newDomainWith(t testing.TB, filter []unix.SockFilter) *domain {
	t.Helper()
	local, remote, err := wire.Pair()
	if err != nil {
		t.Fatal(err)
	}
	d := &domain{t: t, base: newBase(), conn: local}
	d.cmd = command(initPath(), d.base, remote, filterFile(t, filter))
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	remote.Close()
	d.pid = d.cmd.Process.Pid
	t.Cleanup(func() {
		local.Close()
		if err := d.cmd.Wait(); err != nil {
			t.Errorf("sandbox-init ended with %v, want success after the end of its socket", err)
		}
	})
	if m := d.recv(); m != (wire.Handshake{Version: wire.Version}) {
		t.Fatalf("first message %#v, want a handshake", m)
	}
	return d
}

// recv fails the test when no message comes within ten seconds.
func (d *domain) recv() wire.Message {
	d.t.Helper()
	m, err := recvWithin(d.conn)
	if err != nil {
		d.t.Fatalf("receive: %v", err)
	}
	return m
}

func recvWithin(c *wire.Conn) (wire.Message, error) {
	late := time.AfterFunc(10*time.Second, func() { c.Close() })
	defer late.Stop()
	m, _, err := c.Recv()
	return m, err
}

func (d *domain) send(m wire.Message, files ...*os.File) {
	d.t.Helper()
	if err := d.conn.Send(m, files...); err != nil {
		d.t.Fatal(err)
	}
}

// exec sends a request for argv as the sandbox user, changed by change, and returns
// the answer and the reading end of its stdout and stderr.
func (d *domain) exec(argv []string, change func(*wire.Exec), extra ...*os.File) (wire.Started, *os.File) {
	d.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { r.Close() })
	defer w.Close()
	d.next++
	m := wire.Exec{ID: d.next, Path: argv[0], Argv: argv, Dir: "/", UID: isolation.UserID, GID: isolation.GroupID}
	if change != nil {
		change(&m)
	}
	d.send(m, append([]*os.File{w, w}, extra...)...)
	started, ok := d.recv().(wire.Started)
	if !ok || started.ID != m.ID {
		d.t.Fatalf("answer %#v, want Started of %d", started, m.ID)
	}
	return started, r
}

// start is exec of something that must start.
func (d *domain) start(argv ...string) (wire.Started, *os.File) {
	d.t.Helper()
	started, r := d.exec(argv, nil)
	if started.Errno != 0 {
		d.t.Fatalf("%v: %v", argv, syscall.Errno(started.Errno))
	}
	return started, r
}

func (d *domain) wantExit(id uint32, want func(syscall.WaitStatus) bool) {
	d.t.Helper()
	m, ok := d.recv().(wire.Exited)
	if !ok || m.ID != id || !want(syscall.WaitStatus(m.Status)) {
		d.t.Fatalf("got %#v for process %d", m, id)
	}
}

func exitedWith(code int) func(syscall.WaitStatus) bool {
	return func(s syscall.WaitStatus) bool { return s.Exited() && s.ExitStatus() == code }
}

func killedBy(sig syscall.Signal) func(syscall.WaitStatus) bool {
	return func(s syscall.WaitStatus) bool { return s.Signaled() && s.Signal() == sig }
}

// processes lists the domain's pids, as the procfs of the domain shows them.
func (d *domain) processes() []string {
	d.t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root/proc", d.pid))
	if err != nil {
		d.t.Fatal(err)
	}
	var pids []string
	for _, e := range entries {
		if strings.Trim(e.Name(), "0123456789") == "" {
			pids = append(pids, e.Name())
		}
	}
	return pids
}

// status returns fields of a /proc/PID/status text.
func status(text string) map[string]string {
	fields := make(map[string]string)
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.Join(strings.Fields(value), " ")
	}
	return fields
}

type report struct {
	Args, Env    []string
	Dir          string
	Files        map[string]string // descriptor to target
	NonBlocking  bool              // one of them
	Status       map[string]string
	PID, Session int
}

func printReport() error {
	r := report{Args: os.Args, Env: os.Environ(), Files: map[string]string{}, PID: os.Getpid()}
	fd, err := unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "fds")
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		target, err := os.Readlink("/proc/self/fd/" + name)
		if err != nil {
			return err
		}
		info, err := os.ReadFile("/proc/self/fdinfo/" + name)
		if err != nil {
			return err
		}
		flags, err := strconv.ParseInt(status(string(info))["flags"], 8, 64)
		if err != nil {
			return err
		}
		if flags&unix.O_CLOEXEC != 0 {
			continue // not inherited: opened here, by this function or the Go runtime
		}
		r.Files[name] = target
		r.NonBlocking = r.NonBlocking || flags&unix.O_NONBLOCK != 0
	}
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	r.Status = status(string(text))
	if r.Dir, err = os.Getwd(); err != nil {
		return err
	}
	if r.Session, err = unix.Getsid(0); err != nil {
		return err
	}
	sort.Strings(r.Env)
	return json.NewEncoder(os.Stdout).Encode(r)
}

func readReport(t *testing.T, from io.Reader) report {
	t.Helper()
	text, err := io.ReadAll(bufio.NewReader(from))
	if err != nil {
		t.Fatal(err)
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
	return r
}
