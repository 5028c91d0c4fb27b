//go:build integration

package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// A zip is taken apart by a process without privilege, network and sight of the host's
// files (REQUIREMENTS section 1, archive/extractor), that ends with its work.
func TestUnpackPosture(t *testing.T) {
	folders := newFolders(t)
	code := zipFile(t, "large", 0o644, io.LimitReader(rand.NewChaCha8([32]byte{}), 200<<20)) // takes a while
	d := launch(t, folders, oneCPU, code)
	var p process
	eventually(t, patience, func() string {
		for _, p = range d.descendants() {
			if command(p.pid) == "sandboxd-unpack" && p.status("Seccomp") != "" {
				return ""
			}
		}
		return "nothing unpacks the zip"
	})
	eventually(t, patience, func() string { return unbounded(p.pid) }) // it bounds itself, which takes a moment
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if ids := strings.Fields(p.status("Uid")); len(ids) != 4 || len(ids[0]) < 6 || len(slices.Compact(ids)) != 1 {
		t.Errorf("it is user %q", ids)
	}
	for key, want := range map[string]string{
		"Groups": "", "NoNewPrivs": "1", "CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16),
		"CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "Seccomp": "2", "Seccomp_filters": "1", "CapAmb": strings.Repeat("0", 16),
	} {
		if got := p.status(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.pid, kind))
		if ours, _ := os.Readlink("/proc/self/ns/" + kind); err != nil || own == ours {
			t.Errorf("its %s namespace is the host's, %v", kind, err)
		}
	}
	d.crash() // takes it along, stopped as it is
	eventually(t, patience, func() string {
		if p.alive() {
			return "the extraction outlives the daemon"
		}
		return ""
	})
	next := startIn(t, folders, oneCPU, function(t, "testruntime")) // removes the half-made tree
	next.do()
}

// unbounded says what an extraction may take of the host beyond what it should; "" if
// it is bounded.
func unbounded(pid int) string {
	score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil || string(score) != "1000\n" {
		return fmt.Sprintf("its oom_score_adj is %q, %v; the daemon's is for the daemon", score, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil {
		return err.Error()
	}
	for _, want := range []string{"Max data size 536870912 536870912", "Max processes 64 64", "Max core file size 0 0"} {
		if !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), want) {
			return fmt.Sprintf("its limits lack %q:\n%s", want, limits)
		}
	}
	return ""
}
