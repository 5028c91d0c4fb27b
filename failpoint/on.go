//go:build failpoint

package failpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Enabled tells whether this binary can fail at will.
const Enabled = true

// path is read at the start: nothing that runs later can change it.
var path = os.Getenv(Variable)

// errSkip says that a step is to be left out.
var errSkip = errors.New("failpoint: skip")

// Pass is passed at point p: a test may have the daemon killed there.
func Pass(p Point) {
	if err := act(p); err != nil {
		panic(fmt.Sprintf("failpoint: %s can only be killed at: %v", p, err))
	}
}

// Do does step, unless a test wants point p left out or to fail.
func Do(p Point, step func() error) error {
	switch err := act(p); {
	case err == nil:
		return step()
	case errors.Is(err, errSkip):
		return nil
	default:
		return err
	}
}

// act does what the file says of p.
func act(p Point) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err) // a test that cannot be understood must not pass
	}
	for line := range strings.Lines(string(text)) {
		point, action, _ := strings.Cut(strings.TrimSpace(line), " ")
		if Point(point) != p {
			continue
		}
		switch action {
		case "kill":
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		case "skip":
			return errSkip
		}
		for errno := unix.Errno(1); errno < 134; errno++ {
			if unix.ErrnoName(errno) == action {
				return errno
			}
		}
		panic("failpoint: no such action: " + action)
	}
	return nil
}
