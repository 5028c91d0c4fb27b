package isolation

import (
	"slices"
	"strings"
	"testing"
)

// ENV-40: the processors of a function follow its memory.
func TestVCPUs(t *testing.T) {
	for _, tt := range []struct {
		mb   int64
		cpu  float64
		want int
	}{
		{128, 0.07, 2}, {512, 0.29, 2}, {1769, 1, 2}, {3008, 1.7, 2},
		{3009, 1.7, 3}, {5307, 3, 3}, {5308, 3, 4}, {7076, 4, 4}, {7077, 4, 5}, {8845, 5, 5}, {8846, 5, 6}, {10240, 5.8, 6},
		{128, 0, 2}, {128, 2.5, 3}, {512, 8, 8}, // a quota of the operator's
		{0, 0, 0}, {0, 2, 0},
	} {
		if got := VCPUs(Limits{MemoryBytes: tt.mb << 20, CPU: tt.cpu}); got != tt.want {
			t.Errorf("%d MB and a quota of %v CPUs: %d processors, want %d", tt.mb, tt.cpu, got, tt.want)
		}
	}
}

func TestRanges(t *testing.T) {
	for want, numbers := range map[string][]int{"": nil, "5": {5}, "0-1": {0, 1}, "0,2-4,7,9-10": {0, 2, 3, 4, 7, 9, 10}} {
		if got := ranges(numbers); got != want {
			t.Errorf("%v: %q, want %q", numbers, got, want)
		}
	}
}

func TestMask(t *testing.T) {
	for want, numbers := range map[string][]int{"0": nil, "1": {0}, "22": {1, 5}, "1,00000001": {0, 32}, "80000000,00000000,00000000": {95}} {
		if got := mask(numbers); got != want {
			t.Errorf("%v: %q, want %q", numbers, got, want)
		}
	}
}

const twoProcessors = "processor\t: 0\nmodel name\t: First\n\nprocessor\t: 5\nmodel name\t: Second\n\nHardware\t: Board\n"

func TestParseCPUInfo(t *testing.T) {
	got := ParseCPUInfo(twoProcessors)
	if len(got) != 2 || got[0] != "processor\t: 0\nmodel name\t: First" || got[5] != "processor\t: 5\nmodel name\t: Second" {
		t.Errorf("%v", got)
	}
	if got := ParseCPUInfo(""); len(got) != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestLimitFiles(t *testing.T) {
	host := Host{MemoryBytes: 64 << 30, CPUs: []int{0, 5, 6}, CPUInfo: ParseCPUInfo(twoProcessors), BootTime: 1700000000}
	files := LimitFiles(Limits{MemoryBytes: 512 << 20, PIDs: 1024}, []int{0, 5}, host)
	for name, want := range map[string]string{
		CgroupLimits + "/memory.max":                               "536870912\n",
		CgroupLimits + "/memory.high":                              "max\n",
		CgroupLimits + "/memory.swap.max":                          "0\n",
		CgroupLimits + "/cpu.max":                                  "200000 100000\n",
		CgroupLimits + "/pids.max":                                 "1024\n",
		CgroupLimits + "/cgroup.controllers":                       "cpuset cpu memory pids\n",
		"/sys/devices/system/cpu/online":                           "0,5\n",
		"/sys/devices/system/cpu/possible":                         "0,5\n",
		"/sys/devices/system/cpu/cpu5/topology/core_id":            "5\n",
		"/sys/devices/system/cpu/cpu5/topology/thread_siblings":    "20\n",
		"/sys/devices/system/cpu/cpu5/topology/core_siblings_list": "0,5\n",
		LimitsDir + "/cpuinfo":                                     strings.TrimSuffix(twoProcessors, "Hardware\t: Board\n"),
		CgroupLimits + "/cpuset.cpus.effective":                    "0,5\n",
	} {
		if files[name] != want {
			t.Errorf("%s: %q, want %q", name, files[name], want)
		}
	}
	for _, single := range []bool{false, true} {
		for _, m := range LimitMounts(single) {
			if _, ok := files[m.Sources[0]]; !ok && m.Sources[0] != CgroupLimits {
				t.Errorf("there is no %s to show as %s", m.Sources[0], m.Target)
			}
		}
	}
	for name, lines := range map[string][]string{
		"/meminfo": {"MemTotal:         524288 kB", "MemFree:          491520 kB", "MemAvailable:     491520 kB", "SwapTotal:             0 kB"},
		"/stat":    {"cpu  0 0 0 0 0 0 0 0 0 0", "cpu0 0 0 0 0 0 0 0 0 0 0", "cpu5 0 0 0 0 0 0 0 0 0 0", "btime 1700000000"},
	} {
		all := strings.Split(files[LimitsDir+name], "\n")
		for _, line := range lines {
			if !slices.Contains(all, line) {
				t.Errorf("%s has no line %q:\n%s", name, line, files[LimitsDir+name])
			}
		}
	}

	// Without a limit, and with one above what the host has, the memory is the host's.
	for _, l := range []Limits{{}, {MemoryBytes: 100 << 30}} {
		files := LimitFiles(l, host.CPUs, host)
		if !strings.HasPrefix(files[LimitsDir+"/meminfo"], "MemTotal:       67108864 kB\n") || l.MemoryBytes == 0 && files[CgroupLimits+"/memory.max"] != "max\n" {
			t.Errorf("limits %+v: %q and %q", l, files[LimitsDir+"/meminfo"][:40], files[CgroupLimits+"/memory.max"])
		}
	}
	// What does not depend on limits is the same for all, so that nothing of the host is in it.
	other := LimitFiles(Limits{MemoryBytes: 512 << 20, PIDs: 1024}, []int{0, 5}, Host{MemoryBytes: 1 << 30})
	for name := range files {
		if same := files[name] == other[name]; !same && name != LimitsDir+"/cpuinfo" && name != LimitsDir+"/stat" {
			t.Errorf("%s differs between hosts", name)
		}
	}
}
