// Package inspect reads the isolation that is in force for a process from the
// kernel: namespaces, cgroup limits, ids, capabilities, no_new_privs, seccomp and
// the root file system. It only reads /proc and cgroup files, never asks the daemon
// what it meant to do, and works on frozen processes too. "The host" is where the
// reading process itself runs.
//
// Reading another user's process takes root.
package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Domain names a set of processes to read: those that share a cgroup with PID 1 of
// a domain.
type Domain struct {
	Name   string // "runtime" or "extension"
	Init   int    // the host's process id of its PID 1
	Cgroup string // what its cgroup's path must begin with, so that a process id in use again is not taken for it
}

// Roles of a process in its domain.
const (
	RoleInit      = "init handler" // PID 1: ours, the one exception to the sandbox user
	RoleRuntime   = "runtime"
	RoleExtension = "extension"
)

// namespaces are the kinds that a domain must not share with the host, as they are
// called in /proc/PID/ns.
var namespaces = []string{"user", "pid", "mnt", "net", "ipc", "uts", "cgroup"}

// Process is the isolation of one process, as the kernel has it.
type Process struct {
	Domain    string `json:"domain"`
	Role      string `json:"role"`       // one of the Role constants
	PID       int    `json:"pid"`        // on the host
	PIDInside int    `json:"pid_inside"` // in the innermost pid namespace
	Command   string `json:"command"`    // the kernel's short name; chosen by the process, not to be trusted

	Namespaces []Namespace `json:"namespaces"`
	UID        ID          `json:"uid"`
	GID        ID          `json:"gid"`
	Groups     []uint32    `json:"groups"` // supplementary groups, host ids

	Capabilities Capabilities `json:"capabilities"`
	NoNewPrivs   bool         `json:"no_new_privs"`
	Seccomp      string       `json:"seccomp"`         // "off", "strict" or "filter"
	Filters      int          `json:"seccomp_filters"` // how many filters
	// Profile names the filter, if it is the only one: one of the reader's, "another", or
	// why it is not known in parentheses. "" where there is none or there are several.
	Profile      string       `json:"seccomp_profile"`
	RootReadOnly bool         `json:"root_read_only"`
	MemoryFiles  []MemoryFile `json:"memory_files"` // that it has open

	Cgroup Cgroup `json:"cgroup"`
}

// Namespace is one namespace of a process.
type Namespace struct {
	Kind  string `json:"kind"`  // "user", "pid", …
	Inode uint64 `json:"inode"` // names the namespace while it lives
	Own   bool   `json:"own"`   // it is not the host's
}

// ID is a user or group id, as the host and as the process sees it.
type ID struct {
	Host   uint32 `json:"host"`
	Inside uint32 `json:"inside"` // 65534 where the process's user namespace does not map it
}

// Reader reads processes through one proc file system. The zero value reads /proc, and
// knows no seccomp profile.
type Reader struct {
	Proc     string   // "" means /proc
	Profiles Profiles // nil: those in force are not asked for
}

// Read returns the processes of the domains, in the order of the domains and of
// process ids. Domains and processes that end meanwhile are left out.
func (r Reader) Read(domains []Domain) ([]Process, error) {
	var all []Process
	for _, d := range domains {
		pids, err := r.members(d)
		if err != nil {
			return nil, fmt.Errorf("domain %s: %w", d.Name, err)
		}
		profile := ""
		if len(pids) > 0 && r.Profiles != nil {
			filter, err := r.filterOf(d.Init)
			if gone(err) {
				continue // and the domain with it
			}
			if profile = r.Profiles.name(filter); err != nil {
				profile = unknown(err)
			}
		}
		for _, pid := range pids {
			p, err := r.Process(pid)
			if gone(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
			p.Domain, p.Role = d.Name, role(d.Name, p.PIDInside)
			// Every process of a domain comes from its PID 1, and the kernel lets a filter be added
			// and never taken away: whoever has one has that one.
			if p.Filters == 1 {
				p.Profile = profile
			}
			all = append(all, p)
		}
	}
	return all, nil
}

// role says what a process is in its domain.
func role(domain string, pidInside int) string {
	switch {
	case pidInside == 1:
		return RoleInit
	case domain == "extension":
		return RoleExtension
	default:
		return RoleRuntime
	}
}

// Process reads one process. Domain and Role are left empty. Where threads differ,
// the weakest isolation is told. The error of a process that is gone is
// fs.ErrNotExist or ESRCH.
func (r Reader) Process(pid int) (Process, error) {
	p := Process{PID: pid}
	dir := r.path(strconv.Itoa(pid))
	for _, read := range []func(string, *Process) error{readStatus, readIDs, r.readNamespaces, readRoot, readMemoryFiles, r.readCgroup} {
		if err := read(dir, &p); err != nil {
			return Process{}, fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return p, nil
}

func (r Reader) path(name ...string) string {
	root := r.Proc
	if root == "" {
		root = "/proc"
	}
	return filepath.Join(append([]string{root}, name...)...)
}

// readNamespaces compares the process's namespaces with the reader's own, which is
// taken to run on the host: not every root may look at the host's PID 1.
func (r Reader) readNamespaces(dir string, p *Process) error {
	for _, kind := range namespaces {
		own, err := namespaceInode(filepath.Join(dir, "ns", kind))
		if err != nil {
			return err
		}
		host, err := namespaceInode(r.path("self", "ns", kind))
		if err != nil {
			return err
		}
		p.Namespaces = append(p.Namespaces, Namespace{Kind: kind, Inode: own, Own: own != host})
	}
	return nil
}

// namespaceInode reads a link like "net:[4026531840]".
func namespaceInode(path string) (uint64, error) {
	link, err := os.Readlink(path)
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(link, ":[")
	inode, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is %q", path, link)
	}
	return inode, nil
}

// readIDs adds what the ids of the process are inside its user namespace.
func readIDs(dir string, p *Process) error {
	var err error
	if p.UID.Inside, err = mapInside(filepath.Join(dir, "uid_map"), p.UID.Host); err != nil {
		return err
	}
	p.GID.Inside, err = mapInside(filepath.Join(dir, "gid_map"), p.GID.Host)
	return err
}

// overflowID is what the kernel shows for an id that is not mapped.
const overflowID = 65534

// mapInside looks a host id up in a uid_map or gid_map file.
func mapInside(path string, host uint32) (uint32, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var inside, outside, count uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &count); err != nil {
			return 0, fmt.Errorf("%s: line %q: %w", path, line, err)
		}
		if id := uint64(host); id >= outside && id-outside < count {
			return uint32(inside + id - outside), nil
		}
	}
	return overflowID, nil
}

// readRoot finds out whether the process's root is mounted read-only. A process may
// have several mounts on "/": the last one is what it sees.
func readRoot(dir string, p *Process) error {
	b, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if m, ok := parseMount(line); ok && m.point == "/" {
			p.RootReadOnly = m.readOnly
		}
	}
	return nil
}

// members lists the processes of a domain; none if it has ended.
func (r Reader) members(d Domain) ([]int, error) {
	dir := r.path(strconv.Itoa(d.Init))
	t, err := r.cgroupTrees(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	own := t.place()
	if !strings.HasPrefix(own.path, d.Cgroup) || len(own.dirs) == 0 {
		return nil, nil // its process id belongs to another by now
	}
	b, err := os.ReadFile(filepath.Join(own.dirs[0], "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(b)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("cgroup.procs: %w", err)
		}
		pids = append(pids, pid)
	}
	slices.Sort(pids)
	return pids, nil
}
