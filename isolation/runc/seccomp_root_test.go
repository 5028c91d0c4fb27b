//go:build integration

package runc

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	seccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// passed is what the audit program says of a call that no filter refuses.
const passed = 4000

// newer are the numbers of calls that the oldest libseccomp that sandboxd is built
// with, 2.5.4, does not know. It leaves them out of the filter.
var newer = map[string]int{
	"cachestat": unix.SYS_CACHESTAT, "fchmodat2": unix.SYS_FCHMODAT2, "futex_requeue": unix.SYS_FUTEX_REQUEUE,
	"futex_wait": unix.SYS_FUTEX_WAIT, "futex_wake": unix.SYS_FUTEX_WAKE, "listmount": unix.SYS_LISTMOUNT,
	"map_shadow_stack": unix.SYS_MAP_SHADOW_STACK, "mseal": unix.SYS_MSEAL, "quotactl_fd": unix.SYS_QUOTACTL_FD,
	"set_mempolicy_home_node": unix.SYS_SET_MEMPOLICY_HOME_NODE, "statmount": unix.SYS_STATMOUNT,
}

// unfiltered are calls that newer kernels carry out whatever a filter says: uretprobe
// and uprobe, which are of use only to code that the kernel itself has put in place
// and end every other caller.
var unfiltered = []int{335, 336}

// syscallNumber looks a call up; known says whether the filter can have it.
func syscallNumber(t *testing.T, name string) (number int, known bool) {
	t.Helper()
	n, err := seccomp.GetSyscallFromName(name)
	if err == nil && n >= 0 {
		return int(n), true
	}
	number, ok := newer[name]
	if !ok {
		t.Fatalf("%s: no system call of %s, so the rule for it is dead", name, runtime.GOARCH)
	}
	return number, false
}

// probeCall is one system call with its arguments, and what the profile says to it.
type probeCall struct {
	name string
	call [7]uint64
	want int // errno, or passed
}

func holds(a *configs.Arg, v uint64) bool {
	switch a.Op {
	case configs.EqualTo:
		return v == a.Value
	case configs.MaskEqualTo:
		return v&a.Value == a.ValueTwo
	case configs.LessThan:
		return v < a.Value
	}
	panic("an operator that the profiles do not use")
}

func matches(rule *configs.Syscall, name string, call [7]uint64) bool {
	return rule.Name == name && !slices.ContainsFunc(rule.Args, func(a *configs.Arg) bool { return !holds(a, call[1+a.Index]) })
}

// judge is what the rules say to a call: an independent reading of the profile.
func judge(t *testing.T, rules []*configs.Syscall, name string, call [7]uint64) int {
	t.Helper()
	verdict := int(unix.ENOSYS)
	for _, r := range rules {
		if !matches(r, name, call) {
			continue
		}
		errno := passed
		if r.Action != configs.Allow {
			errno = int(*r.ErrnoRet)
		}
		if verdict != int(unix.ENOSYS) && verdict != errno {
			t.Errorf("%s%v: allowed by one rule and refused by another", name, call[1:])
		}
		verdict = errno
	}
	return verdict
}

// values are arguments on both sides of a condition: at first one that meets it, then
// others that do or do not, some in bits that the kernel may ignore.
func values(a *configs.Arg) []uint64 {
	const high, top = 1 << 32, 1 << 63
	switch a.Op {
	case configs.LessThan:
		return []uint64{a.Value - 1, 0, a.Value, a.Value + 1, (a.Value - 1) | high, (a.Value - 1) | top}
	case configs.MaskEqualTo:
		list := []uint64{a.ValueTwo, a.ValueTwo | ^a.Value}
		for bit := uint64(1); bit != 0; bit <<= 1 {
			if a.Value&bit != 0 {
				list = append(list, a.ValueTwo^bit)
			}
		}
		return list
	}
	return []uint64{a.Value, a.Value + 1, a.Value - 1, a.Value | high, a.Value | top}
}

// probesOf are calls that meet a rule, and for each of its conditions calls that miss
// nothing else.
func probesOf(rule *configs.Syscall, number int) [][7]uint64 {
	meets := [7]uint64{uint64(number)}
	for _, a := range rule.Args {
		meets[1+a.Index] = values(a)[0]
	}
	probes := [][7]uint64{meets}
	for _, a := range rule.Args {
		for _, v := range values(a)[1:] {
			p := meets
			p[1+a.Index] = v
			probes = append(probes, p)
		}
	}
	return probes
}

