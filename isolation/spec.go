// Package isolation describes a sandbox as plain data and turns the description
// into libcontainer's configuration. Nothing in it touches the kernel: building a
// [Spec] or a configuration has no effect, needs no privilege, and gives the same
// result for the same input. Package isolation/runc makes live sandboxes of it.
package isolation

import "time"

// The two domains of a sandbox (SUP-01, settled).
const (
	RuntimeDomain   = "runtime"
	ExtensionDomain = "extension"
)

// The sandbox user as seen inside a domain (ENV-28).
const (
	UserID  = 993
	GroupID = 990
)

// IDCount is the size of a sandbox's host id range: the ids 0 to 65535 inside a
// domain are IDBase to IDBase+65535 on the host.
const IDCount = 65536

// APIAddr is the address of the Runtime API inside a sandbox's network namespace
// (RT-02, docs/decisions/0002). With NetworkHost each sandbox has another.
const APIAddr = "127.0.0.1:9001"

// Spec says what one sandbox is made of. It is data, safe to copy shallowly and to
// share between goroutines as long as nobody changes it.
type Spec struct {
	ID       string   // names every resource of the sandbox: 1 to 40 of [a-z0-9-]
	IDBase   uint32   // first host id of the sandbox's range
	Hostname string   // UTS name inside; "" means "sandbox"
	Limits   Limits   // shared by all domains
	Domains  []string // RuntimeDomain, and ExtensionDomain if there are external extensions
	Root     Root     // the root file system: a small read-only tmpfs
	Mounts   []Mount  // what is mounted on it, in order
	Tmp      Tmp      // the writable /tmp, shared by the domains
	Seccomp  string   // name of a seccomp profile; "" means "default"
	Network  Network  // what it can reach
}

// Limits bound a sandbox as a whole (ENV-32, ENV-34).
type Limits struct {
	MemoryBytes int64   // memory, swap included; 0 means no limit
	CPU         float64 // CPUs once throttled; 0 means no quota
	PIDs        int64   // processes and threads of the user, init handlers not counted; 0 means no limit
}

// Root lists what a domain's root directory holds before anything is mounted.
type Root struct {
	Dirs  []string // absolute, parents first; mount points among them
	Links []Link
}

// Link is a symbolic link of the root directory.
type Link struct{ Path, Target string }

// Mount shows host files inside every domain: read-only, nosuid, nodev, owned by
// root where the host's root owns them. One source is a bind mount (a directory or
// a file); several are an overlay in which later sources win.
type Mount struct {
	Target  string // absolute path inside
	Sources []string
}

// Tmp is the disk-backed /tmp of a sandbox (ENV-30). Every sandbox gets a private
// copy of the template, so that filling it costs neither memory nor a neighbour.
type Tmp struct {
	Template string // path of a file system image; "" leaves /tmp read-only and empty
}

// Usage is what a sandbox has used so far, from its parent cgroup.
type Usage struct {
	MemoryBytes     uint64        // now, page cache included
	MemoryPeakBytes uint64        // the most ever, page cache included
	CPU             time.Duration // user and system time of all domains
	OOMKills        uint64        // processes killed for the memory limit
	PIDs            uint64        // processes and threads now, init handlers included
}
