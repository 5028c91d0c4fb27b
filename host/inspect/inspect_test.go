package inspect

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestSelf(t *testing.T) {
	p, err := Reader{}.Process(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if p.PID != os.Getpid() || p.UID.Host != uint32(os.Geteuid()) || p.GID.Host != uint32(os.Getegid()) {
		t.Errorf("pid %d uid %+v gid %+v", p.PID, p.UID, p.GID)
	}
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(p.Namespaces, func(n Namespace) bool { return n.Kind == "net" })
	if want := fmt.Sprintf("net:[%d]", p.Namespaces[i].Inode); want != link {
		t.Errorf("net namespace %s, want %s", want, link)
	}
	if len(p.Namespaces) != 7 || p.Cgroup.Path == "" {
		t.Errorf("namespaces %v, cgroup %q", p.Namespaces, p.Cgroup.Path)
	}
}

// waiting is a process that says when it is up, and then waits for its input to end.
func waiting() *exec.Cmd { return exec.Command("/bin/sh", "-c", "echo up; read x") }

// startWaiting starts one of waiting, which is up then, and ends it with the test.
func startWaiting(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
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
	t.Cleanup(func() {
		in.Close()
		_ = cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "up\n" {
		t.Fatalf("%q, %v", line, err)
	}
}

// A child in a new user namespace has other ids inside, and its namespaces differ.
func TestChildInNamespaces(t *testing.T) {
	cmd := waiting()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 993, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 990, HostID: os.Getegid(), Size: 1}},
	}
	startWaiting(t, cmd)

	p, err := Reader{}.Process(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if p.PIDInside != 1 || p.UID.Inside != 993 || p.GID.Inside != 990 {
		t.Errorf("inside: pid %d uid %d gid %d, want 1, 993, 990", p.PIDInside, p.UID.Inside, p.GID.Inside)
	}
	var own []string
	for _, n := range p.Namespaces {
		if n.Own {
			own = append(own, n.Kind)
		}
	}
	if want := []string{"user", "pid", "ipc", "uts"}; !slices.Equal(own, want) {
		t.Errorf("own namespaces %v, want %v", own, want)
	}
}

func TestGone(t *testing.T) {
	cmd := exec.Command("/bin/true")
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if _, err := (Reader{}).Process(cmd.Process.Pid); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a process that is gone: %v, want fs.ErrNotExist", err)
	}
}

// status is a status file of a thread in a sandbox, with what varies left open.
const status = `Name:	bootstrap
NSpid:	%d	7
Uid:	1879049185	1879049185	1879049185	1879049185
Gid:	1879049182	1879049182	1879049182	1879049182
Groups:	
CapInh:	0000000000000000
CapPrm:	%016x
CapEff:	%016x
CapBnd:	0000000000000000
CapAmb:	0000000000000000
NoNewPrivs:	%d
Seccomp:	%d
Seccomp_filters:	%d
`

