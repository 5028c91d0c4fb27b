//go:build integration && vm

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// S-06: the wall clock jumps while an invocation runs. Durations go by the monotonic
// clock: no time-out comes early, and none is missing. Only a virtual machine's clock
// may be set; vm/test.sh builds this file.
func TestClockJumps(t *testing.T) {
	const year = 365 * 24 * time.Hour
	d := start(t, oneCPU, "--timeout=6s", function(t))
	boot := monotonic(t)
	origin := time.Now()
	restore := func() { setClock(t, origin.Add(monotonic(t)-boot)) }
	t.Cleanup(restore)
	for _, jump := range []time.Duration{time.Hour, -time.Hour, 10 * year, -10 * year} {
		t.Run(jump.String(), func(t *testing.T) {
			during := func(step script.Step) answer {
				seen := len(d.printed("runtime", "invoked"))
				answers := d.invokeLater(script.Event{Report: true, Steps: []script.Step{note("invoked"), step}})
				d.waitPrinted("runtime", "invoked", seen+1)
				setClock(t, time.Now().Add(jump))
				return <-answers
			}
			a := during(script.Step{Op: "sleep", MS: 1000})
			restore()
			if a.status != http.StatusOK || a.header.Get("X-Amz-Function-Error") != "" {
				t.Errorf("an invocation within its time: %d %s", a.status, a.body)
			}
			if r := d.reportOf(a.id()); r.duration < 1000 || r.duration > 6_000 {
				t.Errorf("its duration is %v ms", r.duration)
			}
			a = during(script.Step{Op: "sleep", MS: 600_000})
			restore()
			if !strings.Contains(string(a.body), "Sandbox.Timedout") {
				t.Errorf("one beyond its time: %d %s", a.status, a.body)
			}
			if r := d.reportOf(a.id()); r.duration != 6_000 {
				t.Errorf("its duration is %v ms, not that of the time-out", r.duration)
			}
			d.do()
			d.waitFrozen()
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
