//go:build integration

package containment

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
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
		{Op: "read", Path: "/sys/devices/system/cpu/online"}, {Op: "read", Path: "/proc/stat"}, {Op: "read", Path: "/proc/cpuinfo"},
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
				if n, m := strings.Count(got[4].Text, "\ncpu"), strings.Count("\n"+got[5].Text, "\nprocessor"); n != cpus || m != cpus {
					t.Errorf("%s: %d processors in /proc/stat, %d in /proc/cpuinfo; want %d", who, n, m, cpus)
				}
			}
			check("function", d.Do(look...).Results)
			var extension []script.Entry
			for _, e := range d.Journal().By("watcher") {
				if e.Name == "read" {
					extension = append(extension, e)
				}
			}
			check("extension", extension)
		})
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
