package rapid

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Statuses that say more than that a process failed come with their likely cause.
func TestStatusHint(t *testing.T) {
	for _, tt := range []struct {
		wrapper string
		status  int
		want    []string
	}{
		{"", 0, nil}, {"", 1, nil}, {"", 125, nil}, {"", 128, nil}, {"/opt/w", 1, nil},
		{"", 2, []string{"/var/task/bootstrap ended with status 2", "syntax error", "panic"}},
		{"", 126, []string{"status 126", "not executable", "chmod 755"}},
		{"", 127, []string{"status 127", "not in the sandbox", "dos2unix"}},
		{"/opt/w", 127, []string{"status 127", `AWS_LAMBDA_EXEC_WRAPPER, which is "/opt/w"`}},
		{"/opt/w", 2, []string{"status 2"}},
	} {
		got := statusHint("/var/task/bootstrap", tt.wrapper, tt.status)
		if (got == "") != (tt.want == nil) || slices.ContainsFunc(tt.want, func(part string) bool { return !strings.Contains(got, part) }) {
			t.Errorf("status %d with wrapper %q: %q, want %q in it", tt.status, tt.wrapper, got, tt.want)
		}
	}
}

// The operator hears of it, with the program's name, also of an extension.
func TestHint(t *testing.T) {
	for _, tt := range []struct {
		name    string
		runtime func(*world) fakesup.Program
		more    []func(*world) option
		want    []string // beginnings
	}{
		{"runtime", exits(supervisor.Exit{Code: 127}), nil, []string{bootstrap + " ended with status 127"}},
		{"extension", echo(0), []func(*world) option{withExtension("agent", exits(supervisor.Exit{Code: 126}))}, []string{extensionsDir + "agent ended with status 126"}},
		{"no such status", exits(supervisor.Exit{Code: 1}), nil, nil},
		{"a signal of that number", exits(supervisor.Exit{Signal: 2, Code: 2}), nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			listen := func(*world) option {
				return func(c *Config, _ *fakesup.Supervisor) { c.OnHint = func(text string) { got = append(got, text) } }
			}
			inWorld(t, tt.runtime, func(w *world) {
				if r := w.invoke("a"); !r.FunctionError {
					t.Errorf("answer %s, want an error", r.Payload)
				}
				synctest.Wait()
			}, append(tt.more, listen)...)
			for _, begin := range tt.want {
				if !slices.ContainsFunc(got, func(text string) bool { return strings.HasPrefix(text, begin) }) {
					t.Errorf("hints %q, want one that begins with %q", got, begin)
				}
			}
			if tt.want == nil && len(got) > 0 {
				t.Errorf("hints %q, want none", got)
			}
		})
	}
}
