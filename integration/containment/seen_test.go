//go:build integration

package containment

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testtime"
)

// hostOf returns the memory, in kB, and the number of processors of this host.
func hostOf(t *testing.T) (memory int64, cpus int) {
	t.Helper()
	var info unix.Sysinfo_t
	var set unix.CPUSet
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	return int64(info.Totalram) * int64(info.Unit) >> 10, set.Count()
}

var (
	memTotal = regexp.MustCompile(`^MemTotal: +(\d+) kB\n`)
	allowed  = regexp.MustCompile(`(?m)^Cpus_allowed_list:\t(.*)$`)
)

// ENV-40: function and extension see the memory and as many processors as the function's
// setting gives, but never more than the host has.
func TestLimitsSeenInside(t *testing.T) {
	hostMemory, hostCPUs := hostOf(t)
	look := []script.Step{
		{Op: "read", Path: "/proc/meminfo"}, {Op: "read", Path: "/sys/fs/cgroup/memory.max"}, {Op: "read", Path: "/proc/self/status"},
		{Op: "read", Path: "/sys/devices/system/cpu/online"}, {Op: "read", Path: "/proc/stat"}, {Op: "read", Path: "/proc/cpuinfo"}, {Op: "sysinfo"},
	}
	layer := harness.Layer(t, harness.Extensions{"watcher": append(look, harness.Idle()...)})
	for _, tt := range []struct{ mb, cpus int }{{512, 2}, {3009, 3}, {8846, 6}} {
		cpus := min(tt.cpus, hostCPUs)
		t.Run(fmt.Sprint(tt.mb), func(t *testing.T) {
			d := harness.Start(t, "--memory="+strconv.Itoa(tt.mb), "--timeout=60s", "--concurrency=1", "--layer", layer, harness.Function(t))
			check := func(who string, got []script.Entry) {
				t.Helper()
				memory := memTotal.FindStringSubmatch(got[0].Text)
				if want := strconv.FormatInt(min(int64(tt.mb)<<10, hostMemory), 10); len(memory) < 2 || memory[1] != want {
					t.Errorf("%s: meminfo begins with %q, want MemTotal %s", who, memory, want)
				}
				if want := strconv.Itoa(tt.mb<<20) + "\n"; got[1].Text != want {
					t.Errorf("%s: memory.max is %q, want %q", who, got[1].Text, want)
				}
				list := allowed.FindStringSubmatch(got[2].Text)
				if len(list) < 2 || len(numbers(list[1])) != cpus || got[3].Text != list[1]+"\n" {
					t.Errorf("%s: processors %q may be used, %q are online; want the same %d", who, list, got[3].Text, cpus)
				}
				if want := min(int64(tt.mb)<<20, hostMemory<<10); got[6].N != want || got[6].Error != "" {
					t.Errorf("%s: sysinfo tells %d bytes, %q; want %d", who, got[6].N, got[6].Error, want)
				}
				if n, m := strings.Count(got[4].Text, "\ncpu"), strings.Count("\n"+got[5].Text, "\nprocessor"); n != cpus || m != cpus {
					t.Errorf("%s: %d processors in /proc/stat, %d in /proc/cpuinfo; want %d", who, n, m, cpus)
				}
			}
			check("function", d.Do(look...).Results)
			var extension []script.Entry
			for _, e := range d.Journal().By("watcher") {
				if e.Name == "read" || e.Name == "sysinfo" {
					extension = append(extension, e)
				}
			}
			check("extension", extension)
		})
	}
}

// ENV-40: as many threads as a function can have ask sysinfo(2) at once, in a sandbox with the
// least CPU. All get the answer, and the next invocation finds the sandbox as it was.
func TestSysinfoOfManyThreads(t *testing.T) {
	d := harness.Start(t, "--memory=128", "--timeout="+testtime.Limit(time.Minute).String(), "--concurrency=1", harness.Function(t))
	for _, n := range []int{testtime.Rounds(900), 1} {
		if r := d.Do(script.Step{Op: "sysinfo", N: int64(n)}).Results[0]; r.N != 128<<20 || r.Error != "" {
			t.Errorf("%d threads: %d bytes, %q", n, r.N, r.Error)
		}
	}
}

// ENV-40: what glibc makes of sysinfo(2), and by it Python and others.
func TestSysinfoOfLibraries(t *testing.T) {
	d := harness.Start(t, "--memory=512", "--timeout=60s", "--concurrency=1", harness.Function(t))
	page := os.Getpagesize()
	for _, tt := range []struct {
		argv []string
		want int
	}{
		{[]string{"/usr/bin/getconf", "_PHYS_PAGES"}, 512 << 20 / page},
		{[]string{"/usr/bin/getconf", "_AVPHYS_PAGES"}, (512 - 32) << 20 / page},
	} {
		if r := d.Do(script.Step{Op: "exec", Argv: tt.argv}).Results[0]; r.Text != fmt.Sprintln(tt.want) {
			t.Errorf("%q: %q, %s; want %d pages", tt.argv, r.Text, r.Error, tt.want)
		}
	}
}

// ENV-40: the kernel allows one listener. Where sandboxd runs under another one, doctor says that
// functions get the host's memory from sysinfo(2).
func TestSysinfoUnderAnotherListener(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread, with its filter, ends with the test
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	form := unix.SockFprog{Len: 1, Filter: &allow}
	listener, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&form)))
	if errno != 0 {
		t.Fatal(errno)
	}
	defer unix.Close(int(listener))
	out := harness.SandboxdCommand(t, "", "doctor")
	if warned := regexp.MustCompile(`(?m)^WARN +sysinfo +functions get the memory of the host`); !warned.MatchString(out.Stdout) {
		t.Errorf("doctor says %s", out.Stdout)
	}
}

// numbers lists the numbers of a list such as 0-2,7.
func numbers(list string) (all []int) {
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		first, err1 := strconv.Atoi(from)
		last, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil {
			return nil
		}
		for n := first; n <= last; n++ {
			all = append(all, n)
		}
	}
	return all
}
