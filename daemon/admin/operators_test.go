package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sandboxd/sandboxd/host/instance"
)

// serving is an instance whose operators' socket answers with h.
func serving(t *testing.T, runDir string, h http.HandlerFunc) *instance.Instance {
	t.Helper()
	i, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Close() })
	if h == nil {
		return i
	}
	l, err := Listen(i.Info().AdminSocket())
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return i
}

// A command finds the one daemon that it is for, or says why not.
func TestServing(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	find := func(id string) (string, error) {
		o, err := Serving(t.Context(), runDir, id)
		if err != nil {
			return "", err
		}
		return o.ID, nil
	}
	if _, err := find(""); err == nil || !strings.Contains(err.Error(), "no daemon runs 'sandboxd serve'") {
		t.Errorf("no run folder: %v", err)
	}
	serving(t, runDir, nil) // that of 'sandboxd run'
	if _, err := find(""); err == nil || !strings.Contains(err.Error(), "no daemon runs 'sandboxd serve'") {
		t.Errorf("none: %v", err)
	}
	h := func(w http.ResponseWriter, _ *http.Request) { json.NewEncoder(w).Encode([]Key{{ID: "AKSD"}}) }
	one := serving(t, runDir, h)
	if id, err := find(""); err != nil || id != one.ID() {
		t.Errorf("one: %s, %v", id, err)
	}
	dead, err := instance.Acquire(runDir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(dead.Info().AdminSocket())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dead.Abandon()
	if id, err := find(""); err != nil || id != one.ID() {
		t.Errorf("one and a dead one: %s, %v", id, err)
	}
	two := serving(t, runDir, h)
	if _, err := find(""); err == nil || !strings.Contains(err.Error(), "--instance") || !strings.Contains(err.Error(), one.ID()) || !strings.Contains(err.Error(), two.ID()) {
		t.Errorf("two: %v", err)
	}
	if id, err := find(two.ID()); err != nil || id != two.ID() {
		t.Errorf("the second: %s, %v", id, err)
	}
	if _, err := find("zzzz"); err == nil || !strings.Contains(err.Error(), `"zzzz"`) {
		t.Errorf("an unknown one: %v", err)
	}
	o, err := Serving(t.Context(), runDir, one.ID())
	if err != nil {
		t.Fatal(err)
	}
	if list, err := o.Keys(t.Context()); err != nil || len(list) != 1 || list[0].ID != "AKSD" {
		t.Errorf("%v, %v", list, err)
	}
}

// Errors of the daemon are told as they are.
func TestOperatorsErrors(t *testing.T) {
	runDir := filepath.Join(t.TempDir(), "run")
	answer := func(w http.ResponseWriter) {}
	serving(t, runDir, func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	o, err := Serving(t.Context(), runDir, "")
	if err != nil {
		t.Fatal(err)
	}
	for want, a := range map[string]func(http.ResponseWriter){
		"there is no such key": func(w http.ResponseWriter) {
			w.WriteHeader(http.StatusNotFound)
			json.NewEncoder(w).Encode(Failure{"there is no such key"})
		},
		"503": func(w http.ResponseWriter) { http.Error(w, "not ready", http.StatusServiceUnavailable) },
	} {
		answer = a
		if _, err := o.RevokeKey(t.Context(), "x"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// A rotation has the daemon read the file when it was changed, and not before or without that.
func TestChangeHostKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var steps []string
	var fails error
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := ServeHostKey(l, "/etc/host.key", func(context.Context) error {
		steps = append(steps, "read")
		return fails
	}, func(err error) { t.Error(err) })
	change := func(err error) error {
		return ChangeHostKey(t.Context(), path, func(p string) error {
			steps = append(steps, "changed "+p)
			return err
		})
	}
	if err := change(nil); err != nil {
		t.Error(err)
	}
	full := errors.New("the disk is full")
	if err := change(full); !errors.Is(err, full) {
		t.Error(err)
	}
	fails = errors.New("it is broken")
	if err := change(nil); err == nil || err.Error() != "it is broken" {
		t.Error(err)
	}
	conn, err := net.Dial("unix", path) // one that says nothing
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	s.Close()
	if got := strings.Join(steps, ", "); got != "changed /etc/host.key, read, changed /etc/host.key, changed /etc/host.key, read" {
		t.Error(got)
	}
	if err := change(nil); !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("without the daemon: %v", err)
	}
}
