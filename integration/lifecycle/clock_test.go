//go:build integration && vm

package lifecycle

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// S-06: the wall clock jumps while an invocation runs. Durations go by the monotonic
// clock: no time-out comes early, and none is missing. Only a virtual machine's clock
// may be set; vm/test.sh builds this file.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	d := harness.Start(t, harness.OneCPU, "--timeout=6s", harness.Function(t))
	boot := monotonic(t)
	origin := time.Now()
	restore := func() { setClock(t, origin.Add(monotonic(t)-boot)) }
	t.Cleanup(restore)
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 10 * year, -10 * year} {
		t.Run(jump.String(), func(t *testing.T) {
			during := func(step script.Step) harness.Answer {
				seen := len(d.Printed("runtime", "invoked"))
				answers := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{harness.Note("invoked"), step}})
				d.WaitPrinted("runtime", "invoked", seen+1)
				setClock(t, time.Now().Add(jump))
				return <-answers
			}
			a := during(script.Step{Op: "sleep", MS: 1000})
			restore()
			if a.Status != http.StatusOK || a.Header.Get("X-Amz-Function-Error") != "" {
				t.Errorf("an invocation within its time: %d %s", a.Status, a.Body)
			}
			if r := d.ReportOf(a.ID()); r.Duration < 1000 || r.Duration > 6_000 {
				t.Errorf("its duration is %v ms", r.Duration)
			}
			a = during(script.Step{Op: "sleep", MS: 600_000})
			restore()
			if !strings.Contains(string(a.Body), "Sandbox.Timedout") {
				t.Errorf("one beyond its time: %d %s", a.Status, a.Body)
			}
			if r := d.ReportOf(a.ID()); r.Duration != 6_000 {
				t.Errorf("its duration is %v ms, not that of the time-out", r.Duration)
			}
			d.Do()
			d.WaitFrozen()
		})
	}
}

// monotonic is the time since the machine started.
func monotonic(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

func setClock(t *testing.T, at time.Time) {
	t.Helper()
	tv := unix.NsecToTimeval(at.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		t.Fatal(err)
	}
}
