package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Check returns an error unless every thread of the process pid has no_new_privs and a
// seccomp filter, as /proc says. It is for a parent that is about to trust its child: the
// child itself, under Landlock, cannot open /proc. A process that is gone passes. Safe for
// concurrent use.
func Check(pid int) error {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "task")
	threads, err := os.ReadDir(dir)
	for _, t := range threads {
		if err != nil {
			break
		}
		var status []byte
		status, err = os.ReadFile(filepath.Join(dir, t.Name(), "status"))
		if ended(err) {
			err = nil
			continue
		}
		if err == nil {
			err = checkStatus(string(status))
		}
		if err != nil {
			err = fmt.Errorf("thread %s: %w", t.Name(), err)
		}
	}
	if err != nil && !ended(err) {
		return fmt.Errorf("process %d is not confined: %w", pid, err)
	}
	return nil
}

// ended reports whether err says that a process or a thread is gone.
func ended(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) }

// checkStatus looks for what Check wants in the status of a thread (proc_pid_status(5)).
func checkStatus(status string) error {
	found := map[string]string{}
	for line := range strings.Lines(status) {
		if name, value, ok := strings.Cut(line, ":"); ok {
			found[name] = strings.TrimSpace(value)
		}
	}
	for name, want := range map[string]string{"NoNewPrivs": "1", "Seccomp": strconv.Itoa(unix.SECCOMP_MODE_FILTER)} {
		if got := found[name]; got != want {
			return fmt.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	return nil
}
