package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// Outcome is what a command that ended has left.
type Outcome struct {
	Code           int
	Stdout, Stderr string
}

// SandboxdCommand runs sandboxd to its end with the text given as standard input.
func SandboxdCommand(t *testing.T, stdin string, args ...string) Outcome {
	t.Helper()
	return Finish(t, stdin, exec.Command(Sandboxd, args...))
}

// Finish runs a command to its end with the text given as standard input.
func Finish(t *testing.T, stdin string, cmd *exec.Cmd) Outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return Outcome{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// PS is what `sandboxd ps` lists.
func (d *Daemon) PS() (list []Listed) {
	d.T.Helper()
	d.Ask(&list, "ps")
	return list
}

// Listed is a sandbox in `ps --output json`.
type Listed struct {
	ID, Instance, Function, State string
	Invocations                   uint64
}

// Ask runs a command that prints JSON and decodes it.
func (d *Daemon) Ask(into any, args ...string) {
	d.T.Helper()
	out := SandboxdCommand(d.T, "", append(args, "--run-dir", d.Folders.Run, "--output=json")...)
	if out.Code != 0 {
		d.T.Fatalf("%v: %+v", args, out)
	}
	if err := json.Unmarshal([]byte(out.Stdout), into); err != nil {
		d.T.Fatalf("%v: %v in %s", args, err, out.Stdout)
	}
}
