package isolation

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// LimitsDir is a folder of a sandbox's root. It holds the files that tell the processes
// of the sandbox its limits, which are shown where programs look for them (LimitMounts).
const LimitsDir = "/.sandbox-limits"

const (
	// CgroupLimits is the folder of LimitsDir that is shown as CgroupDir.
	CgroupLimits = LimitsDir + "/cgroup"
	// CgroupDir is where programs look for the files of their cgroup.
	CgroupDir = "/sys/fs/cgroup"
	cpuDir    = "/sys/devices/system/cpu" // where libc looks for processors
)

// cgroupFiles are the files of CgroupLimits.
var cgroupFiles = []string{"cgroup.controllers", "cpu.max", "cpuset.cpus.effective", "memory.high", "memory.max", "memory.swap.max", "pids.max"}

// LimitMounts are the bind mounts of a domain that show files of LimitsDir in the place
// of those that tell about the host. Each has one source, a path inside. At CgroupDir they
// show the whole folder, or, if single is set, its files only, over others that are there.
func LimitMounts(single bool) []Mount {
	list := []Mount{{Target: CgroupDir, Sources: []string{CgroupLimits}}}
	if single {
		list = nil
		for _, name := range cgroupFiles {
			list = append(list, Mount{Target: CgroupDir + "/" + name, Sources: []string{CgroupLimits + "/" + name}})
		}
	}
	for _, name := range []string{"cgroups", "cpuinfo", "meminfo", "stat"} {
		list = append(list, Mount{Target: "/proc/" + name, Sources: []string{LimitsDir + "/" + name}})
	}
	return list
}

// Host is what a sandbox's files of its limits repeat of the host.
type Host struct {
	MemoryBytes int64          // physical memory
	CPUs        []int          // numbers of the processors that the daemon may use, in order
	CPUInfo     map[int]string // the kernel's paragraph about each processor in /proc/cpuinfo, by number
	BootTime    int64          // seconds since the epoch
}

const (
	mbPerVCPU  = 1769 // ENV-32
	twoVCPUs   = 3008 // up to this many MB a function has two (ENV-40)
	leastVCPUs = 2
	mostVCPUs  = 6 // ENV-32
)

// VCPUs returns how many processors a sandbox with these limits may use at once, as on
// Lambda (ENV-40), or more if it has a higher CPU quota. 0 means all.
func VCPUs(l Limits) int {
	if l.MemoryBytes == 0 {
		return 0
	}
	n := leastVCPUs
	if mb := l.MemoryBytes >> 20; mb > twoVCPUs {
		n = min(max(int((mb+mbPerVCPU-1)/mbPerVCPU), leastVCPUs+1), mostVCPUs)
	}
	return max(n, int(math.Ceil(l.CPU)))
}

// LimitDirs are the folders of LimitFiles and the mount points of LimitMounts that are
// folders, parents first.
func LimitDirs() []string {
	return []string{LimitsDir, CgroupLimits, "/sys", "/sys/fs", CgroupDir, "/sys/devices", "/sys/devices/system", cpuDir}
}

// CPUDirs are the folders of LimitFiles, below the last of LimitDirs, that say which
// processors there are, parents first.
func CPUDirs(cpus []int) []string {
	var list []string
	for _, cpu := range cpus {
		dir := cpuDir + "/cpu" + strconv.Itoa(cpu)
		list = append(list, dir, dir+"/topology")
	}
	return list
}

// LimitFiles returns the content of the files that tell a sandbox its limits, by path. It
// may use the processors cpus. The content is made of numbers, and of the kernel's own
// words about processors, and does not change while the sandbox lives.
func LimitFiles(l Limits, cpus []int, host Host) map[string]string {
	memory := host.MemoryBytes
	if l.MemoryBytes > 0 {
		memory = min(memory, l.MemoryBytes)
	}
	numbers := ranges(cpus) + "\n"
	files := map[string]string{
		LimitsDir + "/meminfo": meminfo(memory),
		LimitsDir + "/stat":    stat(cpus, host.BootTime),
		LimitsDir + "/cpuinfo": cpuinfo(cpus, host.CPUInfo),
		LimitsDir + "/cgroups": controllers,
		cpuDir + "/online":     numbers,
		cpuDir + "/present":    numbers,
		cpuDir + "/possible":   numbers,
	}
	for _, cpu := range cpus { // each is a core of its own, all of one package
		own := []int{cpu}
		for name, value := range map[string]string{
			"core_id": strconv.Itoa(cpu), "physical_package_id": "0",
			"thread_siblings": mask(own), "thread_siblings_list": ranges(own), "core_cpus_list": ranges(own),
			"core_siblings": mask(cpus), "core_siblings_list": ranges(cpus), "package_cpus_list": ranges(cpus),
		} {
			files[cpuDir+"/cpu"+strconv.Itoa(cpu)+"/topology/"+name] = value + "\n"
		}
	}
	for name, value := range map[string]string{
		"cgroup.controllers":    "cpuset cpu memory pids",
		"cpu.max":               fmt.Sprintf("%d %d", len(cpus)*cpuPeriod, cpuPeriod),
		"cpuset.cpus.effective": ranges(cpus),
		"memory.high":           "max", // libuv takes neither without the other
		"memory.max":            orMax(l.MemoryBytes),
		"memory.swap.max":       "0",
		"pids.max":              orMax(l.PIDs),
	} {
		files[CgroupLimits+"/"+name] = value + "\n"
	}
	return files
}

