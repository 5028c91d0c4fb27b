package isolation

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/configs/validate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func exampleSpec() Spec {
	return Spec{
		ID: "echo-3f2a", IDBase: 0x70000000, Limits: Limits{MemoryBytes: 128 << 20, CPU: 0.07, PIDs: 1024},
		Domains: []string{RuntimeDomain, ExtensionDomain},
		Root:    Root{Dirs: []string{"/usr", "/var", "/var/task"}, Links: []Link{{"/bin", "usr/bin"}}},
		Mounts:  []Mount{{Target: "/usr", Sources: []string{"/usr"}}, {Target: "/var/task", Sources: []string{"/srv/code"}}},
		Tmp:     Tmp{Template: "/var/lib/sandboxd/tmp.ext4"},
	}
}

func examplePaths() Paths {
	return Paths{Rootfs: "/run/sandboxd/a/fs/roots/echo-3f2a", NetNS: "/proc/1/fd/9", Init: "/run/sandboxd/a/fs/init", Dev: "/run/sandboxd/a/fs/dev"}
}

// The golden files are what a reviewer reads: every change of the isolation shows in
// them. `go test ./isolation -update` writes them anew.
func TestConfigGolden(t *testing.T) {
	if runtime.GOARCH != amd64 {
		t.Log("the golden files are amd64's: only the seccomp profile differs")
	}
	for _, domain := range []string{RuntimeDomain, ExtensionDomain} {
		t.Run(domain, func(t *testing.T) {
			cfg, err := exampleSpec().Config(domain, examplePaths())
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Seccomp, err = SeccompConfig(DefaultProfile, amd64); err != nil {
				t.Fatal(err)
			}
			cfg.MaskPaths = MaskedPaths()
			got, err := json.MarshalIndent(cfg, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", domain+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("configuration differs from %s; if that is meant, run go test ./isolation -update and review the difference", file)
			}
		})
	}
}

// With the host's network a domain has no network namespace of its own; only then.
func TestConfigOfTheHostsNetwork(t *testing.T) {
	s, p := exampleSpec(), examplePaths()
	s.Network.Mode = NetworkHost
	if _, err := s.Config(RuntimeDomain, p); err == nil {
		t.Error("the host's network goes with a network namespace")
	}
	p.NetNS = ""
	cfg, err := s.Config(RuntimeDomain, p)
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Namespaces.Contains(configs.NEWNET) || !cfg.Namespaces.Contains(configs.NEWUSER) {
		t.Errorf("namespaces %v", cfg.Namespaces)
	}
	s.Network.Mode = ""
	if _, err := s.Config(RuntimeDomain, p); err == nil {
		t.Error("a sandbox of its own network has no network namespace")
	}
}

// Building a configuration twice gives the same, and shares nothing that a user of
// the first could change.
func TestConfigIsPure(t *testing.T) {
	spec := exampleSpec()
	a, err := spec.Config(RuntimeDomain, examplePaths())
	if err != nil {
		t.Fatal(err)
	}
	before, _ := json.Marshal(a)
	a.Rlimits[0].Hard, a.Cgroups.Name, a.Mounts[0].Flags = 1, "another", 0
	b, err := spec.Config(RuntimeDomain, examplePaths())
	if err != nil {
		t.Fatal(err)
	}
	if after, _ := json.Marshal(b); !bytes.Equal(before, after) {
		t.Error("the second configuration differs from the first")
	}
}

