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

// A zip or an image is taken apart by processes without privilege, network and sight of
// the host's files (REQUIREMENTS section 1, archive/extractor), that end with their work.
func TestUnpackPosture(t *testing.T) {
	large := func(mb int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), mb<<20) } // takes a while
	for name, test := range map[string]struct {
		args  []string
		wants []string // commands; the last one cannot end once the others are stopped
	}{
		"zip":   {[]string{zipFile(t, "large", 0o644, large(120))}, []string{"sandboxd-unpack zip"}},
		"image": {[]string{"--image", imageLayout(t, nil, large(100))}, []string{"sandboxd-unpack layers", "sandboxd-unpack image"}},
	} {
		t.Run(name, func(t *testing.T) {
			folders := newFolders(t)
			d := launch(t, folders, append([]string{oneCPU}, test.args...)...)
			var found []process
			for _, want := range test.wants {
				found = append(found, d.stopped(want))
			}
			for _, p := range found {
				wantUnprivileged(t, p)
			}
			d.crash() // takes them along, stopped as they are
			eventually(t, patience, func() string {
				for _, p := range found {
					if p.alive() {
						return "the extraction outlives the daemon"
					}
				}
				return ""
			})
			next := startIn(t, folders, oneCPU, function(t)) // removes the half-made tree
			next.do()
		})
	}
}

// stopped waits for a process of the daemon that has bounded itself, and stops it.
func (d *daemon) stopped(name string) (p process) {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		for _, p = range d.descendants() {
			if command(p.pid) == name && p.status("Seccomp") != "" {
				if p.status("Seccomp_filters") != "2" {
					return "it has not confined itself" // which takes a moment
				}
				return unbounded(p.pid)
			}
		}
		return "there is no " + name
	})
	if err := syscall.Kill(p.pid, syscall.SIGSTOP); err != nil {
		d.t.Fatal(err)
	}
	return p
}

func wantUnprivileged(t *testing.T, p process) {
	t.Helper()
	if ids := strings.Fields(p.status("Uid")); len(ids) != 4 || len(ids[0]) < 6 || len(slices.Compact(ids)) != 1 {
		t.Errorf("it is user %q", ids)
	}
	for key, want := range map[string]string{
		"Groups": "", "NoNewPrivs": "1", "CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16),
		"CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "Seccomp": "2", "Seccomp_filters": "2", "CapAmb": strings.Repeat("0", 16),
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
	text := strings.Join(strings.Fields(string(limits)), " ")
	for _, want := range []string{"Max processes 64 64", "Max core file size 0 0", "Max open files 256 256"} {
		if !strings.Contains(text, want) {
			return fmt.Sprintf("its limits lack %q:\n%s", want, limits)
		}
	}
	for _, most := range []string{"Max data size unlimited", "Max file size unlimited"} {
		if strings.Contains(text, most) {
			return fmt.Sprintf("its limits have %q:\n%s", most, limits)
		}
	}
	return ""
}
