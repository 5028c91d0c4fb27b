//go:build !failpoint

package failpoint

// Enabled tells whether this binary can fail at will.
const Enabled = false

// Pass is passed at point p: a test may have the daemon killed there.
func Pass(Point) {}

// Do does step, unless a test wants point p left out or to fail.
func Do(_ Point, step func() error) error { return step() }
