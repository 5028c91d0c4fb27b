//go:build integration

package recovery

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/integration/internal/harness"
)

// goroutines ends both processes of the daemon with SIGQUIT and counts the goroutines
// of their dumps, by where each was created.
func goroutines(d *harness.Daemon) map[string]int {
	d.T.Helper()
	w := d.Worker()
	d.Signal(syscall.SIGSTOP) // it must not end the other's way
	if err := syscall.Kill(w.PID, syscall.SIGQUIT); err != nil {
		d.T.Fatal(err)
	}
	harness.Eventually(d.T, harness.Patience, func() string {
		if w.Alive() {
			return "the worker is alive after SIGQUIT"
		}
		return ""
	})
	d.Signal(syscall.SIGQUIT)
	d.Signal(syscall.SIGCONT)
	d.WaitExit()
	count := make(map[string]int)
	created := regexp.MustCompile(`(?m)^created by (\S+)`)
	dumps := strings.Split(d.Log.Text(), "SIGQUIT: quit")
	if len(dumps) != 3 {
		d.T.Fatalf("%d goroutine dumps after SIGQUIT, want one of each process", len(dumps)-1)
	}
	for _, g := range strings.Split(dumps[1]+"\n\n"+dumps[2], "\n\n") {
		m := created.FindStringSubmatch(g)
		if m == nil || strings.HasPrefix(m[1], "runtime") {
			continue
		}
		if strings.HasPrefix(m[1], "main.(*session).") { // of the supervisor, which may have seen that the worker has ended
			continue
		}
		count[m[1]]++
	}
	return count
}

// Leak budget 0 (SEC-70): 1,000 invocations and 50
// sandboxes made and closed leave no process, cgroup, mount, namespace, descriptor
// or goroutine more than one of each does.
func TestNothingLeaks(t *testing.T) {
	code := harness.Function(t)
	folders := harness.NewFolders(t)
	serve := func() *harness.Daemon {
		return harness.StartIn(t, folders, "--memory=512", "--concurrency=4", "--linger=0s", harness.Config(t, "idle-timeout: 100ms\n"), code)
	}
	cycle := func(d *harness.Daemon, times int) {
		for range times {
			d.Do()
			d.WaitEmpty()
		}
	}

	control := serve()
	control.InvokeMany(4, 4)
	control.WaitEmpty()
	cycle(control, 1)
	few := goroutines(control)

	d := serve()
	d.InvokeMany(4, 4)
	d.WaitEmpty()
	cycle(d, 1)
	http.DefaultClient.CloseIdleConnections()
	before, tree := d.FDs(), d.Files()
	d.InvokeMany(harness.Rounds(t, 1000), 4)
	d.WaitEmpty()
	cycle(d, harness.Rounds(t, 50))
	d.WantFDsBack(before)
	if after := d.Files(); !slices.Equal(after, tree) {
		t.Errorf("files %q, before %q", after, tree)
	}
	many := goroutines(d)
	for by, n := range many {
		if n > few[by] {
			t.Errorf("%d goroutines created by %s, %d after one sandbox", n, by, few[by])
		}
	}
	serve() // removes what SIGQUIT has left; its end checks that
}
