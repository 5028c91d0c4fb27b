//go:build integration

package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon"
	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// TestMain makes this process one that can make sandboxes.
func TestMain(m *testing.M) {
	if err := runc.SealSelf(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// host is both sides of a daemon in this process: the root side, and a worker that is not
// confined.
type host struct {
	t       *testing.T
	daemon  *daemon.Daemon
	worker  *worker
	url     string // of the endpoint
	program string // folder of the code
}

// newHost starts them. A process has one: it sees only its daemon's cgroups afterwards. At
// the end of the test everything is closed, and nothing may be left.
func newHost(t *testing.T) *host {
	t.Helper()
	root, err := os.MkdirTemp("", "functions") // sandbox users pass through
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	h := &host{t: t, program: filepath.Join(root, "code")}
	build := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(h.program, "bootstrap"), "./testdata/named")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := errors.Join(os.Chmod(root, 0o711), os.Chmod(h.program, 0o755)); err != nil {
		t.Fatal(err)
	}
	detected, err := runc.DetectHost()
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	defaults := rapid.DefaultSettings()
	config := message.WorkerConfig{
		Region: "us-east-1", AccountID: "123456789012", Descriptors: "pipe", LogFormat: "Text", Concurrency: 8,
		Networks: map[string]isolation.Network{"none": {Mode: isolation.NetworkNone}},
		Life: message.Life{InitTimeout: defaults.InitTimeout, Linger: defaults.Linger, InternalWindow: defaults.InternalWindow,
			ExternalWindow: defaults.ExternalWindow, RuntimeShare: defaults.RuntimeShare},
	}
	h.daemon, err = daemon.Open(t.Context(), daemon.Config{
		Host: detected, StateDir: filepath.Join(root, "state"), RunDir: filepath.Join(root, "run"), IDBase: subid.DefaultIDBase,
		Pool: 1, Networks: []daemon.Network{{Name: "none", Network: config.Networks["none"]}}, Worker: config,
	}, log)
	if err != nil {
		t.Fatal(err)
	}
	server, line, err := h.daemon.Line(0, config.Concurrency)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- h.daemon.Serve(server, func() {}) }()
	client, err := privsep.NewClient(line, message.Sandboxes(config.Concurrency))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := memory.Open()
	if err != nil {
		t.Fatal(err)
	}
	drain, stop := context.WithCancel(context.Background())
	h.worker = &worker{config: &config, client: client, log: log, stderr: logging.NewLineWriter(t.Output()), drain: drain, memory: mem}
	h.worker.functions = newFunctions(h.worker, nil, nil)
	endpoint := httptest.NewServer(invoke.New(invoke.Config{Functions: h.worker.functions, Region: "us-east-1", AccountID: "123456789012",
		OnError: func(err error) { log.Warn(err) }}))
	h.url = endpoint.URL
	t.Cleanup(func() {
		endpoint.Close()
		if err := h.worker.functions.shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		stop()
		client.Close()
		mem.Close()
		if err := errors.Join(<-served, h.daemon.Close(context.Background())); err != nil {
			t.Error(err)
		}
		left, err := os.ReadDir(filepath.Join(root, "run"))
		for _, e := range left {
			if e.Name() != "lock" {
				t.Errorf("%s is left in the run folder", e.Name())
			}
		}
		if err != nil {
			t.Error(err)
		}
	})
	return h
}

// prepare makes a revision of the function of that name, which answers with who.
func (h *host) prepare(name, who string, change func(*function.Settings)) *function.Revision {
	h.t.Helper()
	s := function.Defaults()
	s.Name, s.Env, s.Timeout, s.Concurrency = name, map[string]string{"WHO": who}, 20*time.Second, 4
	if change != nil {
		change(&s)
	}
	if err := s.Validate(); err != nil {
		h.t.Fatal(err)
	}
	rev, err := h.daemon.Prepare(h.t.Context(), daemon.Function{Settings: s, Source: daemon.Source{Code: h.program, Base: rootfs.HostBase}})
	if err != nil {
		h.t.Fatal(err)
	}
	return rev
}

func (h *host) put(rev *function.Revision) {
	h.t.Helper()
	if err := h.worker.functions.put(h.t.Context(), rev); err != nil {
		h.t.Fatal(err)
	}
}

