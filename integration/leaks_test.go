//go:build integration

package integration

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// config writes a configuration file with what only such a file can set.
func config(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	writeFile(t, path, []byte(text), 0o644)
	return "--config=" + path
}

// waitEmpty waits until the daemon has no sandbox.
func (d *daemon) waitEmpty() {
	d.t.Helper()
	eventually(d.t, patience, func() string {
		if n := len(d.inits()) + len(d.guests()); n > 0 {
			return fmt.Sprintf("%d processes in sandboxes", n)
		}
		return ""
	})
}

// wantFDsBack waits until the daemon has no more descriptors of any kind than before.
func (d *daemon) wantFDsBack(before map[string]int) {
	d.t.Helper()
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(scaled(d.t, 5*time.Second))
	for {
		more := d.fds()
		maps.DeleteFunc(more, func(kind string, n int) bool { return n <= before[kind] })
		if len(more) == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Errorf("descriptors leaked: now %v, before %v", more, before)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// goroutines ends both processes of the daemon with SIGQUIT and counts the goroutines
// of their dumps, by where each was created.
func (d *daemon) goroutines() map[string]int {
	d.t.Helper()
	w := d.worker()
	d.signal(syscall.SIGSTOP) // it must not end the other's way
	if err := syscall.Kill(w.pid, syscall.SIGQUIT); err != nil {
		d.t.Fatal(err)
	}
	eventually(d.t, patience, func() string {
		if w.alive() {
			return "the worker is alive after SIGQUIT"
		}
		return ""
	})
	d.signal(syscall.SIGQUIT)
	d.signal(syscall.SIGCONT)
	d.waitExit()
	count := make(map[string]int)
	created := regexp.MustCompile(`(?m)^created by (\S+)`)
	dumps := strings.Split(d.Log.Text(), "SIGQUIT: quit")
	if len(dumps) != 3 {
		d.t.Fatalf("%d goroutine dumps after SIGQUIT, want one of each process", len(dumps)-1)
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

// Leak budget 0 (issue 2; REQUIREMENTS section 5): 1,000 invocations and 50
// sandboxes made and closed leave no process, cgroup, mount, namespace, descriptor
// or goroutine more than one of each does.
func TestNothingLeaks(t *testing.T) {
	code := function(t)
	folders := newFolders(t)
	serve := func() *daemon {
		return startIn(t, folders, "--memory=512", "--concurrency=4", "--linger=0s", config(t, "idle-timeout: 100ms\n"), code)
	}
	cycle := func(d *daemon, times int) {
		for range times {
			d.do()
			d.waitEmpty()
		}
	}

	control := serve()
	control.invokeMany(4, 4)
	control.waitEmpty()
	cycle(control, 1)
	few := control.goroutines()

	d := serve()
	d.invokeMany(4, 4)
	d.waitEmpty()
	cycle(d, 1)
	http.DefaultClient.CloseIdleConnections()
	before, tree := d.fds(), d.files()
	d.invokeMany(rounds(t, 1000), 4)
	d.waitEmpty()
	cycle(d, rounds(t, 50))
	d.wantFDsBack(before)
	if after := d.files(); !slices.Equal(after, tree) {
		t.Errorf("files %q, before %q", after, tree)
	}
	many := d.goroutines()
	for by, n := range many {
		if n > few[by] {
			t.Errorf("%d goroutines created by %s, %d after one sandbox", n, by, few[by])
		}
	}
	serve() // removes what SIGQUIT has left; its end checks that
}

// invokeMany makes n invocations, up to parallel at once, and wants every payload
// back at its own caller, each under an id of its own.
func (d *daemon) invokeMany(n, parallel int) {
	d.t.Helper()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		ids  = make(map[string]bool)
		next = make(chan int)
	)
	for range parallel {
		wg.Go(func() {
			for i := range next {
				payload := fmt.Sprintf("payload %d", i)
				a, err := d.request(payload)
				if err != nil || a.status != http.StatusOK || string(a.body) != script.Encode(payload) {
					d.t.Errorf("invocation %d: %v, status %d, %s", i, err, a.status, a.body)
				}
				mu.Lock()
				if ids[a.id()] {
					d.t.Errorf("request id %s twice", a.id())
				}
				ids[a.id()] = true
				mu.Unlock()
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
}

// files lists what lies in the daemon's folders.
func (d *daemon) files() []string {
	d.t.Helper()
	var list []string
	for _, dir := range []string{d.folders.State, d.folders.Run} {
		err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			list = append(list, path)
			return err
		})
		if err != nil {
			d.t.Fatal(err)
		}
	}
	return list
}
