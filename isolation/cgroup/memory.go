package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

const (
	// memorySlack is how much memory.current or memory.peak may change before memory.stat is
	// read again: reports are in MB.
	memorySlack = 1 << 20
	// memoryAge is for how long memory.stat is not read although they have not changed. Page
	// cache may have become memory of processes meanwhile.
	memoryAge = time.Second
)

// memory finds out how much memory the processes of a sandbox had at most, without page cache
// that the kernel takes back when it needs it (docs/decisions/0044-memory-used.md).
type memory struct {
	mu      sync.Mutex
	most    uint64    // the result so far
	read    time.Time // when memory.stat was read last
	current uint64    // memory.current then
	peak    uint64    // memory.peak then
	cache   uint64    // what of current could be taken back
}

// MemoryUsed returns the most memory that the processes of the sandbox had, in bytes: what is
// not in a file, what they share, and what the kernel keeps for them. Page cache is not in
// it. The kernel counts the peak of all memory only, so the more often MemoryUsed is called
// while processes work, the more exact it is. It is cheap if little has changed.
func (h *Handle) MemoryUsed() (uint64, error) {
	if h.file[MemoryPeak] == nil || h.file[Memory] == nil {
		return 0, errors.New("no file tells the memory in use")
	}
	m := &h.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	peak, err := read(h.file[MemoryPeak], "")
	if err != nil {
		return 0, err
	}
	current, err := read(h.file[Memory], "")
	if err != nil {
		return 0, err
	}
	now := time.Now()
	if !m.changed(now, current, peak) {
		return m.most, nil
	}
	var own uint64
	for _, f := range h.added(MemoryStat) {
		if n, err := ownMemory(f); err == nil { // else its domain has ended
			own += n
		}
	}
	m.note(now, current, peak, own)
	if kills, _ := h.oomKills(); kills > 0 { // all that could be taken back was; an error is the end of the sandbox
		m.most = max(m.most, peak)
	}
	return m.most, nil
}

// changed reports whether memory.stat must be read.
func (m *memory) changed(now time.Time, current, peak uint64) bool {
	return peak > m.peak+memorySlack || current > m.current+memorySlack || current+memorySlack < m.current || now.Sub(m.read) > memoryAge
}

// note adds what was read: current and peak of all memory, and own, that of the processes.
func (m *memory) note(now time.Time, current, peak, own uint64) {
	cache := current - min(own, current)
	m.most = max(m.most, own)
	if peak > m.peak {
		// The peak was since the last time, with some amount of cache. Two amounts are known:
		// the larger of them gives the memory that the processes had at least, unless there was
		// even more cache in between.
		m.most = max(m.most, peak-min(peak, max(m.cache, cache)))
	}
	m.read, m.current, m.peak, m.cache = now, current, peak, cache
}

// ownMemory reads from memory.stat what the kernel cannot take back. On cgroup v1, which
// does not tell how much of the kernel's own memory that is, it is the memory of processes
// alone.
func ownMemory(f *os.File) (own uint64, err error) {
	var buf [8 << 10]byte
	text, err := contents(f, buf[:])
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	for line := range bytes.Lines(text) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		switch string(key) {
		case "anon", "kernel_stack", "pagetables", "sec_pagetables", "sock", "slab_unreclaimable": // v2
		case "rss": // v1
		case "shmem": // both
		default:
			continue
		}
		n, err := strconv.ParseUint(string(value), 10, 62)
		if err != nil {
			return 0, fmt.Errorf("read %s of %s: %w", key, f.Name(), err)
		}
		own += n
	}
	return own, nil
}
