//go:build integration

package runc

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/isolation"
)

// ENV-40: a sandbox is confined to its processors, also if it was made ahead of demand with
// other limits, and says so where programs look.
func TestProcessorsOfASandbox(t *testing.T) {
	if len(engine.processors.all) < 2 {
		t.Fatal("the test needs two processors")
	}
	was := engine.processors
	defer func() { engine.processors = was }()
	last := was.all[len(was.all)-1]
	other := last + 20 // a processor that no host of the tests has: VCPUs gives at least two
	engine.processors = &processors{all: []int{last, other, other + 1}, users: map[int]int{}}

	const look = "nproc; grep -o 'Cpus_allowed_list.*' /proc/self/status | cut -f2; cat /sys/devices/system/cpu/online; " +
		"lscpu --parse=core | grep -vc '^#'; grep -c '^cpu[0-9]' /proc/stat; ls -d /sys/devices/system/cpu/cpu* | wc -l; cut -d' ' -f1 /sys/fs/cgroup/cpu.max; grep MemTotal /proc/meminfo | tr -dc 0-9"
	spec := hostSpec(t, isolation.RuntimeDomain)
	spec.Limits.MemoryBytes = 8000 << 20 // 5 processors, more than there are
	b, err := engine.Prepare(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	spec.Limits.MemoryBytes = 256 << 20
	s, err := b.Assign(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	conn := start(t, s, isolation.RuntimeDomain)
	got, _ := shell(t, s, conn, look)
	want := fmt.Sprintf("1\n%d\n%d,%d\n2\n2\n2\n200000\n%d", last, last, other, 256<<10)
	if got != want {
		t.Errorf("the sandbox says %q, want %q", got, want)
	}
	closeSandbox(t, s)
	for cpu, n := range engine.processors.users {
		if n != 0 {
			t.Errorf("processor %d has %d users after the sandbox", cpu, n)
		}
	}
}

// A prewarmed sandbox becomes one of a function with more memory, or with less, and is confined
// to that memory.
func TestAssignOtherMemory(t *testing.T) {
	for _, change := range [][2]int64{{256, 1024}, {1024, 256}} {
		spec := hostSpec(t, isolation.RuntimeDomain)
		spec.Limits.MemoryBytes = change[0] << 20
		b, err := engine.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		spec.Limits.MemoryBytes = change[1] << 20
		s, err := b.Assign(t.Context(), spec)
		if err != nil {
			t.Fatalf("from %d to %d MB: %v", change[0], change[1], err)
		}
		group := s.group
		file := filepath.Join(group.core, "memory.max")
		if group.v2 == nil {
			file = filepath.Join(group.dirV1("memory"), "memory.limit_in_bytes")
		}
		if got, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(got)) != fmt.Sprint(change[1]<<20) {
			t.Errorf("from %d to %d MB: %s has %s, %v", change[0], change[1], file, got, err)
		}
		closeSandbox(t, s)
	}
}

// ENV-40: a sandbox has no more processors than the daemon, which may be confined to some of
// the host's.
func TestProcessorsOfAConfinedDaemon(t *testing.T) {
	if len(engine.host.CPUInfo) < 2 {
		t.Fatal("the test needs two processors")
	}
	was := engine.processors
	defer func() { engine.processors = was }()
	last := was.all[len(was.all)-1]
	engine.processors = &processors{all: []int{last}, users: map[int]int{}}
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	got, _ := shell(t, s, conn, "nproc; grep -o 'Cpus_allowed_list.*' /proc/self/status | cut -f2")
	if want := fmt.Sprintf("1\n%d\n", last); got != want {
		t.Errorf("the sandbox says %q, want %q", got, want)
	}
	closeSandbox(t, s)
}
