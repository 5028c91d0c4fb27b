//go:build !failpoint

package failpoint

import "os/exec"

// Enabled tells whether this binary can fail at will.
const Enabled = false

// Pass is passed at point p: a test may have the daemon killed there.
func Pass(Point) {}

// Do does step, unless a test wants point p left out or to fail.
func Do(_ Point, step func() error) error { return step() }

// Share lets the process that cmd is to start fail too. It must come after the last of
// cmd's ExtraFiles.
func Share(*exec.Cmd) error { return nil }
