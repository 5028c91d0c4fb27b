//go:build integration

package runc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/testtime"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// hostSpec is a sandbox that shows the host's programs.
func hostSpec(t testing.TB, domains ...string) isolation.Spec {
	t.Helper()
	code := t.TempDir()
	if err := os.WriteFile(filepath.Join(code, "hello"), []byte("hello from the code"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := isolation.Spec{
		ID: "t-" + strconv.FormatInt(time.Now().UnixNano(), 36), IDBase: 0x70000000 + 65536*uint32(os.Getpid()%4000),
		Limits:  isolation.Limits{MemoryBytes: 128 << 20, CPU: 0.5, PIDs: 64},
		Domains: domains,
		Root:    isolation.Root{Dirs: []string{"/usr", "/etc", "/var", "/var/task", "/opt"}},
		Mounts:  []isolation.Mount{{Target: "/usr", Sources: []string{"/usr"}}, {Target: "/var/task", Sources: []string{code}}},
		Tmp:     isolation.Tmp{Template: tmpTemplate(t)},
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64", "lib32"} {
		if target, err := os.Readlink("/" + name); err == nil {
			s.Root.Links = append(s.Root.Links, isolation.Link{Path: "/" + name, Target: target})
		}
	}
	return s
}

func tmpTemplate(t testing.TB) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "tmp.ext4")
	if out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", image, "16m").CombinedOutput(); err != nil {
		t.Fatalf("mke2fs: %v\n%s", err, out)
	}
	if out, err := exec.Command("debugfs", "-w", "-R", "set_inode_field / mode 041777", image).CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	return image
}

func create(t *testing.T, spec isolation.Spec) *Sandbox {
	t.Helper()
	s, err := engine.Create(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeSandbox(t, s) })
	return s
}

func closeSandbox(t *testing.T, s *Sandbox) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testtime.Limit(10*time.Second))
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Error(err)
	}
}

