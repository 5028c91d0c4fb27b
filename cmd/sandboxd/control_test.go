package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/host/inspect"
	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// serveList is a daemon that answers with a list.
func serveList(t *testing.T, runDir string, list any) *instance.Instance {
	t.Helper()
	i, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	l, err := net.Listen("unix", i.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if list == nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(list)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return i
}

// ps asks all daemons that live, leaves out those that do not serve yet, and tells
// which did not answer.
func TestListAll(t *testing.T) {
	runDir := t.TempDir()
	if list, err := listAll(t.Context(), runDir); err != nil || list == nil || len(list) != 0 {
		t.Fatalf("no daemon: %v, %v", list, err)
	}
	now := time.Now()
	serveList(t, runDir, []sandboxInfo{{ID: "b", Created: now}})
	serveList(t, runDir, []sandboxInfo{{ID: "a", Created: now.Add(-time.Hour)}})
	starting, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	defer starting.Close()
	dead, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	dead.Abandon()
	list, err := listAll(t.Context(), runDir)
	if err != nil || len(list) != 2 || list[0].ID != "a" {
		t.Errorf("%+v, %v; want a and b", list, err)
	}
	broken := serveList(t, runDir, nil)
	list, err = listAll(t.Context(), runDir)
	if err == nil || !strings.Contains(err.Error(), broken.ID()) || len(list) != 2 {
		t.Errorf("%+v, %v; want a and b, and an error that names %s", list, err, broken.ID())
	}
}

func TestControlServer(t *testing.T) {
	i, err := instance.Acquire(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	log := logrus.New()
	log.SetOutput(io.Discard)
	l, err := listenControl(i.ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	q := newQuarantine(log)
	ours, line, err := privsep.Pair()
	if err != nil {
		t.Fatal(err)
	}
	server, err := privsep.NewServer(ours, privsep.Config{Held: q.list})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- server.Serve(func() {}) }()
	client, err := privsep.NewClient(line, 1)
	if err != nil {
		t.Fatal(err)
	}
	c := startControl(&worker{log: log, client: client, fleet: fleet.New(fleet.Config{}), factory: &factory{}}, l)
	if fi, err := os.Stat(i.ControlSocket()); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
	}
	if list, err := ask(t.Context(), i.ControlSocket()); err != nil || list == nil || len(list) != 0 {
		t.Errorf("%v, %v; want an empty list", list, err)
	}
	busy := func(context.Context) error { return errors.New("busy") }
	_ = q.admit("stays", busy(t.Context()), busy)
	if list, err := ask(t.Context(), i.ControlSocket()); err != nil || len(list) != 1 || list[0].ID != "stays" || list[0].State != "Quarantined" {
		t.Errorf("%v, %v; want the sandbox in quarantine", list, err)
	}
	_ = q.close(t.Context()) // it stays, and says so
	c.close()
	client.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := ask(t.Context(), i.ControlSocket()); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("after close: %v, want it refused", err)
	}
}

// scarceListener fails a few times before it accepts.
type scarceListener struct {
	net.Listener
	fails atomic.Int32
}

func (l *scarceListener) Accept() (net.Conn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.ENOMEM)}
	}
	return l.Listener.Accept()
}

// ps and inspect work again when the kernel has memory again.
func TestControlSurvivesTemporaryErrors(t *testing.T) {
	var text bytes.Buffer
	log := logrus.New()
	log.SetOutput(&text)
	path := filepath.Join(t.TempDir(), "control")
	l, err := listenControl(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &scarceListener{Listener: l}
	s.fails.Store(3)
	c := startControl(&worker{log: log}, s)
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport, Timeout: 20 * time.Second}).Get("http://sandboxd/nowhere")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	c.close()
	if got := text.String(); resp.StatusCode != http.StatusNotFound || strings.Count(got, "cannot allocate memory") != 1 {
		t.Errorf("%s, log %q; want an answer and one line", resp.Status, got)
	}
}

func TestFindSandbox(t *testing.T) {
	list := []sandboxInfo{{ID: "fn-1"}, {ID: "fn-12"}, {ID: "other-3"}}
	for prefix, want := range map[string]string{"fn-1": "fn-1", "other": "other-3", "fn-12": "fn-12"} {
		if got, err := findSandbox(list, prefix); err != nil || got.ID != want {
			t.Errorf("%s: %v, %v; want %s", prefix, got.ID, err, want)
		}
	}
	for prefix, want := range map[string]string{"fn": "2 sandboxes", "x": "no sandbox"} {
		if _, err := findSandbox(list, prefix); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", prefix, err, want)
		}
	}
}

func TestTables(t *testing.T) {
	now := time.Now()
	var b bytes.Buffer
	info := sandboxInfo{ID: "fn-1", Function: "fn", State: "Idle", PIDs: 7, MemoryBytes: 5 << 20, Created: now.Add(-90 * time.Second), Invocations: 3, Instance: "aabbccdd"}
	if err := printSandboxes(&b, []sandboxInfo{info}, now); err != nil {
		t.Fatal(err)
	}
	if want := "fn-1     fn        Idle   7     5.0 MB  1m30s  3            aabbccdd\n"; !strings.HasSuffix(b.String(), want) {
		t.Errorf("ps:\n%swant %s", b.String(), want)
	}

	b.Reset()
	p := inspect.Process{
		Domain: "runtime", Role: inspect.RoleRuntime, PID: 42, PIDInside: 7, Command: "a\x1b[31m\n",
		Namespaces: []inspect.Namespace{{Kind: "user", Own: true}, {Kind: "net"}},
		UID:        inspect.ID{Host: 1000, Inside: 993}, Seccomp: "filter", NoNewPrivs: true, RootReadOnly: true,
		Cgroup: inspect.Cgroup{Path: "/c", MemoryBytes: 128 << 20, MemoryAndSwapBytes: 128 << 20, CPUs: 0.0723, PIDs: 1036, Frozen: true},
	}
	if err := printInspection(&b, inspection{info, []inspect.Process{p, p}}); err != nil {
		t.Fatal(err)
	}
	out := b.String()
	for _, want := range []string{"a?[31m?", "1000 (993)", "user (the host's: net)", "none", "read-only", "128.0 MB  off   0.072  1036  yes"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect has no %q:\n%s", want, out)
		}
	}
	if strings.Count(out, "/c ") != 1 {
		t.Errorf("a cgroup of two processes must be told once:\n%s", out)
	}
}
