//go:build integration

package lifecycle

import (
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// ACC-21, LC-80, LC-83.
func TestACC21Freeze(t *testing.T) {
	const period = 5 * time.Millisecond
	d := harness.Start(t, harness.OneCPU, harness.Function(t))
	d.Do(script.Step{Op: "tick", MS: period.Milliseconds()}, script.Step{Op: "sleep", MS: 200})
	d.WaitFrozen()
	from := time.Now()
	<-time.After(20 * period) // the time in which nothing may happen is what is measured
	to := time.Now()
	r := d.Do(script.Step{Op: "sleep", MS: 200}, script.Step{Op: "ticks"})
	var before, after int
	for _, at := range r.Results[1].Times {
		switch tick := time.UnixMicro(at); { // rounded down
		case tick.Before(from):
			before++
		case tick.Add(time.Microsecond).After(to):
			after++
		default:
			t.Errorf("the counter advanced at %v, frozen from %v to %v", tick, from, to)
		}
	}
	if before < 2 || after < 2 {
		t.Errorf("%d ticks before and %d after the freeze; the counter does not run", before, after)
	}
}
