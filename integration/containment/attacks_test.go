//go:build integration

package containment

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/integration/internal/harness"
	"github.com/sandboxd/sandboxd/internal/testdaemon"
	"github.com/sandboxd/sandboxd/internal/testtime"
)

// size is how much of an attack is carried out: a part that CI can bear, or with
// `make attack` the whole.
func size(t *testing.T, part, whole int) int64 {
	t.Helper()
	if wholeAttack() {
		return int64(whole)
	}
	return int64(harness.Rounds(t, part))
}

func wholeAttack() bool { return os.Getenv("SANDBOXD_ATTACK") == "whole" }

// anonymous is the memory of the daemon that is not of a file, in bytes.
func anonymous(d *harness.Daemon) int64 {
	d.T.Helper()
	return d.Sum("RssAnon") << 10
}

// wantGrownLess checks what the attacks leave in the daemon (SEC-51). Garbage is not counted: the
// invocations of d make Go's collector run, and what it frees goes back to the host.
func wantGrownLess(d *harness.Daemon, before int64) {
	d.T.Helper()
	const most = 16 << 20
	var grown int64
	harness.Eventually(d.T, testtime.Limit(30*time.Second), func() string {
		if grown = anonymous(d) - before; grown < most {
			return ""
		}
		d.InvokeMany(20, 1)
		return fmt.Sprintf("the daemon has grown by %.1f MiB, want less than 16", float64(grown)/(1<<20))
	})
	d.T.Logf("the daemon has grown by %.1f MiB", float64(grown)/(1<<20))
}

// SEC-50, beside TestACC23Exhaustion. One function after
// the other tries to use something up; the daemon and another function do not notice.
func TestAttackExhaustion(t *testing.T) {
	n := newNeighbour(t)
	d := harness.Start(t, "--memory=512", "--timeout=300s", harness.Function(t))
	d.InvokeMany(20, 1)
	before := anonymous(d)
	one := func(s script.Step) script.Entry { t.Helper(); return d.Do(s).Results[0] }
	for _, attack := range []struct {
		name string
		do   func(t *testing.T)
	}{
		{"threads", func(t *testing.T) {
			a := d.Invoke(script.Event{Report: true, Steps: []script.Step{{Op: "threads", N: 3000}}})
			a.WantError(t, "Runtime.ExitError", "RequestId: <id> Error: Runtime exited with error: exit status 2")
		}},
		{"/dev/shm", func(t *testing.T) {
			if r := one(script.Step{Op: "fill", Path: "/dev/shm/full", N: 1 << 30}); syscall.Errno(r.Errno) != syscall.ENOSPC || r.N > 16<<20 {
				t.Errorf("%+v; want ENOSPC at 16 MiB", r)
			}
			if r := one(script.Step{Op: "fill_inodes", Path: "/dev/shm/inodes", N: 1 << 20}); syscall.Errno(r.Errno) != syscall.ENOSPC || r.N > 1024 {
				t.Errorf("%+v; want ENOSPC before 1,024 files", r)
			}
		}},
		{"inotify", func(t *testing.T) {
			if r := one(script.Step{Op: "watch", N: 500}); syscall.Errno(r.Errno) != syscall.EMFILE || r.N > 16 {
				t.Errorf("%+v; want EMFILE at 16 instances", r)
			}
		}},
		{"pipe pages", func(t *testing.T) {
			if r := one(script.Step{Op: "pipes", N: 450}); r.Error != "" || r.N > 128<<20 {
				t.Errorf("%+v; want the kernel's quota for one user, 64 MiB, or a little more", r)
			}
		}},
		{"CPU", func(t *testing.T) {
			if r := one(script.Step{Op: "spin", N: 16, MS: 1500}); cpus(r) > 0.4 { // 512 MB are 0.29 CPUs
				t.Errorf("%d ms of CPU in %v", r.N, r.Took())
			}
		}},
		{"standard error", func(t *testing.T) {
			if r := one(script.Step{Op: "flood", N: size(t, 64<<20, 512<<20), MS: 1000}); r.Error != "" {
				t.Errorf("%+v", r)
			}
		}},
		{"one endless line", func(t *testing.T) {
			if r := one(script.Step{Op: "flood", N: size(t, 64<<20, 512<<20)}); r.Error != "" {
				t.Errorf("%+v", r)
			}
		}},
		{"orphans", func(t *testing.T) {
			for range size(t, 5, 100) {
				if r := one(script.Step{Op: "orphans", N: 20}); r.Error != "" {
					t.Errorf("%+v", r)
				}
			}
			harness.Eventually(t, harness.Patience, func() string {
				d.Do()                                      // what died as the sandbox froze is reaped when it thaws
				if guests := d.Guests(); len(guests) != 1 { // zombies would be there too
					return fmt.Sprintf("%d processes in the sandbox, want 1", len(guests))
				}
				return ""
			})
		}},
	} {
		t.Run(attack.name, func(t *testing.T) {
			attack.do(t)
			n.check(t)
			for _, r := range n.d.Do(script.Step{Op: "watch", N: 10}, script.Step{Op: "pipes", N: 8}, script.Step{Op: "threads", N: 100}).Results {
				if r.Error != "" {
					t.Errorf("neighbour: %+v", r)
				}
			}
			d.Do()
			wantGrownLess(d, before)
		})
	}
}

