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
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if ids := strings.Fields(p.status("Uid")); len(ids) != 4 || len(ids[0]) < 6 || len(slices.Compact(ids)) != 1 {
		t.Errorf("it is user %q", ids)
	}
	for key, want := range map[string]string{
		"Groups": "", "NoNewPrivs": "1", "CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16),
		"CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "CapAmb": strings.Repeat("0", 16),
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
