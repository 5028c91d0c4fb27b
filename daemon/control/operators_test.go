package control

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// The process is healthy before the functions are open, but not ready. Commands wait.
func TestOperators(t *testing.T) {
	s := newServer(logrus.New())
	o := newOperators(s)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- o.serve(l) }()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	ask := func(path string) (int, string) {
		res, err := client.Get("http://x" + path)
		if err != nil {
			return 0, err.Error()
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	if code, text := ask("/health"); code != 200 || text != "ok\n" {
		t.Errorf("%d %s", code, text)
	}
	for _, path := range []string{"/ready", "/metrics"} {
		if code, text := ask(path); code != 503 || !strings.Contains(text, "not ready") {
			t.Errorf("%s: %d %s", path, code, text)
		}
	}
	waits := make(chan string, 1)
	go func() {
		_, text := ask("/v1/keys")
		waits <- text
	}()
	s.ready(fakeAPI{})
	if text := <-waits; text != "operator /v1/keys" {
		t.Error(text)
	}
	if code, text := ask("/ready"); code != 200 || text != "operator /ready" {
		t.Errorf("%d %s", code, text)
	}
	transport.CloseIdleConnections()
	o.shutdown()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// The host keys come by a file that is read and closed.
func TestReadHostKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "k")
	if err := seal.Create(path); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for text, ok := range map[string]bool{string(text): true, "": false, "a password": false} {
		f, err := message.MemoryFile("host-keys", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		ring, _, err := readHostKeys(f)
		if (err == nil) != ok || ok && len(ring.IDs()) != 1 {
			t.Errorf("%q: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "password") {
			t.Errorf("the error tells the key: %v", err)
		}
		if err := f.Close(); err == nil {
			t.Error("the file stays open")
		}
	}
}

// Control asks the worker for its numbers, and tells it of revoked keys until that is confirmed
// or there is no worker.
func TestHostAsksWorker(t *testing.T) {
	var fails atomic.Int64
	fails.Store(2)
	worker := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host != message.WorkerHost:
			http.Error(w, r.Host, http.StatusForbidden)
		case r.URL.Path == message.NumbersPath && r.FormValue("functions") == "5":
			io.WriteString(w, `{"Start":3,"Functions":[{"Name":"a"}]}`)
		case r.URL.Path == message.NumbersPath:
			w.Write(make([]byte, maxAnswer+1))
		case r.URL.Path == message.ForgetPath && fails.Add(-1) >= 0:
			http.Error(w, "busy", http.StatusServiceUnavailable)
		case r.URL.Path == message.ForgetPath:
			if text, _ := io.ReadAll(r.Body); string(text) != `{"AccessKeyID":"AKSD"}` {
				t.Errorf("%s", text)
			}
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	worker.Start()
	defer worker.Close()
	var gone atomic.Bool
	h := newHost(t, registry.Config{Connect: func(context.Context) (*os.File, error) {
		if gone.Load() {
			return nil, message.ErrNoWorker
		}
		c, err := net.Dial("tcp", worker.Listener.Addr().String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.(*net.TCPConn).File()
	}})
	if n, err := h.Numbers(t.Context(), 5); err != nil || n.Start != 3 || n.Functions[0].Name != "a" {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := h.Numbers(t.Context(), 6); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Errorf("an answer without end: %v", err)
	}
	if err := h.ForgetKey(t.Context(), "AKSD"); err != nil || fails.Load() != -1 {
		t.Errorf("%v with %d refusals left", err, fails.Load())
	}
	fails.Store(1 << 30)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := h.ForgetKey(ctx, "AKSD"); err == nil || !strings.Contains(err.Error(), "AKSD") {
		t.Errorf("a worker that does not confirm: %v", err)
	}
	h.worker.CloseIdleConnections()
	gone.Store(true)
	if err := h.ForgetKey(t.Context(), "AKSD"); err != nil {
		t.Errorf("without a worker: %v", err)
	}
	if _, err := h.Numbers(t.Context(), 1); err == nil {
		t.Error("numbers without a worker")
	}
}
