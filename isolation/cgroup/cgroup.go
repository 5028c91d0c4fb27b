// Package cgroup freezes and measures a sandbox through the open files of its parent
// cgroup. Whoever holds the files needs no privilege for it: the kernel has asked for
// it when they were opened. So the process that made the cgroup can hand them to one
// that may do nothing else to it.
package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
)

// Role says what a file is for.
type Role byte

// The roles. Which of them a group has depends on the host's cgroup version.
const (
	Freeze      Role = iota + 1 // cgroup.freeze, writable
	Events                      // cgroup.events
	FreezeState                 // freezer.state of cgroup v1, writable; instead of Freeze and Events
	Memory                      // bytes now
	MemoryPeak                  // bytes at most
	CPUStat                     // cpu.stat of cgroup v2
	CPUUsage                    // nanoseconds, cgroup v1
	OOMEvents                   // counts kills as "oom_kill N"; there may be several, whose counts add up
	MemoryStat                  // memory.stat; there may be several, which add up
	OOMSeen                     // how often somebody saw the sandbox run out of memory
	PIDs                        // processes and threads now
	roles                       // one more than the last
)

// File is an open file of a cgroup and what it is for.
type File struct {
	Role Role
	*os.File
}

// Handle holds the files of one sandbox's cgroup. All methods are safe for concurrent
// use.
type Handle struct {
	freezing sync.Mutex
	frozen   bool
	file     [roles]*os.File // of which there is one

	memory memory

	mu   sync.Mutex
	more []File // of which there may be several
}

// Open makes a handle of the files, which it owns from then on, also when it fails.
func Open(files []File) (*Handle, error) {
	h := &Handle{}
	for i, f := range files {
		if f.Role == 0 || f.Role >= roles || h.file[f.Role] != nil {
			h.Close()
			for _, f := range files[i:] {
				f.Close()
			}
			return nil, fmt.Errorf("file of role %d where there can be none", f.Role)
		}
		if f.Role == OOMEvents || f.Role == MemoryStat {
			h.Add(f)
		} else {
			h.file[f.Role] = f.File
		}
	}
	if h.file[FreezeState] == nil && (h.file[Freeze] == nil || h.file[Events] == nil) {
		h.Close()
		return nil, errors.New("no file to freeze it with")
	}
	return h, nil
}

// Add adds one more file of a role of which there may be several. The handle owns it from
// then on.
func (h *Handle) Add(f File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.more = append(h.more, f)
}

// added returns those files of role, of which there may be several.
func (h *Handle) added(role Role) (files []*os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.more {
		if f.Role == role {
			files = append(files, f.File)
		}
	}
	return files
}

// Files returns the handle's files, which stay its own. Those that are added later
// come after the others.
func (h *Handle) Files() (list []File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for role, f := range h.file {
		if f != nil {
			list = append(list, File{Role(role), f})
		}
	}
	return append(list, h.more...)
}

// Close closes the files. Methods that run meanwhile fail.
func (h *Handle) Close() {
	for _, f := range h.Files() {
		f.Close()
	}
}

// MemoryPeak reads the most memory that the sandbox ever had, in bytes, page cache included.
func (h *Handle) MemoryPeak() (uint64, error) {
	f := h.file[MemoryPeak]
	if f == nil {
		return 0, errors.New("no file tells the memory peak")
	}
	return read(f, "")
}

// Usage reads what the sandbox has used so far. What no file tells stays zero.
func (h *Handle) Usage() (u isolation.Usage, err error) {
	number := func(role Role, key string) uint64 {
		f := h.file[role]
		if f == nil || err != nil {
			return 0
		}
		var n uint64
		n, err = read(f, key)
		return n
	}
	u.MemoryBytes = number(Memory, "")
	u.MemoryPeakBytes = number(MemoryPeak, "")
	u.CPU = time.Duration(number(CPUStat, "usage_usec"))*time.Microsecond + time.Duration(number(CPUUsage, ""))
	u.PIDs = number(PIDs, "")
	seen := number(OOMSeen, "")
	kills, e := h.oomKills()
	if err == nil {
		err = e
	}
	u.OOMKills = max(kills, seen)
	return u, err
}

// oomKills reads how many processes the kernel has killed for lack of memory.
func (h *Handle) oomKills() (kills uint64, err error) {
	for _, f := range h.added(OOMEvents) {
		if n, e := read(f, "oom_kill"); e == nil { // else its domain has ended
			kills += n
		} else if h.file[OOMSeen] == nil && err == nil {
			err = e
		}
	}
	return kills, err
}

// read reads a number from a kernel file: the only one there is, or that of the line
// "key number".
func read(f *os.File, key string) (uint64, error) {
	var buf [2048]byte
	text, err := contents(f, buf[:])
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if key != "" {
			k, v, _ := bytes.Cut(line, []byte(" "))
			if string(k) != key {
				continue
			}
			line = v
		}
		value, err := strconv.ParseUint(string(line), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", f.Name(), err)
		}
		return value, nil
	}
	return 0, fmt.Errorf("read %s: it has no %s", f.Name(), key)
}

// contents reads a kernel file with one system call: ReadAt would ask once more for its
// end. Of a file that is longer than buf it returns the whole lines that fit. Nothing at
// all is an error.
func contents(f *os.File, buf []byte) ([]byte, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n int
	var failed error
	if err := raw.Control(func(fd uintptr) { n, failed = unix.Pread(int(fd), buf, 0) }); err != nil {
		return nil, err
	}
	if failed == nil && n == 0 {
		failed = io.EOF
	}
	if n == len(buf) { // what follows the last line's end may be half a number
		n = bytes.LastIndexByte(buf, '\n') + 1
	}
	return buf[:max(n, 0)], failed
}
