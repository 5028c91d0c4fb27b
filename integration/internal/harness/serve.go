package harness

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/internal/testdaemon"
)

// Serve runs `sandboxd serve` with the flags given, and waits until it listens. At the end of
// the test it is stopped, and nothing may be left of it.
func Serve(t *testing.T, f Folders, args ...string) *Daemon {
	t.Helper()
	cmd := exec.Command(Sandboxd, append(append([]string{"serve", "--listen=127.0.0.1:0", "--pool=0"}, f.Flags()...), args...)...)
	d := &Daemon{Daemon: testdaemon.NewDaemon(cmd, f.Folders), T: t, Folders: f}
	d.Run()
	return d.Listening()
}

var variableForm = regexp.MustCompile(`AWS_[A-Z_]+=\S+`)

// FirstKey returns the variables for clients that `sandboxd serve` has written at its first
// start, by their names.
func (d *Daemon) FirstKey() map[string]string {
	d.T.Helper()
	variables := make(map[string]string)
	for _, v := range variableForm.FindAllString(string(ReadFile(d.T, filepath.Join(d.Folders.State, "first-key"))), -1) {
		name, value, _ := strings.Cut(v, "=")
		variables[name] = value
	}
	return variables
}