// probesFor are the probes of all rules, and one for every other call number. It also
// finds dead rules: those without which every probe would be answered the same.
func probesFor(t *testing.T, rules []*configs.Syscall) []probeCall {
	t.Helper()
	var list []probeCall
	seen := map[int]bool{}
	for i, rule := range rules {
		number, known := syscallNumber(t, rule.Name)
		seen[number] = true
		others := slices.Concat(rules[:i], rules[i+1:])
		dead := true
		for _, call := range probesOf(rule, number) {
			want := judge(t, rules, rule.Name, call)
			dead = dead && judge(t, others, rule.Name, call) == want
			if !known {
				want = int(unix.ENOSYS)
			}
			list = append(list, probeCall{rule.Name, call, want})
		}
		if dead {
			t.Errorf("the rule for %s, arguments %v, is dead", rule.Name, rule.Args)
		}
	}
	for number := range 600 {
		if !seen[number] && !slices.Contains(unfiltered, number) {
			name, err := seccomp.ScmpSyscall(number).GetName()
			if err != nil {
				name = "unnamed"
			}
			list = append(list, probeCall{name, [7]uint64{uint64(number)}, int(unix.ENOSYS)})
		}
	}
	return list
}

// compareAnswers checks the audit program's answers.
func compareAnswers(t *testing.T, list []probeCall, answers []byte, want func(probeCall) int) {
	t.Helper()
	var errnos []int
	if err := json.Unmarshal(answers, &errnos); err != nil || len(errnos) != len(list) {
		t.Fatalf("%d answers to %d calls, %v: %s", len(errnos), len(list), err, answers)
	}
	for i, p := range list {
		if errnos[i] != want(p) {
			t.Errorf("%s %d %#x: %v (%d), want %v", p.name, p.call[0], p.call[1:], unix.Errno(errnos[i]), errnos[i], unix.Errno(want(p)))
		}
	}
}

// Every rule of every profile, met and missed in every condition, and every call that
// no rule names. The same calls outside of a sandbox meet no refusal.
func TestSeccompRuleByRule(t *testing.T) {
	defer plainFilters()() // the audit program needs to be the listener
	for _, profile := range isolation.Profiles() {
		t.Run(profile, func(t *testing.T) {
			spec := hostSpec(t, isolation.RuntimeDomain)
			spec.Seccomp = profile
			config, err := isolation.SeccompConfig(profile, runtime.GOARCH)
			if err != nil {
				t.Fatal(err)
			}
			list := probesFor(t, config.Syscalls)
			var calls [][7]uint64
			for _, p := range list {
				calls = append(calls, p.call)
			}
			text, err := json.Marshal(calls)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join(spec.Mounts[1].Sources[0], "calls")
			if err := os.WriteFile(file, text, 0o644); err != nil {
				t.Fatal(err)
			}
			installAudit(t, spec)

			s := create(t, spec)
			conn := start(t, s, isolation.RuntimeDomain)
			inside, _ := shell(t, s, conn, "/var/task/audit calls /var/task/calls")
			compareAnswers(t, list, []byte(inside), func(p probeCall) int { return p.want })
			t.Logf("%d rules, %d calls", len(config.Syscalls), len(list))

			outside, err := exec.Command(auditProgram, "calls", file).Output()
			if err != nil {
				t.Fatal(err)
			}
			compareAnswers(t, list, outside, func(probeCall) int { return passed })
		})
	}
}

// A system call of another interface of x86-64 ends the thread that makes it. Outside,
// the kernel answers, at least to 32 bits.
func TestSeccompForeignInterfaces(t *testing.T) {
	spec := hostSpec(t, isolation.RuntimeDomain)
	installAudit(t, spec)
	s := create(t, spec)
	conn := start(t, s, isolation.RuntimeDomain)
	for _, abi := range []string{"x32", "ia32"} {
		if out, status := shell(t, s, conn, "exec /var/task/audit foreign "+abi); out != "bad system call\n" {
			t.Errorf("%s: %q, status %v; want death by SIGSYS", abi, out, status)
		}
		if out, err := exec.Command(auditProgram, "foreign", abi).Output(); err != nil || abi == "ia32" && string(out) != "answered\n" {
			t.Errorf("%s outside: %q, %v; want an answer", abi, out, err)
		}
	}
}

// The profiles for arm64 name calls that it has, and none of x86-64 alone.
func TestSeccompProfilesOfARM64(t *testing.T) {
	for _, profile := range isolation.Profiles() {
		config, err := isolation.SeccompConfig(profile, "arm64")
		if err != nil {
			t.Fatal(err)
		}
		for _, rule := range config.Syscalls {
			if _, later := newer[rule.Name]; later {
				continue
			}
			if n, err := seccomp.GetSyscallFromNameByArch(rule.Name, seccomp.ArchARM64); err != nil || n < 0 {
				t.Errorf("%s: %s is no call of arm64 (%d, %v)", profile, rule.Name, n, err)
			}
		}
	}
}

// installAudit puts the audit program into the code of a sandbox.
func installAudit(t *testing.T, spec isolation.Spec) {
	t.Helper()
	program, err := os.ReadFile(auditProgram)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spec.Mounts[1].Sources[0], "audit"), program, 0o755); err != nil {
		t.Fatal(err)
	}
}
