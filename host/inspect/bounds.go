package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// processLimits are the limits of a process that the posture fixes, by their names in
// /proc/PID/limits.
var processLimits = []struct{ name, short string }{
	{"Max core file size", "core"}, {"Max open files", "files"}, {"Max locked memory", "locked"},
	{"Max msgqueue size", "msgqueue"}, {"Max nice priority", "nice"}, {"Max realtime priority", "realtime"},
}

// limits tells the hard limits: a process may lower the others itself.
func limits(s subject) (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "limits"))
	if err != nil {
		return "", err
	}
	var list []string
	for _, l := range processLimits {
		hard := "absent"
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, l.name); ok && len(strings.Fields(rest)) > 1 {
				hard = strings.Fields(rest)[1]
			}
		}
		list = append(list, l.short+" "+hard)
	}
	return strings.Join(list, ", "), nil
}

func memory(s subject) (string, error) {
	switch c := s.Cgroup; {
	case c.MemoryBytes == 0:
		return "not limited", nil
	case c.MemoryAndSwapBytes != c.MemoryBytes:
		return "limited, with swap", nil
	}
	return "limited, no swap", nil
}

// processes allows for two init handlers, one a domain.
func processes(s subject) (string, error) {
	if n := s.Cgroup.PIDs; n == 0 || n > expectedPIDs+2*handlerPIDs {
		return fmt.Sprintf("at most %d (0: not limited)", n), nil
	}
	return fmt.Sprintf("at most %d, init handlers not counted", expectedPIDs), nil
}

// oomGroup asks the cgroups above the process whether the kernel ends all of one.
func oomGroup(s subject) (string, error) {
	t, err := s.reader.cgroupTrees(s.dir)
	if err != nil {
		return "", err
	}
	if _, v1 := t["memory"]; v1 {
		return "left to the daemon by cgroup v1", nil
	}
	for _, dir := range t.of("memory") {
		n, err := readInt(filepath.Join(dir, "memory.oom.group"))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the root of the tree
		}
		if err != nil {
			return "", err
		}
		if n == 1 {
			return "ends the domain", nil
		}
	}
	return "ends single processes", nil
}

func oomScore(s subject) (string, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, "oom_score_adj"))
	return strings.TrimSpace(string(text)), err
}