// invoke returns what the function answers, or the status if that is not 200.
func (h *host) invoke(name, event string) string {
	resp, err := http.Post(h.url+"/2015-03-31/functions/"+name+"/invocations", "application/json", strings.NewReader(event))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("X-Amz-Function-Error") != "" {
		return fmt.Sprintf("%d %s", resp.StatusCode, body)
	}
	return strings.Trim(string(body), `"`)
}

func (h *host) want(name, event, want string) {
	h.t.Helper()
	if got := h.invoke(name, event); got != want {
		h.t.Errorf("%s answers %q, want %q", name, got, want)
	}
}

// gone waits until the revision has no sandboxes any more.
func (h *host) gone(rev *function.Revision) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // nothing tells of a sandbox's end
		sandboxes := 0
		for _, s := range h.worker.functions.all() {
			if s.rev.ID == rev.ID {
				sandboxes += len(s.fleet.Stats())
			}
		}
		if sandboxes == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("revision %v has %d sandboxes still", rev.ID, sandboxes)
		}
	}
}

// Several functions live in one worker: their revisions are added, swapped and drained while
// it runs.
func TestFunctions(t *testing.T) {
	h := newHost(t)
	large := func(s *function.Settings) { s.MemoryMB, s.EphemeralMB = 256, 1024 } // of another shape
	a1, b1 := h.prepare("a", "a1", nil), h.prepare("b", "b1", large)
	h.put(a1)
	h.put(b1)

	t.Run("each answers for itself", func(t *testing.T) {
		h := h.in(t)
		var calls sync.WaitGroup
		for range 3 {
			for _, name := range []string{"a", "b"} {
				calls.Go(func() {
					for range 5 {
						h.want(name, "{}", name+"1")
					}
				})
			}
		}
		calls.Wait()
		h.want("c", "{}", `404 {"Type":"User","Message":"Function not found: arn:aws:lambda:us-east-1:123456789012:function:c:$LATEST"}`)
		h.want("function", "{}", `404 {"Type":"User","Message":"Function not found: arn:aws:lambda:us-east-1:123456789012:function:function:$LATEST"}`)
		facts := h.facts()
		if facts[a1.ID] == 0 || facts[b1.ID] == 0 {
			t.Errorf("the supervisor knows of the sandboxes %v", facts)
		}
	})

	t.Run("a swap loses nothing", func(t *testing.T) {
		h := h.in(t)
		a2 := h.prepare("a", "a2", nil)
		slow := make(chan string, 1)
		go func() { slow <- h.invoke("a", `{"MS":3000}`) }()
		h.busy(a1, 1)
		var stop, calls sync.WaitGroup
		swapped := make(chan struct{})
		stop.Add(1)
		for range 3 {
			calls.Go(func() {
				for after := 0; after < 5; {
					began := false
					select {
					case <-swapped:
						began = true
						after++
					default:
					}
					if got := h.invoke("a", "{}"); got != "a2" && (began || got != "a1") {
						t.Errorf("a request answers %q; it began after the swap: %v", got, began)
					}
				}
			})
		}
		h.put(a2)
		close(swapped)
		calls.Wait()
		if got := <-slow; got != "a1" {
			t.Errorf("what ran during the swap answers %q, want a1", got)
		}
		h.gone(a1)
		if err := h.daemon.Retire(a1.ID); err != nil {
			t.Error(err)
		}
		if _, err := h.worker.client.Create(t.Context(), a1.ID.Number); !errors.Is(err, message.ErrUnknownRevision) {
			t.Errorf("a sandbox of the old revision: %v", err)
		}
		h.want("a", "{}", "a2")
		h.want("b", "{}", "b1")
	})

	t.Run("a request that waits for the old one runs in the new", func(t *testing.T) {
		h := h.in(t)
		one := func(s *function.Settings) { s.Concurrency = 1 }
		c1, c2 := h.prepare("c", "c1", one), h.prepare("c", "c2", one)
		h.put(c1)
		h.want("c", "{}", "c1")
		s := h.worker.functions.find("c")
		held, err := s.fleet.Reserve(t.Context(), "") // the only place
		if err != nil {
			t.Fatal(err)
		}
		next, err := h.worker.functions.Lease(t.Context(), "c", "", "")
		if !errors.Is(err, invoke.ErrTooMany) {
			t.Fatalf("a second lease of one: %v, %v", next, err)
		}
		h.put(c2)
		h.want("c", "{}", "c2")
		res, err := held.Invoke(&rapid.Invocation{ID: "held", Payload: []byte("{}"), Arrived: time.Now()})
		if err != nil || string(res.Payload) != `"c1"` {
			t.Errorf("the lease of the old one: %v, %v", res, err)
		}
		if _, err := s.fleet.Reserve(t.Context(), ""); !errors.Is(err, fleet.ErrClosed) {
			t.Errorf("another lease of the old one: %v", err)
		}
		h.gone(c1)
		h.worker.functions.remove("c")
	})

	t.Run("a function that is removed is gone", func(t *testing.T) {
		h := h.in(t)
		slow := make(chan string, 1)
		go func() { slow <- h.invoke("b", `{"MS":1000}`) }()
		h.busy(b1, 1)
		h.worker.functions.remove("b")
		if got := h.invoke("b", "{}"); !strings.HasPrefix(got, "404 ") {
			t.Errorf("b answers %q after its end", got)
		}
		if got := <-slow; got != "b1" {
			t.Errorf("what ran at its end answers %q", got)
		}
		h.gone(b1)
		h.want("function", "{}", "a2") // the only one has a second name
	})

	t.Run("functions are learned on demand", func(t *testing.T) { onDemand(t, h.in(t)) })

	t.Run("one that cannot start harms no other", func(t *testing.T) {
		h := h.in(t)
		broken := *h.prepare("broken", "x", nil)
		broken.ID.Number = 1 << 40 // root has never heard of it
		h.put(&broken)
		if got := h.invoke("broken", "{}"); !strings.HasPrefix(got, "500 ") {
			t.Errorf("%q", got)
		}
		h.want("a", "{}", "a2")
		never := h.prepare("never", "x", func(s *function.Settings) { s.Provisioned = 1 })
		never.Program.Bootstrap.Path = "/var/task/missing"
		if err := h.worker.functions.put(t.Context(), never); !errors.Is(err, fleet.ErrNotReady) {
			t.Errorf("a revision whose provisioned sandbox does not initialize: %v", err)
		}
		if got := h.invoke("never", "{}"); !strings.HasPrefix(got, "404 ") {
			t.Errorf("it serves: %q", got)
		}
		h.want("a", "{}", "a2")
	})
}

