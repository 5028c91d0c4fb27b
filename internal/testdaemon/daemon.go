package testdaemon

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Folders are the places where a daemon keeps what it has. Several daemons may share them,
// one after the other or at once.
type Folders struct {
	State, Run string // see the flags --state-dir and --run-dir
}

// NewFolders returns folders below root, which it makes passable: users of sandboxes go
// through the run folder. The paths should be short, because sockets live in them.
func NewFolders(root string) (Folders, error) {
	return Folders{State: filepath.Join(root, "state"), Run: filepath.Join(root, "run")}, os.Chmod(root, 0o711)
}

// Flags are the arguments of a daemon that uses the folders.
func (f Folders) Flags() []string { return []string{"--state-dir", f.State, "--run-dir", f.Run} }

// Daemon is a process that runs `sandboxd run`.
type Daemon struct {
	*Process
	Folders  Folders
	Addr     string // host:port of its invoke endpoint; "" until it listens
	Instance string // its id; "" until it listens
}

// NewDaemon returns a daemon that does not run yet. The command is to be `sandboxd run`
// with the flags of the folders.
func NewDaemon(cmd *exec.Cmd, f Folders) *Daemon { return &Daemon{Process: New(cmd), Folders: f} }

// Listening waits until the daemon says in its log that it serves. An error has the log
// with it.
func (d *Daemon) Listening(limit time.Duration) error {
	heard := false
	_, _ = d.Log.Wait(limit, func(line string) bool {
		heard = d.Hear(line)
		return heard
	})
	if !heard {
		return fmt.Errorf("the daemon did not say within %v where it listens, and which instance it is; its log:\n%s", limit, d.Log.Text())
	}
	return nil
}

// Hear takes address and instance from a line of the daemon's log, and reports whether it
// is the one that has them.
func (d *Daemon) Hear(line string) bool {
	if !strings.Contains(line, "listening") {
		return false
	}
	addr, instance := Field(line, "addr"), Field(line, "instance")
	if addr == "" || instance == "" {
		return false
	}
	d.Addr, d.Instance = addr, instance
	return true
}

// Stop ends the daemon in order, with SIGTERM. It is an error if it has to be killed after
// limit or does not exit with 0, unless it had ended before.
func (d *Daemon) Stop(limit time.Duration) error {
	if d.Ended() {
		return nil
	}
	err := d.Process.Stop(limit)
	if err == nil && d.ExitCode() != 0 {
		err = fmt.Errorf("the daemon ended with code %d after SIGTERM", d.ExitCode())
	}
	return err
}

// Field finds the value of a key in a line of a daemon's log: key=value in one of text,
// "key":"value" in one of JSON. It is "" if there is none.
func Field(line, key string) string {
	m := regexp.MustCompile(`\b` + key + `(?:=|":)"?([^" ]+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return m[1]
}
