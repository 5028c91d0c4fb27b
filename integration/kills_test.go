//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/script"
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
	writeFile(g.t, g.path(name), nil, 0o644)
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

// invokeLater invokes without waiting for the answer.
func (d *daemon) invokeLater(payload any) <-chan answer {
	answers := make(chan answer, 1)
	go func() {
		a, err := d.request(payload)
		if err != nil {
			d.t.Errorf("invoke: %v", err)
		}
		answers <- a
	}()
	return answers
}

// waitPrinted waits for the nth entry that who prints with the name given.
func (d *daemon) waitPrinted(who, name string, n int) {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		if got := len(d.printed(who, name)); got < n {
			return fmt.Sprintf("%d entries %s of %s, want %d", got, name, who, n)
		}
		return ""
	})
}

// killSandboxes kills PID 1 of every domain and waits until the sandboxes' cgroups
// are gone. The daemon lives on.
func (d *daemon) killSandboxes() {
	d.t.Helper()
	inits := d.inits()
	if len(inits) == 0 {
		d.t.Fatal("no sandbox to kill")
	}
	var dirs []string
	for _, p := range inits {
		dirs = append(dirs, sandboxCgroups(d.t, d.Instance, p)...)
	}
	for _, p := range inits {
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			d.t.Fatal(err)
		}
	}
	eventually(d.t, patience, func() string {
		for _, dir := range dirs {
			if _, err := os.Stat(dir); err == nil {
				return "still there: " + dir
			}
		}
		return ""
	})
}

// sandboxCgroups are the existing cgroup folders of the sandbox that a process is in.
func sandboxCgroups(t *testing.T, instance string, p process) []string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.pid))
	if err != nil {
		return nil // gone
	}
	var dirs []string
	for line := range strings.Lines(string(text)) {
		path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]
		at := strings.Index(path, instance+"/")
		if at < 0 {
			continue
		}
		name, _, _ := strings.Cut(path[at+len(instance)+1:], "/")
		for _, root := range cgroupTrees(t) {
			dir := filepath.Join(root, path[:at], instance, name)
			if _, err := os.Stat(dir); err == nil && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	if len(dirs) == 0 {
		t.Fatalf("process %d is in no cgroup of instance %s:\n%s", p.pid, instance, text)
	}
	return dirs
}

// lifeState is a state of the life cycle in which a sandbox is killed.
type lifeState struct {
	name  string
	flags []string
	// reach brings a sandbox into the state. The answer of the invocation that waits
	// meanwhile, if one does, comes on the channel.
	reach func(*daemon, gates) <-chan answer
	want  string // in that answer
}

var lifeStates = []lifeState{
	{"Initializing", nil, func(d *daemon, g gates) <-chan answer {
		g.shut("init")
		seen := len(d.printed("runtime", "start"))
		answers := d.invokeLater(script.Event{Report: true})
		d.waitPrinted("runtime", "start", seen+1)
		return answers
	}, `"errorType"`},
	{"Invoking", nil, func(d *daemon, g gates) <-chan answer {
		g.shut("invoke")
		seen := len(d.printed("runtime", "invoked"))
		answers := d.invokeLater(script.Event{Report: true, Steps: []script.Step{note("invoked"), gate("invoke")}})
		d.waitPrinted("runtime", "invoked", seen+1)
		return answers
	}, "signal: killed"},
	{"Idle", []string{"--linger=10s"}, func(d *daemon, _ gates) <-chan answer {
		d.do()
		return nil
	}, ""},
	{"Frozen", nil, func(d *daemon, _ gates) <-chan answer {
		d.do()
		d.waitFrozen()
		return nil
	}, ""},
	{"Resetting", nil, func(d *daemon, _ gates) <-chan answer {
		seen := len(d.printed("stubborn", "SHUTDOWN"))
		d.invoke(script.Event{Report: true, Steps: []script.Step{{Op: "exit", N: 1}}})
		d.waitPrinted("stubborn", "SHUTDOWN", seen+1)
		return nil
	}, ""},
	{"ShuttingDown", []string{"idle-timeout: 20ms"}, func(d *daemon, _ gates) <-chan answer {
		seen := len(d.printed("stubborn", "SHUTDOWN"))
		d.do()
		d.waitPrinted("stubborn", "SHUTDOWN", seen+1)
		return nil
	}, ""},
}

// A sandbox whose PID 1 is killed, 20 times in each state of the life cycle: the
// caller is told, the next invocation works in a fresh sandbox, nothing is left
// (issue 2).
func TestKilledInEveryState(t *testing.T) {
	kills := rounds(t, 20)
	for _, state := range lifeStates {
		t.Run(state.name, func(t *testing.T) {
			g := gates{t, function(t, gate("init"))}
			flags := []string{oneCPU, "--timeout=60s", "--layer", layer(t, extensions{"stubborn": stubborn()})}
			for _, f := range state.flags {
				if !strings.HasPrefix(f, "--") {
					f = config(t, f+"\n")
				}
				flags = append(flags, f)
			}
			d := start(t, append(flags, g.code)...)
			var before map[string]int
			for i := range kills {
				g.open("init")
				g.open("invoke")
				answers := state.reach(d, g)
				d.killSandboxes()
				if answers != nil {
					if a := <-answers; a.header.Get("X-Amz-Function-Error") != "Unhandled" || !strings.Contains(string(a.body), state.want) {
						t.Fatalf("kill %d: status %d, %s; want a function error with %s", i+1, a.status, a.body, state.want)
					}
				}
				if i == 0 {
					before = d.fds()
				}
			}
			g.open("init")
			d.wantFDsBack(before)
			d.do()
		})
	}
}
