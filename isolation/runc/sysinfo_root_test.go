//go:build integration

package runc

import (
	"fmt"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// pages asks glibc, which asks sysinfo(2), for the pages of memory, all and free.
const pages = "getconf _PHYS_PAGES; getconf _AVPHYS_PAGES"

// ENV-40: sysinfo(2) tells the memory of the sandbox, also if it was made ahead of demand with
// another limit, in both domains and with every profile, frozen in between or not.
func TestSysinfoOfASandbox(t *testing.T) {
	if err := CheckSysinfo(); err != nil {
		t.Fatal(err) // the machines of the tests can
	}
	for _, profile := range isolation.Profiles() {
		spec := hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain)
		spec.Seccomp = profile
		spec.Limits.MemoryBytes = 8000 << 20
		b, err := engine.Prepare(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		spec.Limits.MemoryBytes = 256 << 20
		s, err := b.Assign(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		page := os.Getpagesize()
		want := fmt.Sprintf("%d\n%d\n", 256<<20/page, (256-32)<<20/page)
		for _, domain := range spec.Domains {
			conn := start(t, s, domain)
			for range 2 {
				if got, _ := shell(t, s, conn, pages); got != want {
					t.Errorf("%s, %s: pages %q, want %q", profile, domain, got, want)
				}
				if err := s.Freeze(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := s.Thaw(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		closeSandbox(t, s)
	}
}

// sysinfoTotal is a function of perl, total, that calls sysinfo(2) and returns the memory in bytes.
var sysinfoTotal = fmt.Sprintf(`$| = 1; $info = "\0" x %d; sub total { syscall(%d, $info) == 0 or return "refused"; unpack("x32Q", $info) }`,
	unsafe.Sizeof(unix.Sysinfo_t{}), unix.SYS_SYSINFO)

// A call of sysinfo that a freeze interrupts is begun anew, and nothing holds up the freeze, here
// of processes that do nothing but call.
func TestFreezeDuringSysinfo(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	spec.Limits.CPU = 0
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	r := begin(t, s, conn, 1, "perl -e '"+sysinfoTotal+` for (1..19) { fork() or do { total() while 1 } }
$want = total(); print "$want\n"; for (1..2000) { $got = total(); $got eq $want or print "other\n" } print "end\n"'`)
	line := make([]byte, 100)
	n, err := r.Read(line) // now it calls
	if got := string(line[:n]); got != fmt.Sprintln(spec.Limits.MemoryBytes) || err != nil {
		t.Fatalf("%q, %v; want %d", got, err, spec.Limits.MemoryBytes)
	}
	for range 50 {
		if err := s.Freeze(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Thaw(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	n, err = r.Read(line)
	if got := string(line[:n]); got != "end\n" || err != nil {
		t.Errorf("%q, %v; want end", got, err)
	}
	if _, _, err := conn.Recv(); err != nil {
		t.Error(err)
	}
}

// Where the init handler cannot answer, sysinfo(2) is the kernel's.
func TestSysinfoOfTheHost(t *testing.T) {
	defer plainFilters()()
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintln(uint64(info.Totalram) * uint64(info.Unit) / uint64(os.Getpagesize()))
	if got, _ := shell(t, s, conn, "getconf _PHYS_PAGES"); got != want {
		t.Errorf("%s pages, want %s", got, want)
	}
	closeSandbox(t, s)
}

// plainFilters makes the engine use filters without a listener until the returned function
// is called.
func plainFilters() (restore func()) {
	was, files := engine.filters.sysinfo, engine.filters.files
	engine.filters.sysinfo, engine.filters.files = false, nil
	return func() {
		engine.filters.Close()
		engine.filters.sysinfo, engine.filters.files = was, files
	}
}
