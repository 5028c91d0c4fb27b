//go:build integration

package recovery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// gates are files beside the bootstrap that the scripted function can be told to await: a
// shut gate holds it where it is.
type gates struct {
	t    *testing.T
	code string // function folder
}

func (g gates) path(name string) string { return filepath.Join(g.code, name) }

func (g gates) open(name string) {
	g.t.Helper()
	harness.WriteFile(g.t, g.path(name), nil, 0o644)
}

func (g gates) shut(name string) {
	g.t.Helper()
	if err := os.Remove(g.path(name)); err != nil && !os.IsNotExist(err) {
		g.t.Fatal(err)
	}
}

// gate is the step that waits for a gate.
func gate(name string) script.Step {
	return script.Step{Op: "await", Path: "/var/task/" + name}
}

// lifeState is a state of the life cycle in which a sandbox is killed.
type lifeState struct {
	name  string
	flags []string
	// reach brings a sandbox into the state. The answer of the invocation that waits
	// meanwhile, if one does, comes on the channel.
	reach func(*harness.Daemon, gates) <-chan harness.Answer
	want  string // in that answer
}

var lifeStates = []lifeState{
	{"Initializing", nil, func(d *harness.Daemon, g gates) <-chan harness.Answer {
		g.shut("init")
		seen := len(d.Printed("runtime", "start"))
		answers := d.InvokeLater(script.Event{Report: true})
		d.WaitPrinted("runtime", "start", seen+1)
		return answers
	}, `"errorType"`},
	{"Invoking", nil, func(d *harness.Daemon, g gates) <-chan harness.Answer {
		g.shut("invoke")
		seen := len(d.Printed("runtime", "invoked"))
		answers := d.InvokeLater(script.Event{Report: true, Steps: []script.Step{harness.Note("invoked"), gate("invoke")}})
		d.WaitPrinted("runtime", "invoked", seen+1)
		return answers
	}, "signal: killed"},
	{"Idle", []string{"--linger=10s"}, func(d *harness.Daemon, _ gates) <-chan harness.Answer {
		d.Do()
		return nil
	}, ""},
	{"Frozen", nil, func(d *harness.Daemon, _ gates) <-chan harness.Answer {
		d.Do()
		d.WaitFrozen()
		return nil
	}, ""},
	{"Resetting", nil, func(d *harness.Daemon, _ gates) <-chan harness.Answer {
		seen := len(d.Printed("stubborn", "SHUTDOWN"))
		d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}})
		d.WaitPrinted("stubborn", "SHUTDOWN", seen+1)
		return nil
	}, ""},
	{"ShuttingDown", []string{"idle-timeout: 20ms"}, func(d *harness.Daemon, _ gates) <-chan harness.Answer {
		seen := len(d.Printed("stubborn", "SHUTDOWN"))
		d.Do()
		d.WaitPrinted("stubborn", "SHUTDOWN", seen+1)
		return nil
	}, ""},
}

// A sandbox whose PID 1 is killed, 20 times in each state of the life cycle: the
// caller is told, the next invocation works in a fresh sandbox, nothing is
// left.
func TestKilledInEveryState(t *testing.T) {
	kills := harness.Rounds(t, 20)
	for _, state := range lifeStates {
		t.Run(state.name, func(t *testing.T) {
			g := gates{t, harness.Function(t, gate("init"))}
			flags := []string{harness.OneCPU, "--timeout=60s", "--layer", harness.Layer(t, harness.Extensions{"stubborn": harness.Stubborn()})}
			for _, f := range state.flags {
				if !strings.HasPrefix(f, "--") {
					f = harness.Config(t, f+"\n")
				}
				flags = append(flags, f)
			}
			d := harness.Start(t, append(flags, g.code)...)
			var before map[string]int
			for i := range kills {
				g.open("init")
				g.open("invoke")
				answers := state.reach(d, g)
				d.KillSandboxes()
				if answers != nil {
					if a := <-answers; a.Header.Get("X-Amz-Function-Error") != "Unhandled" || !strings.Contains(string(a.Body), state.want) {
						t.Fatalf("kill %d: status %d, %s; want a function error with %s", i+1, a.Status, a.Body, state.want)
					}
				}
				if i == 0 {
					before = d.FDs()
				}
			}
			g.open("init")
			d.WantFDsBack(before)
			d.Do()
		})
	}
}