// preparedControl answers with revisions that host.prepare has made, whose variables it keeps.
type preparedControl struct {
	h *host

	mu      sync.Mutex
	current map[string]*function.Revision
	secrets map[uint64]func() map[string]string // makes the variables of a revision
	retired []uint64
}

func (c *preparedControl) resolve(_ context.Context, name, _ string) (*message.Resolved, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rev := c.current[name]
	if rev == nil {
		return nil, &invoke.Fault{Status: http.StatusNotFound, Type: "ResourceNotFoundException", Message: name}
	}
	without := *rev
	without.Env = nil
	return &message.Resolved{Revision: without, Reserved: -1}, nil
}

func (c *preparedControl) environment(_ context.Context, number uint64) (map[string]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.secrets[number](), nil
}

func (c *preparedControl) retire(_ context.Context, number uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = append(c.retired, number)
	for _, rev := range c.current {
		if rev.ID.Number == number {
			return c.h.daemon.Retire(rev.ID)
		}
	}
	return nil
}

// sandboxGoroutines counts the goroutines of the worker's sandboxes. Others are in this process
// too: the root side, which makes sandboxes ahead of need.
func sandboxGoroutines() int {
	all := make([]byte, 4<<20)
	n := 0
	for g := range bytes.SplitSeq(all[:runtime.Stack(all, true)], []byte("\n\n")) {
		if bytes.Contains(g, []byte("sandboxd/rapid")) || bytes.Contains(g, []byte("sandboxd/fleet")) || bytes.Contains(g, []byte("worker.(*sandbox)")) {
			n++
		}
	}
	return n
}

