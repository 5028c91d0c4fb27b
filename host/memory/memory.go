// Package memory tells how much memory the host has, also to a process that can open no
// file.
package memory

import (
	"fmt"
	"os"
	"strings"
)

// pressureShare is the part of the host's memory, in percent, that must be available:
// below it memory is short.
const pressureShare = 10

// Info is /proc/meminfo, held open. Its methods are safe for concurrent use.
type Info struct{ *os.File }

// Open opens the file. The caller must close it.
func Open() (Info, error) {
	f, err := os.Open("/proc/meminfo")
	return Info{f}, err
}

// Read returns the host's memory, and what of it new programs can have, in bytes. Both are
// 0 if they cannot be read.
func (i Info) Read() (total, available uint64) {
	var buf [4096]byte
	n, _ := i.ReadAt(buf[:], 0) // the end of the file is an error
	for line := range strings.Lines(string(buf[:n])) {
		_, _ = fmt.Sscanf(line, "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(line, "MemAvailable: %d kB", &available)
	}
	return total << 10, available << 10
}

// Short reports whether so little memory is available that what is only kept ready should
// give up its own. Memory that cannot be read counts as short.
func (i Info) Short() bool {
	total, available := i.Read()
	return total == 0 || available/pressureShare < total/100
}
