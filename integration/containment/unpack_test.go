//go:build integration

package containment

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// A zip or an image is taken apart by processes without privilege, network and sight of
// the host's files (SEC-16), that end with their work.
func TestUnpackPosture(t *testing.T) {
	large := func(mb int64) io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{}), mb<<20) } // takes a while
	for name, test := range map[string]struct {
		args  []string
		wants []string // commands; the last one cannot end once the others are stopped
	}{
		"zip":   {[]string{harness.ZipFile(t, "large", 0o644, large(120))}, []string{"sandboxd-unpack zip"}},
		"image": {[]string{"--image", harness.ImageLayout(t, nil, large(100))}, []string{"sandboxd-unpack layer", "sandboxd-unpack image"}},
	} {
		t.Run(name, func(t *testing.T) {
			folders := harness.NewFolders(t)
			d := harness.Launch(t, folders, append([]string{harness.OneCPU}, test.args...)...)
			var found []harness.Process
			for _, want := range test.wants {
				found = append(found, stopped(d, want))
			}
			for _, p := range found {
				wantUnprivileged(t, p)
			}
			d.Crash() // takes them along, stopped as they are
			harness.Eventually(t, harness.Patience, func() string {
				for _, p := range found {
					if p.Alive() {
						return "the extraction outlives the daemon"
					}
				}
				return ""
			})
			next := harness.StartIn(t, folders, harness.OneCPU, harness.Function(t)) // removes the half-made tree
			next.Do()
		})
	}
}

// stopped waits for a process of the daemon that has bounded itself, and stops it.
func stopped(d *harness.Daemon, name string) (p harness.Process) {
	d.T.Helper()
	harness.Eventually(d.T, harness.Patience, func() string {
		for _, p = range d.Descendants() {
			if harness.Command(p.PID) == name && p.Status("Seccomp") != "" {
				if p.Status("Seccomp_filters") != "2" {
					return "it has not confined itself" // which takes a moment
				}
				return unbounded(p.PID)
			}
		}
		return "there is no " + name
	})
	if err := syscall.Kill(p.PID, syscall.SIGSTOP); err != nil {
		d.T.Fatal(err)
	}
	return p
}

func wantUnprivileged(t *testing.T, p harness.Process) {
	t.Helper()
	if ids := strings.Fields(p.Status("Uid")); len(ids) != 4 || len(ids[0]) < 6 || len(slices.Compact(ids)) != 1 {
		t.Errorf("it is user %q", ids)
	}
	for key, want := range map[string]string{
		"Groups": "", "NoNewPrivs": "1", "CapInh": strings.Repeat("0", 16), "CapPrm": strings.Repeat("0", 16),
		"CapEff": strings.Repeat("0", 16), "CapBnd": strings.Repeat("0", 16), "Seccomp": "2", "Seccomp_filters": "2", "CapAmb": strings.Repeat("0", 16),
	} {
		if got := p.Status(key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	for _, kind := range []string{"net", "pid", "ipc", "uts"} {
		own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.PID, kind))
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