// The control: on the host the same steps of the same program meet none of the limits.
func TestAttackExhaustionOutside(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "control")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(shm)
	for _, r := range outside(t, naiveAPI(t),
		script.Step{Op: "threads", N: 1500},
		script.Step{Op: "fill", Path: filepath.Join(shm, "full"), N: 24 << 20},
		script.Step{Op: "watch", N: 17},
		script.Step{Op: "open", N: 2000},
	) {
		if r.Error != "" {
			t.Errorf("%+v", r)
		}
	}
}

// naive is a Runtime API without any defence, as one writes it in an afternoon. It
// hands out one event and keeps the answer to it.
type naive struct {
	addr   string
	event  chan []byte
	answer chan []byte
}

func naiveAPI(t *testing.T) *naive {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &naive{addr: l.Addr().String(), event: make(chan []byte, 1), answer: make(chan []byte, 1)}
	server := &http.Server{MaxHeaderBytes: 64 << 20, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		switch {
		case strings.HasSuffix(r.URL.Path, "/next"):
			select {
			case event := <-n.event:
				w.Header().Set("Lambda-Runtime-Aws-Request-Id", "control")
				w.Header().Set("Lambda-Runtime-Deadline-Ms", "0")
				_, _ = w.Write(event) // the control ends if it fails
			case <-r.Context().Done():
			}
		case strings.HasSuffix(r.URL.Path, "/control/response"):
			w.WriteHeader(http.StatusAccepted)
			n.answer <- body
		case strings.HasSuffix(r.URL.Path, "/response"):
			w.WriteHeader(http.StatusAccepted)
		}
	})}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	t.Cleanup(func() {
		_ = server.Close()
		wg.Wait()
	})
	return n
}

// outside lets the scripted function do steps as a plain process of the host.
func outside(t *testing.T, api *naive, steps ...script.Step) script.Entries {
	t.Helper()
	dir := t.TempDir()
	p := testdaemon.New(exec.Command("sh", "-c", `ulimit -n 10000; exec "$0"`, filepath.Join(harness.Testbin, harness.Actor)))
	p.Cmd.Env = append(os.Environ(), "AWS_LAMBDA_RUNTIME_API="+api.addr, "TMPDIR="+dir)
	p.Cmd.Dir = dir
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	defer p.Kill()
	api.event <- []byte(script.Encode(script.Event{Report: true, Steps: steps}))
	var report script.Report
	select {
	case <-p.Done():
		t.Fatalf("the function ended: %v; it printed:\n%s", p.Cmd.ProcessState, p.Log.Text())
	case answer := <-api.answer:
		if err := json.Unmarshal(answer, &report); err != nil {
			t.Error(err)
		}
	}
	return report.Results
}
