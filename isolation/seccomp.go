package isolation

import (
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
)

// The seccomp profiles. A tenant cannot bring one of its own.
const (
	DefaultProfile = "default" // of a Spec that names none
	DebugProfile   = "debug"   // lets a function trace its own processes
)

// Profiles lists the names of the seccomp profiles.
func Profiles() []string { return slices.Sorted(maps.Keys(profiles)) }

// A rule group is a set of system calls that are treated alike for one reason.
type ruleGroup struct {
	why   string
	only  string // the architecture, as GOARCH has it, that has these calls; "" means all
	calls []string
	args  []*configs.Arg // all must hold; nil means whatever the arguments
}

// The architectures that have a profile, as GOARCH has them.
const amd64, arm64 = "amd64", "arm64"

// A profile lists what a domain may call. Everything else answers ENOSYS, so that
// libraries fall back; what is known to be dangerous answers EPERM, so that nobody
// mistakes the refusal for an old kernel.
type profile struct {
	allow []ruleGroup
	deny  []ruleGroup
}

var profiles = map[string]profile{
	DefaultProfile: {allow: allowed, deny: denied},
	DebugProfile:   {allow: slices.Concat(allowed, debugging), deny: without(denied, debugging)},
}

// without returns groups without the calls that others have.
func without(groups, others []ruleGroup) []ruleGroup {
	var rest []ruleGroup
	for _, g := range groups {
		g.calls = slices.DeleteFunc(slices.Clone(g.calls), func(call string) bool {
			return slices.ContainsFunc(others, func(o ruleGroup) bool { return slices.Contains(o.calls, call) })
		})
		rest = append(rest, g)
	}
	return rest
}

// SeccompConfig turns the named profile into libcontainer's form for an architecture.
// Names that the host's libseccomp does not know are left out there, which leaves
// them refused. System calls of the architecture's other interfaces (x32, ia32) end
// the thread.
func SeccompConfig(name, arch string) (*configs.Seccomp, error) {
	p, ok := profiles[name]
	if !ok {
		return nil, fmt.Errorf("unknown seccomp profile %q", name)
	}
	if arch != amd64 && arch != arm64 {
		return nil, &host.Unsupported{Feature: host.Seccomp, Need: "there is no seccomp profile for " + arch, Fix: "use amd64 or arm64"}
	}
	enosys, eperm := uint(unix.ENOSYS), uint(unix.EPERM)
	c := &configs.Seccomp{DefaultAction: configs.Errno, DefaultErrnoRet: &enosys, Architectures: []string{arch}}
	add := func(groups []ruleGroup, rule configs.Syscall) {
		for _, g := range groups {
			if g.only != "" && g.only != arch {
				continue
			}
			for _, call := range g.calls {
				r := rule
				r.Name, r.Args = call, g.args
				c.Syscalls = append(c.Syscalls, &r)
			}
		}
	}
	add(p.allow, configs.Syscall{Action: configs.Allow})
	add(p.deny, configs.Syscall{Action: configs.Errno, ErrnoRet: &eperm})
	return c, nil
}
