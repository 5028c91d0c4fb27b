// Package host is the ground of the packages that know this machine: it has the error of
// what the machine cannot do.
package host

import (
	"errors"
	"strings"
)

// A Feature is something that not every host has. Its text, one word, names it in the list
// of tests that may be skipped (scripts/skips.txt).
type Feature string

// The features.
const (
	Cgroups          Feature = "cgroups"           // a cgroup tree with the controllers that sandboxes need
	CgroupV2         Feature = "cgroup-v2"         // a tree of version 2, with or without controllers
	ConnectionOrigin Feature = "connection-origin" // the kernel tells the cgroup of a connection's other end
	Egress           Feature = "egress"            // interface pairs, a packet filter, forwarding
	ExecutableMemory Feature = "executable-memory" // files in memory that can be executed
	FilterContent    Feature = "filter-content"    // the kernel tells the seccomp filter of a process
	Landlock         Feature = "landlock"          // Landlock of the version that is needed
	LoopDevices      Feature = "loop-devices"      // for the file system of /tmp
	Programs         Feature = "programs"          // such as mke2fs
	Sandboxes        Feature = "sandboxes"         // any of what no sandbox can do without
	Seccomp          Feature = "seccomp"           // a filter for this architecture
	Sysinfo          Feature = "sysinfo"           // an answer to sysinfo(2) of the sandbox's own
	SystemdScope     Feature = "systemd-scope"     // a part of the cgroup tree that systemd hands over
)

// Unsupported is the error of what this host cannot do: its kernel, its settings or its
// programs are not what it takes. Neither sandboxd nor what it was given is at fault.
// errors.Is(err, errors.ErrUnsupported) holds.
type Unsupported struct {
	Feature Feature // what is missing
	Need    string  // what is missing, in a message's words
	Fix     string  // what the operator can do; may be empty
	Err     error   // the cause; may be nil
}

func (e *Unsupported) Error() string {
	var b strings.Builder
	b.WriteString(e.Need)
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	if e.Fix != "" {
		b.WriteString("; " + e.Fix)
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Unsupported) Unwrap() error { return e.Err }

// Is reports whether target is [errors.ErrUnsupported].
func (e *Unsupported) Is(target error) bool { return target == errors.ErrUnsupported }

// Lacks reports whether err says that this host lacks the feature f.
func Lacks(err error, f Feature) bool {
	e, ok := errors.AsType[*Unsupported](err)
	return ok && e.Feature == f
}