// fake makes a proc file system with the reader and one process of two threads, whose
// second thread is less confined, and the cgroup files of two levels.
func fake(t *testing.T, cgroup, mountinfo string, files map[string]string) Reader {
	t.Helper()
	root := t.TempDir()
	write := func(path, text string) {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, kind := range namespaces {
		for pid, inode := range map[string]int{"self": 100 + i, "42": 200 + i} {
			link := filepath.Join(root, "proc", pid, "ns", kind)
			os.MkdirAll(filepath.Dir(link), 0o755)
			if err := os.Symlink(fmt.Sprintf("%s:[%d]", kind, inode), link); err != nil {
				t.Fatal(err)
			}
		}
	}
	write("proc/42/status", fmt.Sprintf(status, 42, 0, 0, 1, 2, 1))
	if err := os.Mkdir(filepath.Join(root, "proc/42/fd"), 0o755); err != nil {
		t.Fatal(err)
	}
	write("proc/42/task/42/status", fmt.Sprintf(status, 42, 0, 0, 1, 2, 1))
	write("proc/42/task/43/status", fmt.Sprintf(status, 43, 1<<7, 1<<7, 0, 0, 0))
	write("proc/42/uid_map", "0 1879048192 65536\n")
	write("proc/42/gid_map", "0 1879048192 65536\n")
	write("proc/42/mountinfo", "1 0 0:1 / / rw - tmpfs tmpfs rw\n2 1 0:2 / / ro,nosuid - tmpfs tmpfs rw\n")
	write("proc/42/cgroup", cgroup)
	write("proc/self/mountinfo", strings.ReplaceAll(mountinfo, "ROOT", root))
	for name, text := range files {
		write(name, text)
	}
	return Reader{Proc: filepath.Join(root, "proc")}
}

func TestCgroupV2(t *testing.T) {
	r := fake(t, "0::/sandboxd/fn-1/runtime\n",
		"30 1 0:3 / ROOT/cg rw - cgroup2 cgroup2 rw\n",
		map[string]string{
			"cg/sandboxd/fn-1/runtime/memory.max":      "max\n",
			"cg/sandboxd/fn-1/runtime/cgroup.procs":    "42\n",
			"cg/sandboxd/fn-1/runtime/cgroup.events":   "populated 1\nfrozen 1\n",
			"cg/sandboxd/fn-1/runtime/cpu.max":         "max 100000\n",
			"cg/sandboxd/fn-1/memory.max":              "134217728\n",
			"cg/sandboxd/fn-1/memory.swap.max":         "0\n",
			"cg/sandboxd/fn-1/cpu.max":                 "7235 100000\n",
			"cg/sandboxd/fn-1/pids.max":                "1026\n",
			"cg/sandboxd/memory.max":                   "1073741824\n",
			"cg/sandboxd/pids.max":                     "max\n",
			"cg/sandboxd/fn-1/runtime/memory.swap.max": "max\n",
		})
	procs, err := r.Read([]Domain{{"runtime", 42, "/sandboxd/fn-1"}, {"extension", 42, "/sandboxd/fn-2"}, {"extension", 41, "/sandboxd/fn-1"}})
	if err != nil || len(procs) != 1 {
		t.Fatalf("%+v, %v", procs, err)
	}
	p := procs[0]
	want := Cgroup{"/sandboxd/fn-1/runtime", 128 << 20, 128 << 20, 0.07235, 1026, true}
	if p.Cgroup != want {
		t.Errorf("cgroup %+v, want %+v", p.Cgroup, want)
	}
	if p.Role != RoleRuntime || p.PIDInside != 7 || p.UID.Inside != 993 || p.GID.Inside != 990 || !p.RootReadOnly {
		t.Errorf("%+v", p)
	}
	// The second thread is the weakest.
	if p.Capabilities.Union().String() != "SETUID" || p.NoNewPrivs || p.Seccomp != "off" || p.Filters != 0 {
		t.Errorf("capabilities %v, no_new_privs %v, seccomp %s %d", p.Capabilities, p.NoNewPrivs, p.Seccomp, p.Filters)
	}
}

func TestCgroupHybrid(t *testing.T) {
	r := fake(t, "5:memory:/s/fn\n4:cpu,cpuacct:/s/fn\n3:pids:/s/fn\n1:name=systemd:/\n0::/s/fn/runtime\n",
		"30 1 0:3 / ROOT/u rw - cgroup2 cgroup2 rw\n31 1 0:4 / ROOT/m rw - cgroup cgroup rw,memory\n"+
			"32 1 0:5 / ROOT/c rw - cgroup cgroup rw,cpu,cpuacct\n33 1 0:6 /s ROOT/p rw - cgroup cgroup rw,pids\n",
		map[string]string{
			"m/s/fn/memory.limit_in_bytes":         "134217728\n",
			"m/s/fn/memory.memsw.limit_in_bytes":   "268435456\n",
			"m/memory.limit_in_bytes":              "9223372036854771712\n",
			"c/s/fn/cpu.cfs_quota_us":              "50000\n",
			"c/s/fn/cpu.cfs_period_us":             "100000\n",
			"c/s/cpu.cfs_quota_us":                 "-1\n",
			"c/s/cpu.cfs_period_us":                "100000\n",
			"p/fn/pids.max":                        "1024\n",
			"u/s/fn/runtime/cgroup.events":         "populated 1\nfrozen 0\n",
			"u/s/fn/runtime/memory.max":            "1\n", // no controller there: must not be looked at
			"p/s/fn/pids.max":                      "1\n", // below another root: must not be looked at
			"m/s/fn/runtime/memory.limit_in_bytes": "1\n", // not this process's cgroup
		})
	p, err := r.Process(42)
	if err != nil {
		t.Fatal(err)
	}
	want := Cgroup{"/s/fn/runtime", 128 << 20, 256 << 20, 0.5, 1024, false}
	if p.Cgroup != want {
		t.Errorf("cgroup %+v, want %+v", p.Cgroup, want)
	}
}

func TestRoles(t *testing.T) {
	for _, tt := range []struct {
		domain string
		pid    int
		want   string
	}{{"runtime", 1, RoleInit}, {"runtime", 2, RoleRuntime}, {"extension", 1, RoleInit}, {"extension", 9, RoleExtension}} {
		if got := role(tt.domain, tt.pid); got != tt.want {
			t.Errorf("role(%s, %d) = %s, want %s", tt.domain, tt.pid, got, tt.want)
		}
	}
}

func TestCapabilitySet(t *testing.T) {
	for set, want := range map[CapabilitySet]string{
		0:                     "none",
		1<<5 | 1<<6 | 1<<7:    "KILL,SETGID,SETUID",
		1<<40 | 1<<41 | 1<<21: "SYS_ADMIN,CHECKPOINT_RESTORE,41",
	} {
		if got := set.String(); got != want {
			t.Errorf("%b: %s, want %s", uint64(set), got, want)
		}
	}
	if b, err := json.Marshal(Capabilities{}); err != nil || !strings.Contains(string(b), `"permitted":[]`) {
		t.Errorf("JSON of empty sets: %s, %v", b, err)
	}
}

// A filter has the name of the profile that it is, and of no other.
func TestProfileNames(t *testing.T) {
	p := Profiles{"default": []byte("12345678"), "debug": []byte("12345679")}
	for filter, want := range map[string]string{"12345678": "default", "12345679": "debug", "1234567": otherProfile, "": otherProfile} {
		if got := p.name([]byte(filter)); got != want {
			t.Errorf("%s is called %s, want %s", filter, got, want)
		}
	}
	for name, want := range map[string]string{"default": "one of sandboxd's", otherProfile: otherProfile, unknown(errNotShown): "not told by the kernel", unknown(errNotStopped): "not told by the kernel", "(x)": "(x)"} {
		if got, err := profile(subject{Process: Process{Profile: name}, reader: Reader{Profiles: p}}); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}
