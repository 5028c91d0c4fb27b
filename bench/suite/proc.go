package suite

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// processes finds those of a daemon: its own, and the init handlers, which are PID 1 of
// a namespace.
func (p *server) processes() (own, inits []int, err error) {
	entries, err := filepath.Glob("/proc/[0-9]*/status")
	if err != nil {
		return nil, nil, err
	}
	children := map[int][]int{}
	inside := map[int]string{} // pid in a namespace of its own
	for _, path := range entries {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		pid, parent := 0, 0
		for line := range strings.Lines(string(text)) {
			switch f := strings.Fields(line); f[0] {
			case "Pid:":
				pid, _ = strconv.Atoi(f[1])
			case "PPid:":
				parent, _ = strconv.Atoi(f[1])
			case "NSpid:":
				if len(f) > 2 {
					inside[pid] = f[len(f)-1]
				}
			}
		}
		children[parent] = append(children[parent], pid)
	}
	for next := []int{p.Cmd.Process.Pid}; len(next) > 0; next = next[1:] {
		switch pid := next[0]; inside[pid] {
		case "":
			own = append(own, pid)
		case "1":
			inits = append(inits, pid)
		}
		next = append(next, children[next[0]]...)
	}
	return own, inits, nil
}

// memory is what a daemon's own processes and its init handlers use, in MB: their
// proportional share of every page (PSS).
type memory struct{ daemon, inits float64 }

func (p *server) memory() (m memory, err error) {
	own, inits, err := p.processes()
	if err != nil {
		return m, err
	}
	if m.daemon, err = pssMB(own); err == nil {
		m.inits, err = pssMB(inits)
	}
	return m, err
}

func pssMB(pids []int) (sum float64, err error) {
	for _, pid := range pids {
		kB, err := field(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:")
		if err != nil {
			return 0, err
		}
		sum += kB / 1024
	}
	return sum, nil
}

// availableMB is the host's memory that new programs can have.
func availableMB() (float64, error) {
	kB, err := field("/proc/meminfo", "MemAvailable:")
	return kB / 1024, err
}

// field finds the number after a key that begins a line of a file.
func field(path, key string) (float64, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == key {
			return strconv.ParseFloat(f[1], 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, key)
}

// cpu is the CPU time that a daemon and its init handlers have used.
func (p *server) cpu() (total time.Duration, err error) {
	own, inits, err := p.processes()
	if err != nil {
		return 0, err
	}
	for _, pid := range append(own, inits...) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
		if err != nil {
			return 0, err
		}
		for _, path := range threads {
			b, err := os.ReadFile(path)
			if err != nil {
				continue // it has ended
			}
			ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", path, err)
			}
			total += time.Duration(ns)
		}
	}
	return total, nil
}

// kernelMemory is the kernel's memory that is charged to each sandbox, in MB.
func (p *server) kernelMemory() (mb []float64, err error) {
	folders, err := filepath.Glob(filepath.Join(p.dir, "run", "*", "cgroup")) // the record of its cgroup folder
	if err != nil || len(folders) != 1 {
		return nil, fmt.Errorf("%d records of cgroups below %s, %w", len(folders), p.dir, err)
	}
	record, err := os.ReadFile(folders[0])
	if err != nil {
		return nil, err
	}
	root := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		root = "/sys/fs/cgroup"
	}
	sandboxes, err := filepath.Glob(filepath.Join(root, string(record), "*", "memory.stat"))
	if err != nil {
		return nil, err
	}
	for _, stat := range sandboxes {
		bytes, err := field(stat, "kernel") // v2
		if err != nil {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(stat), "memory.kmem.usage_in_bytes")) // v1
			if err != nil {
				return nil, err
			}
			if bytes, err = strconv.ParseFloat(strings.TrimSpace(string(b)), 64); err != nil {
				return nil, err
			}
		}
		mb = append(mb, bytes/(1<<20))
	}
	return mb, nil
}