func TestConfigSatisfiesLibcontainer(t *testing.T) {
	p := examplePaths()
	p.Rootfs = t.TempDir()
	cfg, err := exampleSpec().Config(RuntimeDomain, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Validate(cfg); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Spec)
		want   string // part of the error
	}{
		{"good", func(*Spec) {}, ""},
		{"no id", func(s *Spec) { s.ID = "" }, `sandbox id ""`},
		{"id climbs", func(s *Spec) { s.ID = "../x" }, `sandbox id "../x"`},
		{"id too long", func(s *Spec) { s.ID = strings.Repeat("a", 41) }, "1 to 40"},
		{"host root mapped", func(s *Spec) { s.IDBase = 0 }, "host id base 0"},
		{"host users mapped", func(s *Spec) { s.IDBase = 1000 }, "host id base 1000"},
		{"no domain", func(s *Spec) { s.Domains = nil }, "no domain"},
		{"foreign domain", func(s *Spec) { s.Domains = []string{"operator"} }, `unknown domain "operator"`},
		{"mount over the root", func(s *Spec) { s.Mounts[0].Target = "/" }, `mount target "/"`},
		{"mount climbs", func(s *Spec) { s.Mounts[0].Target = "/usr/../etc" }, "mount target"},
		{"mount without source", func(s *Spec) { s.Mounts[0].Sources = nil }, "no source"},
		{"unknown network", func(s *Spec) { s.Network.Mode = "bridge" }, `unknown network "bridge"`},
		{"egress without addresses", func(s *Spec) { s.Network.Mode = NetworkEgress }, "private IPv4 range"},
		{"egress from public addresses", func(s *Spec) {
			s.Network = Network{Mode: NetworkEgress, Range4: netip.MustParsePrefix("11.0.0.0/16"), Range6: DefaultRange6}
		}, "private IPv4 range"},
		{"rule without an address", func(s *Spec) {
			s.Network = Network{Mode: NetworkEgress, Range4: DefaultRange4, Range6: DefaultRange6, Policy: Policy{Allow: make([]Rule, 1)}}
		}, "no address"},
		{"free-form seccomp", func(s *Spec) { s.Seccomp = "{}" }, "unknown seccomp profile"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := exampleSpec()
			tt.change(&s)
			err := s.Validate()
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// Every call is in one group of one list only, unless its groups are told apart by
// arguments; and every group says why it is there.
func TestSeccompProfileIsConsistent(t *testing.T) {
	for name, p := range profiles {
		plain := map[string]string{}
		for _, g := range slices.Concat(p.allow, p.deny) {
			if g.why == "" {
				t.Errorf("%s: the group of %v gives no reason", name, g.calls)
			}
			for _, call := range g.calls {
				if other, twice := plain[call]; twice {
					t.Errorf("%s: %s stands in %q and in %q", name, call, other, g.why)
				}
				if g.args == nil {
					plain[call] = g.why
				}
			}
		}
		for _, g := range slices.Concat(p.allow, p.deny) {
			for _, call := range g.calls {
				if why, dead := plain[call]; g.args != nil && dead {
					t.Errorf("%s: the rule %q for %s is dead: %q has it without condition", name, g.why, call, why)
				}
			}
		}
	}
}

// The kernel cuts int arguments to 32 bits, the filter does not: an allow rule that
// an unequal value meets could be met by bits that the kernel ignores.
func TestSeccompProfileAllowsNoInequality(t *testing.T) {
	for name, p := range profiles {
		for _, g := range p.allow {
			for _, a := range g.args {
				if a.Op == configs.NotEqualTo || a.Op == configs.GreaterThan || a.Op == configs.GreaterThanOrEqualTo {
					t.Errorf("%s: the rule %q for %v compares argument %d for inequality", name, g.why, g.calls, a.Index)
				}
			}
		}
	}
}

// What real runtimes were seen to call must be allowed, at least with some
// arguments; what SEC-33 refuses must not be.
func TestSeccompProfileAllowsRuntimesAndRefusesTheRest(t *testing.T) {
	cfg, err := SeccompConfig(DefaultProfile, runtime.GOARCH)
	if err != nil {
		t.Fatal(err)
	}
	allow := map[string]bool{}
	for _, s := range cfg.Syscalls {
		allow[s.Name] = allow[s.Name] || s.Action == configs.Allow
	}
	for _, call := range strings.Fields(`read write openat2 statx fstatfs futex futex_waitv clone execve wait4 waitid rseq memfd_create pidfd_open
		mprotect epoll_pwait2 signalfd4 timerfd_create eventfd2 inotify_init1 setresuid setgroups capset set_mempolicy close_range restart_syscall`) {
		if !allow[call] {
			t.Errorf("%s is refused", call)
		}
	}
	for _, call := range strings.Fields(`io_uring_setup bpf perf_event_open userfaultfd add_key keyctl ptrace process_vm_readv pidfd_getfd kcmp unshare setns clone3
		mount open_by_handle_at name_to_handle_at fanotify_init kexec_load init_module quotactl swapon acct settimeofday vmsplice io_submit memfd_secret modify_ldt move_pages`) {
		if allow[call] {
			t.Errorf("%s is allowed", call)
		}
	}
}
