//go:build failpoint

package failpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Enabled tells whether this binary can fail at will.
const Enabled = true

// path is read at the start: nothing that runs later can change it.
var path = os.Getenv(Variable)

// inherited is the file of a process that cannot open it; nil otherwise.
var inherited = inherit()

// inheritance begins the variable of such a process, before the descriptor.
const inheritance = "descriptor "

func inherit() *os.File {
	text, ok := strings.CutPrefix(path, inheritance)
	if !ok {
		return nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	return os.NewFile(uintptr(fd), "failpoints")
}

// Share lets the process that cmd is to start fail too. It must come after the last of
// cmd's ExtraFiles.
func Share(cmd *exec.Cmd) error {
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%s%d", Variable, inheritance, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	return nil
}

// orders is what the file says now.
func orders() ([]byte, error) {
	if inherited == nil {
		return os.ReadFile(path)
	}
	var buf [256]byte
	n, err := inherited.ReadAt(buf[:], 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return buf[:n], err
}

// errSkip says that a step is to be left out.
var errSkip = errors.New("skip")

// Pass is passed at point p: a test may have the daemon killed there.
func Pass(p Point) {
	if err := act(p); err != nil {
		panic(fmt.Sprintf("%s can only be killed at: %v", p, err))
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

// hold stops at p for good.
func hold(p Point) {
	fmt.Fprintf(os.Stderr, "%s%s\n", Held, p)
	select {}
}

// act does what the file says of p.
func act(p Point) error {
	if path == "" {
		return nil
	}
	text, err := orders()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(err) // a test that cannot be understood must not pass
	}
	for line := range strings.Lines(string(text)) {
		point, action, _ := strings.Cut(strings.TrimSpace(line), " ")
		if Point(point) != p {
			continue
		}
		switch action {
		case "hold":
			hold(p)
		case "kill":
			if inherited != nil { // the daemon is another process: whoever waits for this ends it
				hold(p)
			}
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
		panic("no such action: " + action)
	}
	return nil
}
