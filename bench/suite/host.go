package suite

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/bench/result"
)

// describeHost says where a run takes place.
func (s *suite) describeHost(ctx context.Context) (h result.Host, err error) {
	h = result.Host{
		When: time.Now().UTC().Truncate(time.Second), Cores: runtime.NumCPU(),
		PageCache: "warm: every program and file was used before it was measured",
		CPU:       lineOf("/proc/cpuinfo", "model name"), Load: firstLine("/proc/loadavg"),
		System: strings.Trim(strings.TrimPrefix(lineOf("/etc/os-release", "PRETTY_NAME"), "="), `"`),
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return h, err
	}
	h.Kernel = unix.ByteSliceToString(uts.Release[:])
	kB, err := field("/proc/meminfo", "MemTotal:")
	if err != nil {
		return h, err
	}
	h.MemoryMB = int(kB / 1024)
	h.Cgroups = s.cgroups.Mode.String()
	if h.Version, err = output(ctx, s.cfg.Programs.Sandboxd, "version"); err != nil {
		return h, err
	}
	h.Version = strings.TrimPrefix(h.Version, "sandboxd ")
	for _, peer := range s.cfg.Peers {
		version, err := output(ctx, peer, "--version")
		if err != nil {
			return h, fmt.Errorf("%w; 'scripts/setup.sh bench' installs it", err)
		}
		h.Peers = append(h.Peers, version)
	}
	return h, nil
}

// output is the first line that a command prints.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w", name, args, err)
	}
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return string(line), nil
}

// lineOf is what follows a key in a file of "key: value" or "key=value" lines; ""
// if there is none.
func lineOf(path, key string) string {
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(rest), ":"))
		}
	}
	return ""
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}