func start(t *testing.T, s *Sandbox, domain string) *wire.Conn {
	t.Helper()
	conn, err := s.Start(t.Context(), domain)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// begin starts a shell script as the sandbox user and returns its output's end.
func begin(t *testing.T, s *Sandbox, conn *wire.Conn, id uint32, script string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	t.Cleanup(func() { r.Close() })
	uid, gid := s.ids()
	if err := w.Chown(int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	e := wire.Exec{
		ID: id, Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/",
		UID: isolation.UserID, GID: isolation.GroupID,
	}
	if err := conn.Send(e, w, w); err != nil {
		t.Fatal(err)
	}
	if m, _, err := conn.Recv(); err != nil {
		t.Fatal(err)
	} else if st, ok := m.(wire.Started); !ok || st.Errno != 0 {
		t.Fatalf("exec of %q: %#v", script, m)
	}
	return r
}

// shell runs a script to its end and returns its output and status.
func shell(t *testing.T, s *Sandbox, conn *wire.Conn, script string) (string, syscall.WaitStatus) {
	t.Helper()
	r := begin(t, s, conn, 1, script)
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := conn.Recv()
	ex, ok := m.(wire.Exited)
	if err != nil || !ok {
		t.Fatalf("after %q: %#v, %v", script, m, err)
	}
	return string(out), syscall.WaitStatus(ex.Status)
}

// ulp sets options of a TCP socket: TCP_ULP by its number and with bits that the kernel
// ignores in the level and in the option; then TCP_NODELAY.
const ulp = `perl -e 'socket($s, 2, 1, 0) or die; $f = fileno($s); $one = pack("i", 1);
for ([6, 31, "tls\0"], [0x100000006, 31, "tls\0"], [6, 0x10000001f, "tls\0"], [6, 1, $one]) {
	push @out, (syscall(54, $f, $_->[0], $_->[1], $_->[2], 4) == 0 ? 0 : $!+0) } print "@out"'`

func TestPosture(t *testing.T) {
	tree := "tmpfs\n" // what JVMs take for no cgroup, or for one of v1
	if engine.place.host.Mode == ModeUnified {
		tree = "cgroup2fs\n"
	}
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	for _, tt := range []struct{ name, script, want string }{
		{"ids", "id -u; id -g; id -G", "993\n990\n990\n"},
		{"capabilities", "grep -E '^Cap' /proc/self/status | tr -d '0\\t\\n'", "CapInh:CapPrm:CapEff:CapBnd:CapAmb:"},
		{"no_new_privs and seccomp", "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'", "NoNewPrivs:1\nSeccomp:2\n"},
		{"code", "cat /var/task/hello; stat -c ' %u:%g' /var/task/hello", "hello from the code 0:0\n"},
		{"code is read-only", "touch /var/task/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"root belongs to root and is read-only", "stat -c %u:%g / /usr; touch /x 2>&1 | grep -o 'Read-only file system'", "0:0\n0:0\nRead-only file system\n"},
		{"devices are read-only", "touch /dev/x 2>&1 | grep -o 'Read-only file system'", "Read-only file system\n"},
		{"devices", "ls -1 /dev; head -c 2 /dev/zero | wc -c; echo lost >/dev/null && echo written",
			"fd\nfull\nnull\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n2\nwritten\n"},
		{"files and folders of /proc are hidden", "cat /proc/interrupts /proc/keys /proc/cmdline | wc -c; ls /proc/irq /proc/fs /proc/bus | grep -vc -e : -e '^$'", "0\n0\n"},
		{"tmp is writable", "echo a >/tmp/a && cat /tmp/a; stat -c '%u:%g' /tmp /tmp/a", "a\n0:0\n993:990\n"},
		{"tmp is bounded", "head -c 32000000 /dev/zero 2>&1 >/tmp/big | grep -o 'No space left'; rm /tmp/big", "No space left\n"},
		{"cgroup", "cut -d: -f3 /proc/self/cgroup | sort -u", "/\n"},
		{"sysctls are read-only", "sh -c 'echo 1 >/proc/sys/user/max_user_namespaces' 2>&1 | grep -o 'Read-only file system'; cat /proc/sys/user/max_user_namespaces", "Read-only file system\n0\n"},
		{"no user namespace", "unshare -U true 2>&1 | grep -c 'Operation not permitted'", "1\n"},
		{"no sysfs, no cgroup that can be read", "for f in $(find /sys -type f -readable); do stat -f -c %T $f; done | sort -u; ls /sys; find /sys -readable -name cgroup.procs", "tmpfs\ndevices\nfs\n"},
		{"limits are read-only, and nobody's inside", "sh -c 'echo 1 >/sys/fs/cgroup/memory.max' 2>&1 | grep -o -E 'Read-only file system'; sh -c 'echo 1 >/proc/meminfo' 2>&1 | grep -o -E 'Read-only file system'; stat -c %u:%a /proc/meminfo", "Read-only file system\nRead-only file system\n65534:644\n"},
		{"file system of the cgroup", "stat -f -c %T /sys/fs/cgroup; grep -c ' /sys/fs/cgroup .*cgroup2' /proc/self/mountinfo", tree + "1\n"},
		{"memory of the sandbox", "grep MemTotal: /proc/meminfo; cat /sys/fs/cgroup/memory.max", "MemTotal:         131072 kB\n134217728\n"},
		{"no host path of code in sight", "ls /work /home /root 2>/dev/null | wc -l", "0\n"},
		{"processes of the host are out of sight", "[ $(ls -d /proc/[0-9]* | wc -l) -le 5 ] && echo few", "few\n"},
		{"init handler is out of reach", "kill -9 1 2>&1 | grep -o 'not permitted'; cat /proc/1/environ 2>&1 | grep -o 'Permission denied'", "not permitted\nPermission denied\n"},
		{"init handler cannot be replaced", "sh -c 'echo >>/.sandbox-init' 2>&1 | grep -o 'Permission denied'", "Permission denied\n"},
		{"first to go when the host is short of memory", "cat /proc/self/oom_score_adj", "500\n"},
		{"wakes up without interrupting, unless it wants to", "cut -d' ' -f41 /proc/self/stat; chrt -o 0 cut -d' ' -f41 /proc/self/stat", "3\n0\n"}, // docs/decisions/0024; policy in proc(5), sched(7)
		{"upper layer protocols of TCP are refused, whatever the high bits", ulp, "38 38 38 0"},
		{"odd protocols are refused", "perl -e 'for (132, 262, 136) { socket($s, 2, $_ == 136 ? 2 : 1, $_); printf \"%d \", $! }'", "38 38 38 "},
		{"nofile", "ulimit -n; ulimit -Hn; ulimit -c", "1024\n1024\n0\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := shell(t, s, conn, tt.script)
			if got != tt.want {
				t.Errorf("%s\n got %q\nwant %q", tt.script, got, tt.want)
			}
		})
	}
}

func TestDomainsShareNetworkAndTmp(t *testing.T) {
	s := create(t, hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain))
	a, b := start(t, s, isolation.RuntimeDomain), start(t, s, isolation.ExtensionDomain)

	script := "echo from runtime >/tmp/x; readlink /proc/self/ns/net"
	netA, _ := shell(t, s, a, script)
	got, _ := shell(t, s, b, "cat /tmp/x; readlink /proc/self/ns/net")
	if want := "from runtime\n" + netA; got != want {
		t.Errorf("extension domain sees %q, want %q", got, want)
	}
	for _, ns := range []string{"user", "pid", "mnt", "ipc", "uts", "cgroup"} {
		one, _ := shell(t, s, a, "readlink /proc/self/ns/"+ns)
		two, _ := shell(t, s, b, "readlink /proc/self/ns/"+ns)
		host, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil || one == two || strings.TrimSpace(one) == host || strings.TrimSpace(two) == host || one == "" {
			t.Errorf("%s namespace: runtime %q, extension %q, host %q (%v): want three different ones", ns, one, two, host, err)
		}
	}
}

func TestListenerIsInside(t *testing.T) { // SUP-19
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	go func() {
		for {
			c, err := s.Listener().Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "reached")
			c.Close()
		}
	}()
	got, _ := shell(t, s, conn, "bash -c 'exec 3<>/dev/tcp/127.0.0.1/9001; cat <&3'")
	if got != "reached" {
		t.Errorf("from inside: %q", got)
	}
	if c, err := net.DialTimeout("tcp", isolation.APIAddr, time.Second); err == nil {
		c.Close()
		t.Errorf("the host reaches %s", isolation.APIAddr)
	}
	c, err := s.Dial(t.Context(), "tcp", isolation.APIAddr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if b, err := io.ReadAll(c); err != nil || string(b) != "reached" {
		t.Errorf("dialled from inside: %q, %v", b, err)
	}
}

func TestFreezeAndKill(t *testing.T) {
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	out := begin(t, s, conn, 1, "while echo x; do :; done")
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	pid := s.PIDs()[isolation.RuntimeDomain]
	for range 3 {
		if err := s.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Freeze(t.Context()); err != nil {
			t.Fatal("second freeze:", err)
		}
		before, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		drain(t, out)
		if b, err := s.Usage(); err != nil || b.CPU-before.CPU > time.Millisecond {
			t.Errorf("a frozen sandbox used %v of CPU (%v)", b.CPU-before.CPU, err)
		}
		if n, err := unix.IoctlGetInt(int(out.Fd()), unix.TIOCINQ); err != nil || n != 0 {
			t.Errorf("a frozen sandbox wrote %d bytes (%v)", n, err)
		}
		if err := s.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal("after thaw:", err)
		}
	}
	if err := s.Freeze(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	for { // the socket ends because PID 1 is dead, frozen or not
		if _, _, err := conn.Recv(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("init handler %d after close: %v", pid, err)
	}
}

// drain reads what is in a pipe whose writer is frozen.
func drain(t *testing.T, f *os.File) {
	t.Helper()
	n, err := unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(f, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
}

func TestOutOfMemoryEndsTheSandbox(t *testing.T) { // docs/decisions/0037
	s := create(t, hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain))
	a, b := start(t, s, isolation.RuntimeDomain), start(t, s, isolation.ExtensionDomain)
	if u, err := s.Usage(); err != nil || u.OOMKills != 0 {
		t.Fatalf("at first: %+v, %v", u, err)
	}
	begin(t, s, a, 1, "head -c 300m /dev/zero | tail -c 300m")
	for _, c := range []*wire.Conn{a, b} {
		for {
			if _, _, err := c.Recv(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	u, err := s.Usage()
	if err != nil || u.OOMKills == 0 {
		t.Errorf("afterwards: %+v, %v; want a kill counted", u, err)
	}
	if u.MemoryPeakBytes < 100<<20 || u.MemoryPeakBytes > 128<<20 {
		t.Errorf("peak %d, want near the limit of 128 MiB", u.MemoryPeakBytes)
	}
}

// The main thread cannot end, so no function that changes namespaces may run on it.
func TestMainThreadStaysOutside(t *testing.T) {
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	var wait sync.WaitGroup
	for range 64 {
		wait.Go(func() {
			err := onOwnThread(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("on the main thread")
				}
				return unix.Unshare(unix.CLONE_NEWNET)
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if now, err := os.Readlink("/proc/self/ns/net"); err != nil || now != own {
		t.Errorf("network namespace of the process: %s, was %s (%v)", now, own, err)
	}
}

// stopped is how often the kernel has stopped the sandbox at the end of its CPU quota.
func stopped(t *testing.T, s *Sandbox) int {
	t.Helper()
	dir := s.group.core
	if s.group.v2 == nil {
		dir = s.group.dirV1("cpu")
	}
	text, err := os.ReadFile(filepath.Join(dir, "cpu.stat"))
	if err != nil {
		t.Fatal(err)
	}
	_, after, found := strings.Cut(string(text), "nr_throttled ")
	line, _, _ := strings.Cut(after, "\n")
	n, err := strconv.Atoi(line)
	if !found || err != nil {
		t.Fatalf("cpu.stat has no nr_throttled: %q", text)
	}
	return n
}

// A sandbox that is not throttled is never stopped. One that is gets stopped when it has used its
// quota, with no less and no more than that. A busy machine only makes it use less, and wait
// longer for the end of its quota.
func TestThrottle(t *testing.T) { // docs/decisions/0036
	spec := hostSpec(t, isolation.RuntimeDomain)
	spec.Limits.CPU = 0.1
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	const period = cpuPeriod * time.Microsecond
	spin := func() (used, took time.Duration, stops int) {
		begin, already := time.Now(), stopped(t, s)
		before, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		if _, st := shell(t, s, conn, "timeout 1 sh -c 'while :; do :; done'"); st.ExitStatus() != 124 {
			t.Fatalf("spinner ended with %v", st)
		}
		after, err := s.Usage()
		if err != nil {
			t.Fatal(err)
		}
		return after.CPU - before.CPU, time.Since(begin), stopped(t, s) - already
	}
	free := func(when string) {
		if used, took, stops := spin(); stops > 0 || used == 0 {
			t.Errorf("%s: used %v in %v and was stopped %d times, want never", when, used, took, stops)
		}
	}
	free("before")
	if err := s.SetThrottled(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	var all int
	for late := time.Now().Add(testtime.Limit(30 * time.Second)); all < 5 && time.Now().Before(late); {
		used, took, stops := spin()
		all += stops
		// The kernel takes back in later periods what a process has used beyond the quota.
		least, most := float64(max(stops-1, 0))*0.75*spec.Limits.CPU*float64(period), 1.5*spec.Limits.CPU*float64(took+period)
		if got := float64(used); got < least || got > most {
			t.Fatalf("used %v in %v and was stopped %d times; want %v to %v", used, took, stops, time.Duration(least), time.Duration(most))
		}
	}
	if all < 5 {
		t.Errorf("stopped %d times, want at least 5", all)
	}
	if err := s.SetThrottled(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	free("after")
}

func TestPIDsAreBounded(t *testing.T) { // ENV-34
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	got, _ := shell(t, s, conn, "(i=0; while [ $i -lt 200 ]; do sleep 100 >/dev/null 2>&1 & i=$((i+1)); done) 2>&1 | grep -c -i fork")
	if n, err := strconv.Atoi(strings.TrimSpace(got)); err != nil || n == 0 {
		t.Errorf("200 processes under a limit of 64: %q", got)
	}
	if err := conn.Send(wire.KillAll{Seq: 1}); err != nil {
		t.Fatal(err)
	}
	if m, _, err := conn.Recv(); err != nil || m != (wire.Killed{Seq: 1}) {
		t.Errorf("kill all: %#v, %v", m, err)
	}
}

// SEC-37: a sandbox has an io weight where the kernel offers it, which is
// where the io controller is in the v2 tree.
func TestIOController(t *testing.T) {
	b, err := os.ReadFile("/proc/cgroups")
	if err != nil {
		t.Fatal(err)
	}
	offered := engine.place.host.Mode == ModeUnified && regexp.MustCompile(`(?m)^blkio\t0\t\d+\t1$`).Match(b)
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	_, err = os.Stat(filepath.Join(cgroupRoot, strings.TrimPrefix(s.CgroupPath(), engine.place.hosted), "io.stat"))
	t.Logf("offered: %t; %v", offered, err)
	if (err == nil) != offered {
		t.Errorf("the io controller is offered: %t, but of the sandbox: %v", offered, err)
	}
}

func TestOverlayLaterLayersWin(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	var layers []string
	for i := range 3 {
		dir := t.TempDir()
		for _, name := range []string{"all", fmt.Sprintf("only%d", i)} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(strconv.Itoa(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		layers = append(layers, dir)
	}
	spec.Mounts = append(spec.Mounts, isolation.Mount{Target: "/opt", Sources: layers})
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	got, _ := shell(t, s, conn, "cd /opt && ls && cat all && stat -c ' %u:%g' all; touch all 2>&1 | grep -o 'Read-only'")
	if want := "all\nonly0\nonly1\nonly2\n2 0:0\nRead-only\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCodeOfAnotherOwnerBelongsToRoot(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	code := t.TempDir()
	for name, uid := range map[string]int{"": 1234, "mine": 1234, "roots": 0, "user": isolation.UserID} {
		path := filepath.Join(code, name)
		if name != "" {
			if err := os.WriteFile(path, nil, 0o640); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(path, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	spec.Mounts[1].Sources = []string{code}
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	got, _ := shell(t, s, conn, "cd /var/task && stat -c '%n %u:%g' . mine roots user; cat user 2>&1 | grep -o denied")
	if want := ". 0:0\nmine 0:0\nroots 65534:65534\nuser 65534:65534\ndenied\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestPrewarmed(t *testing.T) { // docs/decisions/0008
	spec := hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain)
	b, err := engine.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	s, err := b.Assign(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("assigned in %v", time.Since(begin))
	t.Cleanup(func() { closeSandbox(t, s) })
	for _, domain := range spec.Domains {
		conn := start(t, s, domain)
		if got, _ := shell(t, s, conn, "cat /var/task/hello; touch /tmp/"+domain+" /x 2>&1 | grep -o 'Read-only'; ls /tmp | grep "+domain); got != "hello from the codeRead-only\n"+domain+"\n" {
			t.Errorf("%s: %q", domain, got)
		}
	}
	if _, err := s.Start(t.Context(), isolation.RuntimeDomain); err == nil {
		t.Error("a domain started twice")
	}
}

func TestPrewarmedIsNotAssigned(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	b, err := engine.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	pid := b.sandbox.PIDs()[isolation.RuntimeDomain]
	spec.Mounts = append(spec.Mounts, isolation.Mount{Target: "/opt", Sources: []string{"/nowhere"}})
	if _, err := b.Assign(t.Context(), spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("assign with a source that does not exist: %v", err)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("init handler %d of the prewarmed sandbox that failed: %v", pid, err)
	}
	if b, err = engine.Prepare(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Whenever a sandbox is killed while a domain starts, nothing of it stays: no zombie
// that nobody waits for, no thread that waits for a process that will not come.
func TestKillDuringStart(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	round := func(after time.Duration) {
		spec.ID = "k-" + strconv.FormatInt(time.Now().UnixNano(), 36)
		s, err := engine.Create(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(after, func() { _ = s.Kill(context.Background()) })
		defer timer.Stop()
		if conn, err := s.Start(t.Context(), isolation.RuntimeDomain); err == nil {
			conn.Close()
		}
		closeSandbox(t, s)
	}
	round(time.Hour)
	threads := count(t, "/proc/self/task/*")
	for i := range 40 {
		round(time.Duration(i) * time.Millisecond / 2)
	}
	if now := count(t, "/proc/self/task/*"); now > threads+3 {
		t.Errorf("%d threads, %d before", now, threads)
	}
	for _, task := range glob(t, "/proc/self/task/*/children") {
		pids, err := os.ReadFile(task)
		if err != nil {
			continue // the thread has ended
		}
		for pid := range strings.FieldsSeq(string(pids)) {
			stat, _ := os.ReadFile("/proc/" + pid + "/stat")
			if strings.Contains(string(stat), ") Z ") {
				t.Errorf("zombie: %s", stat)
			}
		}
	}
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	names, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func count(t *testing.T, pattern string) int { t.Helper(); return len(glob(t, pattern)) }

func TestIDInUse(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	if _, err := engine.Create(t.Context(), spec); !errors.Is(err, os.ErrExist) {
		t.Errorf("a second sandbox of the same id: %v", err)
	}
	if got, _ := shell(t, s, conn, "echo alive"); got != "alive\n" {
		t.Errorf("the first one says %q", got)
	}
}

func TestMountTargetsAreNotFollowed(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	spec.Root.Links = append(spec.Root.Links, isolation.Link{Path: "/srv", Target: "/etc"})
	spec.Mounts = append(spec.Mounts, isolation.Mount{Target: "/srv", Sources: []string{t.TempDir()}})
	s := create(t, spec)
	if _, err := s.Start(t.Context(), isolation.RuntimeDomain); !errors.Is(err, unix.ELOOP) {
		t.Errorf("mount over a symbolic link: %v, want ELOOP", err)
	}
}

// Whoever is in a domain's cgroups may use the domain's devices and no others, whatever
// its privileges are (SEC-34).
func TestDevicesByCgroup(t *testing.T) {
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	start(t, s, isolation.RuntimeDomain)
	const script = `for d; do if true 2>&- <"$d"; then echo "$d opens"; else echo "$d does not"; fi; done`
	cmd := exec.Command("/bin/sh", "-c", script, "sh", "/dev/zero", "/dev/loop-control")
	if out, err := exec.Command(cmd.Path, cmd.Args[1:]...).CombinedOutput(); err != nil || strings.Contains(string(out), "not") {
		t.Fatalf("root elsewhere: %v\n%s", err, out)
	}
	if root, ok := engine.place.host.Hierarchies["devices"]; ok {
		tasks := filepath.Join(s.group.domainDir(root, isolation.RuntimeDomain), "tasks")
		cmd.Args[2] = "echo 0 >" + tasks + "\n" + script
	} else {
		dir, err := os.Open(filepath.Join(s.group.core, isolation.RuntimeDomain))
		if err != nil {
			t.Fatal(err)
		}
		defer dir.Close()
		cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	}
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "/dev/zero opens\n/dev/loop-control does not\n" {
		t.Errorf("root in the domain's cgroups: %v\n%s", err, out)
	}
}

// The init handler is in the domain's cgroups, has kept nothing of the way there, and the
// daemon sees who is not (docs/decisions/0025).
func TestEntersCgroups(t *testing.T) {
	s := create(t, hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain))
	for _, name := range s.spec.Domains {
		start(t, s, name)
		pid := s.PIDs()[name]
		if err := s.group.checkMember(pid, name); err != nil {
			t.Error(err)
		}
		for _, fd := range glob(t, fmt.Sprintf("/proc/%d/fd/*", pid)) {
			var fs unix.Statfs_t
			if err := unix.Statfs(fd, &fs); err != nil {
				t.Error(err)
			} else if fs.Type == unix.CGROUP_SUPER_MAGIC || fs.Type == unix.CGROUP2_SUPER_MAGIC {
				t.Errorf("the init handler of the %s domain has %s of a cgroup", name, fd)
			}
		}
	}
	for _, outside := range []struct {
		pid    int
		domain string
	}{{os.Getpid(), isolation.RuntimeDomain}, {s.PIDs()[isolation.RuntimeDomain], isolation.ExtensionDomain}} {
		if err := s.group.checkMember(outside.pid, outside.domain); err == nil {
			t.Errorf("process %d is said to be in the %s domain", outside.pid, outside.domain)
		}
	}
}

// libcontainer can make no cgroup, and move nobody into one (docs/decisions/0025).
func TestCgroupsAreReadOnly(t *testing.T) {
	dir := cgroupRoot
	if engine.place.host.Mode != ModeUnified {
		dir = filepath.Join(cgroupRoot, "devices")
		if names := glob(t, cgroupRoot+"/*"); len(names) != 1 || names[0] != dir {
			t.Errorf("libcontainer sees %q, want %s alone", names, dir)
		}
	}
	for _, parent := range []string{cgroupRoot, dir} {
		if err := os.Mkdir(filepath.Join(parent, "of-libcontainer"), 0o755); !errors.Is(err, unix.EROFS) {
			t.Errorf("a cgroup in %s: %v, want EROFS", parent, err)
		}
	}
	if f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("cgroup.procs of %s: %v, want EROFS", dir, err)
		f.Close()
	}
}

// A sandbox can be made whatever the scheduler thinks of the daemon: its nice value and
// another class than the usual are inherited (docs/decisions/0024).
func TestSchedulingIsInherited(t *testing.T) {
	onCreators := func(f func() error) {
		t.Helper()
		var all, met sync.WaitGroup
		met.Add(runtime.NumCPU()) // so that each thread takes one
		for range runtime.NumCPU() {
			all.Go(func() {
				err := engine.creator.do(t.Context(), func(*thread) error {
					met.Done()
					met.Wait()
					return f()
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	policy := func(p uint32) error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: p}, 0)
	}
	for _, c := range []struct {
		name string
		set  func() error
		want string // nice and policy, fields 19 and 41 of proc_pid_stat(5)
	}{
		{"nice", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, 5) }, "5 3\n"},
		{"idle", func() error { return policy(unix.SCHED_IDLE) }, "0 5\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			onCreators(c.set)
			defer onCreators(func() error { return errors.Join(policy(unix.SCHED_NORMAL), unix.Setpriority(unix.PRIO_PROCESS, 0, 0)) })
			s := create(t, hostSpec(t, isolation.RuntimeDomain))
			conn := start(t, s, isolation.RuntimeDomain)
			if got, _ := shell(t, s, conn, "cut -d' ' -f19,41 /proc/self/stat"); got != c.want {
				t.Errorf("nice value and policy are %q, want %q", got, c.want)
			}
		})
	}
}
