package harness

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/testtime"
)

// referenceSpawn is what starting and reaping a small Go program takes on the
// machine for which the upper bounds of the spec's section 12 are written.
const referenceSpawn = 3 * time.Millisecond

// Patience bounds waits for what must come; it only decides how long a failing
// test takes.
var Patience = testtime.Limit(60 * time.Second)

// Scaled is an upper bound d of the spec, stretched for a slow or busy machine: by
// how much longer than referenceSpawn a process start takes here and now, and at least by
// testtime.Factor. It never shrinks a bound.
func Scaled(t *testing.T, d time.Duration) time.Duration {
	t.Helper()
	var took []time.Duration
	for range 10 {
		start := time.Now()
		if err := exec.Command(filepath.Join(Testbin, Actor), "exit").Run(); err != nil {
			t.Fatalf("calibration: %v", err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	factor := max(testtime.Factor(), float64(took[len(took)-2])/float64(referenceSpawn))
	if factor > 1.5 {
		t.Logf("this machine is %.1f times slower than the reference", factor)
	}
	return time.Duration(float64(d) * factor)
}

// Rounds is how often a test does what it does n times on a machine of usual speed.
func Rounds(_ *testing.T, n int) int { return testtime.Rounds(n) }

// Eventually waits until check says nothing, and fails the test with what it said
// last when that takes longer than limit.
func Eventually(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		complaint := check()
		if complaint == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, complaint)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
