package admin

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/instance"
)

// daemon is an instance that serves facts and reports; either may be nil, which is not served.
func daemon(t *testing.T, runDir string, facts []Fact, report any) *instance.Instance {
	t.Helper()
	i, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	failed := func(err error) { t.Error(err) }
	if facts != nil {
		l, err := Listen(i.Info().FactSocket())
		if err != nil {
			t.Fatal(err)
		}
		s := ServeFacts(l, func() []Fact { return facts }, failed)
		t.Cleanup(s.Close)
	}
	if report == nil {
		return i
	}
	l, err := Listen(i.Info().ControlSocket())
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := report.(Report); ok {
		s := ServeReports(l, func() Report { return r }, failed)
		t.Cleanup(s.Close)
		return i
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err, ok := report.(error); ok {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		json.NewEncoder(w).Encode(report)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return i
}

// ps asks all daemons that live, leaves out those that do not serve yet, and tells which
// did not answer.
func TestList(t *testing.T) {
	runDir := t.TempDir()
	if list, err := List(t.Context(), runDir); err != nil || list == nil || len(list) != 0 {
		t.Fatalf("no daemon: %v, %v", list, err)
	}
	now := time.Now()
	daemon(t, runDir, []Fact{{ID: "b", Created: now}}, Report{Sandboxes: []State{{ID: "b", State: "Idle"}}})
	daemon(t, runDir, []Fact{{ID: "a", Created: now.Add(-time.Hour)}}, Report{})
	starting := daemon(t, runDir, nil, nil)
	dead, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	dead.Abandon()
	list, err := List(t.Context(), runDir)
	if err != nil || len(list) != 2 || list[0].ID != "a" || list[0].State != StateUnknown || list[1].State != "Idle" {
		t.Errorf("%+v, %v; want a and b", list, err)
	}
	if _, err := askFacts(t.Context(), starting.Info().FactSocket()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("one that starts: %v", err)
	}
	silent := daemon(t, runDir, []Fact{{ID: "c", Created: now}}, errors.New("no"))
	list, err = List(t.Context(), runDir)
	if err == nil || !strings.Contains(err.Error(), silent.ID()) || len(list) != 3 {
		t.Errorf("%+v, %v; want all three, and an error that names %s", list, err, silent.ID())
	}
}

// D3: a worker that was taken over can lead no command to a process: neither by a sandbox
// that there is not, nor by what it says of one that there is.
func TestWorkerLies(t *testing.T) {
	runDir := t.TempDir()
	id := function.ID{Epoch: 1, Number: 7}
	type lie struct {
		State
		Cgroup string         `json:"cgroup"`
		Init   map[string]int `json:"init"`
		PIDs   uint64         `json:"pids"`
	}
	daemon(t, runDir, []Fact{{ID: "fn-1", Revision: id, Cgroup: "/sandboxd/x/fn-1", Init: map[string]int{"runtime": 42}, PIDs: 3}}, map[string]any{
		"functions": map[uint64]string{7: "fn"},
		"sandboxes": []lie{
			{State{ID: "fn-1", State: "Idle", Invocations: 5}, "/", map[string]int{"runtime": 1}, 99},
			{State{ID: "decoy", State: "Idle"}, "/", map[string]int{"runtime": 1}, 1},
		},
	})
	list, err := List(t.Context(), runDir)
	if err != nil || len(list) != 1 {
		t.Fatalf("%+v, %v; want one sandbox", list, err)
	}
	s := list[0]
	if s.ID != "fn-1" || s.Cgroup != "/sandboxd/x/fn-1" || s.Init["runtime"] != 42 || s.PIDs != 3 {
		t.Errorf("%+v has what the worker says", s)
	}
	if s.Function != "fn" || s.State != "Idle" || s.Invocations != 5 {
		t.Errorf("%+v lacks what only the worker knows", s)
	}
}

func TestQuarantined(t *testing.T) {
	runDir := t.TempDir()
	daemon(t, runDir, []Fact{{ID: "stays", Quarantined: true}}, Report{})
	if list, err := List(t.Context(), runDir); err != nil || len(list) != 1 || list[0].State != StateQuarantined {
		t.Errorf("%+v, %v", list, err)
	}
}

// A daemon of 0.1.0 has no fact socket, and its worker gives a list.
func TestEarlierVersion(t *testing.T) {
	runDir := t.TempDir()
	daemon(t, runDir, nil, []State{{ID: "fn-1", State: "Idle"}})
	if list, err := List(t.Context(), runDir); err == nil || !strings.Contains(err.Error(), "earlier version") || len(list) != 0 {
		t.Errorf("%+v, %v; want an error that names the version", list, err)
	}
}

// Only root can open the sockets; after Close nobody is served.
func TestSockets(t *testing.T) {
	i, err := instance.Acquire(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	failed := func(err error) { t.Error(err) }
	for path, serve := range map[string]func(net.Listener) (stop func()){
		i.Info().FactSocket(): func(l net.Listener) func() {
			return ServeFacts(l, func() []Fact { return []Fact{} }, failed).Close
		},
		i.Info().ControlSocket(): func(l net.Listener) func() {
			return ServeReports(l, func() Report { return Report{} }, failed).Close
		},
	} {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v; want 0600", fi.Mode(), err)
		}
		stop := serve(l)
		if list, err := ask(t.Context(), i.Info()); err != nil || len(list) != 0 {
			t.Errorf("%v, %v; want no sandbox", list, err)
		}
		stop()
		if _, err := net.Dial("unix", path); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Close: %v, want it refused", err)
		}
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
func TestTemporaryErrors(t *testing.T) {
	i, err := instance.Acquire(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	scarce := func(path string) net.Listener {
		l, err := Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		s := &scarceListener{Listener: l}
		s.fails.Store(3)
		return s
	}
	failed := func(err error) { t.Error(err) }
	defer ServeFacts(scarce(i.Info().FactSocket()), func() []Fact { return []Fact{{ID: "a"}} }, failed).Close()
	defer ServeReports(scarce(i.Info().ControlSocket()), func() Report { return Report{Sandboxes: []State{{ID: "a", State: "Idle"}}} }, failed).Close()
	if list, err := ask(t.Context(), i.Info()); err != nil || len(list) != 1 || list[0].State != "Idle" {
		t.Errorf("%+v, %v; want what both sockets say", list, err)
	}
}

func TestFind(t *testing.T) {
	var list []Sandbox
	for _, id := range []string{"fn-1", "fn-12", "other-3"} {
		list = append(list, Sandbox{Fact: Fact{ID: id}})
	}
	for prefix, want := range map[string]string{"fn-1": "fn-1", "other": "other-3", "fn-12": "fn-12"} {
		if got, err := Find(list, prefix); err != nil || got.ID != want {
			t.Errorf("%s: %v, %v; want %s", prefix, got.ID, err, want)
		}
	}
	for prefix, want := range map[string]string{"fn": "2 sandboxes", "x": "no sandbox"} {
		if _, err := Find(list, prefix); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", prefix, err, want)
		}
	}
}