// onDemand tests functions that are learned of a control process, with real sandboxes.
func onDemand(t *testing.T, h *host) {
	c := &preparedControl{h: h, current: map[string]*function.Revision{}, secrets: map[uint64]func() map[string]string{}}
	gone := make(chan string, 10)
	add := func(name, who string) {
		rev := h.prepare(name, who, nil)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.current[name] = rev
		c.secrets[rev.ID.Number] = func() map[string]string {
			value := strings.Clone(who + strings.Repeat(" ", 64)) // with memory of its own
			runtime.AddCleanup(unsafe.StringData(value), func(who string) { gone <- who }, who)
			return map[string]string{"WHO": value}
		}
	}
	w := *h.worker
	config := *h.worker.config
	w.config, config.Control, config.Concurrency, config.IdleTimeout = &config, true, 2, time.Hour
	f := newFunctions(&w, nil, c)
	w.functions = f
	run := func(name string) string {
		l, err := f.Lease(t.Context(), name, "", "")
		if err != nil {
			return err.Error()
		}
		res, err := l.Invoke(&rapid.Invocation{ID: "n", Payload: []byte("{}"), Arrived: time.Now()})
		if err != nil {
			return err.Error()
		}
		<-res.Done
		return strings.TrimSpace(strings.Trim(string(res.Payload), `"`))
	}
	want := func(name, want string) {
		t.Helper()
		if got := run(name); got != want {
			t.Errorf("%s answers %q, want %q", name, got, want)
		}
	}
	// nothing waits until no sandbox is left.
	nothing := func() {
		t.Helper()
		for _, s := range f.all() {
			for _, i := range s.fleet.Idlers() {
				s.fleet.CloseIdle(i)
			}
			waitFor(t, "a sandbox is removed", func() string {
				if _, unused := s.fleet.Unused(); !unused {
					return s.rev.Name + " has sandboxes"
				}
				return ""
			})
		}
	}
	add("d1", "one")
	add("d2", "two")
	add("d3", "three")
	want("d1", "one")
	want("d2", "two")
	want("d3", "three") // the longest idle one made room
	names := []string{}
	for _, s := range f.all() {
		if _, unused := s.fleet.Unused(); !unused && len(s.fleet.Idlers()) > 0 {
			names = append(names, s.rev.Name)
		}
	}
	slices.Sort(names)
	if !slices.Equal(names, []string{"d2", "d3"}) {
		t.Errorf("idle are the sandboxes of %q, want d2 and d3", names)
	}

	// An update: what is invoked after the switch runs the new code.
	old := c.current["d2"]
	add("d2", "new")
	want("d2", "two")
	f.switchTo(message.Switch{Name: "d2", Number: c.current["d2"].ID.Number})
	want("d2", "new")

	// Without sandboxes nothing is left of a function but an entry: no variables, no goroutine.
	nothing()
	want("d3", "three")
	nothing()
	left := map[string]bool{"one": true, "two": true, "three": true, "new": true}
	waitFor(t, "the variables are gone", func() string {
		runtime.GC()
		for len(gone) > 0 {
			delete(left, <-gone)
		}
		if len(left) > 0 {
			return fmt.Sprint("left are ", left)
		}
		return ""
	})
	goroutines := sandboxGoroutines()
	for i := range 5 {
		name := fmt.Sprint("idle", i)
		add(name, name)
		want(name, name)
		nothing()
	}
	waitFor(t, "idle functions cost nothing", func() string {
		if n := sandboxGoroutines(); n > goroutines {
			return fmt.Sprintf("%d goroutines of sandboxes, were %d", n, goroutines)
		}
		return ""
	})
	f.dropUnused(time.Nanosecond)
	waitFor(t, "functions are forgotten", func() string {
		if n := len(f.all()); n > 0 {
			return fmt.Sprint(n, " are known")
		}
		return ""
	})
	if err := f.shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.retired, old.ID.Number) || len(c.retired) != 9 { // d1, d2 twice, d3, and five
		t.Errorf("retired are %v, want all of nine with %d", c.retired, old.ID.Number)
	}
}

// waitFor waits until check returns "", for which there is no event.
func waitFor(t *testing.T, what string, check func() string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		problem := check()
		if problem == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s", what, problem)
		}
	}
}

// in is h for a subtest.
func (h *host) in(t *testing.T) *host {
	sub := *h
	sub.t = t
	return &sub
}

// busy waits until the revision has so many sandboxes with an invocation.
func (h *host) busy(rev *function.Revision, n int) {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // nothing tells of an invocation's begin
		busy := 0
		for _, s := range h.worker.functions.all() {
			for _, st := range s.fleet.Stats() {
				if s.rev.ID == rev.ID && st.State == rapid.Invoking.String() {
					busy++
				}
			}
		}
		if busy >= n {
			return
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("%d sandboxes of %v are busy, want %d", busy, rev.ID, n)
		}
	}
}

// facts counts the sandboxes that the supervisor says there are, by revision.
func (h *host) facts() map[function.ID]int {
	h.t.Helper()
	count := map[function.ID]int{}
	for _, f := range h.daemon.Facts() {
		count[f.Revision]++
	}
	return count
}