// cpuPeriod is the kernel's default period of a CPU quota in microseconds.
const cpuPeriod = 100_000

func orMax(n int64) string {
	if n == 0 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

// controllers is the content of /proc/cgroups on a host with cgroup v2 alone, whatever the
// host has: it fits CgroupDir, and does not tell how many cgroups the host has.
const controllers = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" +
	"cpuset\t0\t1\t1\ncpu\t0\t1\t1\ncpuacct\t0\t1\t1\nblkio\t0\t1\t1\nmemory\t0\t1\t1\ndevices\t0\t1\t1\nfreezer\t0\t1\t1\npids\t0\t1\t1\n"

// runtimeUse is what meminfo counts as used, in kB: about what a small runtime takes.
const runtimeUse = 32 << 10

// meminfo returns the content of /proc/meminfo for that much memory, all of which can be
// used but what a runtime takes.
func meminfo(bytes int64) string {
	total := bytes >> 10
	used := min(runtimeUse, total/2)
	var b strings.Builder
	for _, line := range []struct {
		name string
		kB   int64
	}{
		{"MemTotal", total}, {"MemFree", total - used}, {"MemAvailable", total - used}, {"Buffers", 0}, {"Cached", 0}, {"SwapCached", 0},
		{"Active", used}, {"Inactive", 0}, {"Active(anon)", used}, {"Inactive(anon)", 0}, {"Active(file)", 0}, {"Inactive(file)", 0},
		{"Unevictable", 0}, {"Mlocked", 0}, {"SwapTotal", 0}, {"SwapFree", 0}, {"Dirty", 0}, {"Writeback", 0}, {"AnonPages", used},
		{"Mapped", 0}, {"Shmem", 0}, {"KReclaimable", 0}, {"Slab", 0}, {"SReclaimable", 0}, {"SUnreclaim", 0}, {"KernelStack", 0},
		{"PageTables", 0}, {"CommitLimit", total}, {"Committed_AS", used}, {"VmallocTotal", 0}, {"VmallocUsed", 0}, {"VmallocChunk", 0},
	} {
		fmt.Fprintf(&b, "%-15s %8d kB\n", line.name+":", line.kB)
	}
	return b.String()
}

// stat returns the content of /proc/stat: processors that have done nothing yet. Their
// times would be those of the host.
func stat(cpus []int, bootTime int64) string {
	const times = " 0 0 0 0 0 0 0 0 0 0\n"
	var b strings.Builder
	b.WriteString("cpu " + times)
	for _, cpu := range cpus {
		fmt.Fprintf(&b, "cpu%d%s", cpu, times)
	}
	fmt.Fprintf(&b, "intr 0\nctxt 0\nbtime %d\nprocesses 1\nprocs_running 1\nprocs_blocked 0\nsoftirq 0 0 0 0 0 0 0 0 0 0 0\n", bootTime)
	return b.String()
}

func cpuinfo(cpus []int, paragraphs map[int]string) string {
	var b strings.Builder
	for _, cpu := range cpus {
		b.WriteString(paragraphs[cpu] + "\n\n")
	}
	return b.String()
}

// ParseCPUInfo splits the content of /proc/cpuinfo into the paragraphs of the processors.
// What does not belong to a processor is left out.
func ParseCPUInfo(text string) map[int]string {
	list := map[int]string{}
	for paragraph := range strings.SplitSeq(text, "\n\n") {
		paragraph = strings.Trim(paragraph, "\n")
		line, _, _ := strings.Cut(paragraph, "\n")
		key, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil && strings.TrimSpace(key) == "processor" {
			list[n] = paragraph
		}
	}
	return list
}

// ranges returns numbers, which are in order, in the form of the kernel's lists: 0-2,7.
func ranges(numbers []int) string {
	var b strings.Builder
	for i := 0; i < len(numbers); {
		end := i
		for end+1 < len(numbers) && numbers[end+1] == numbers[end]+1 {
			end++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(numbers[i]))
		if end > i {
			b.WriteString("-" + strconv.Itoa(numbers[end]))
		}
		i = end + 1
	}
	return b.String()
}

// mask returns numbers in the form of the kernel's bit masks: 32 bits each, the highest first.
func mask(numbers []int) string {
	words := make([]uint32, 1)
	for _, n := range numbers {
		for n/32 >= len(words) {
			words = append(words, 0)
		}
		words[n/32] |= 1 << (n % 32)
	}
	text := strconv.FormatUint(uint64(words[len(words)-1]), 16)
	for i := len(words) - 2; i >= 0; i-- {
		text += fmt.Sprintf(",%08x", words[i])
	}
	return text
}
