//go:build integration && vm

package runc

import (
	"fmt"
	"os"
	"testing"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/isolation"
)

// The init handler answers sysinfo(2) with Yama as Debian and Ubuntu set it. With a stricter Yama
// the check fails, and a function whose sandbox was there before gets an error, never the
// host's memory.
func TestSysinfoWithYama(t *testing.T) {
	const setting = "/proc/sys/kernel/yama/ptrace_scope" // the kernels of the machines of the tests have it
	was, err := os.ReadFile(setting)
	if err != nil {
		t.Fatal(err)
	}
	set := func(scope string) {
		if err := os.WriteFile(setting, []byte(scope), 0); err != nil {
			t.Fatal(err)
		}
	}
	defer set(string(was))
	s := create(t, hostSpec(t, isolation.RuntimeDomain))
	conn := start(t, s, isolation.RuntimeDomain)
	memory := fmt.Sprint(s.spec.Limits.MemoryBytes)
	for scope, want := range map[string]string{"0": memory, "1": memory, "2": "refused"} {
		set(scope)
		if err := CheckSysinfo(); host.Lacks(err, host.Sysinfo) != (want == "refused") {
			t.Errorf("scope %s: the check says %v", scope, err)
		}
		if got, _ := shell(t, s, conn, "perl -e '"+sysinfoTotal+" print total()'"); got != want {
			t.Errorf("scope %s: %q, want %s", scope, got, want)
		}
	}
}
