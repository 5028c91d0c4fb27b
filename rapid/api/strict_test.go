package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
)

// Strict mode: the paths of the runtime are refused to whoever did not come from its
// domain, before anything else is looked at, and nothing changes by it.
func TestStrict(t *testing.T) {
	foreign := errors.New("made in the extension domain")
	runtimePaths := []struct{ method, path string }{
		{http.MethodGet, nextPath},
		{http.MethodPost, path("id", "response")},
		{http.MethodPost, path("id", "error")},
		{http.MethodPost, "/2018-06-01/runtime/init/error"},
		{http.MethodGet, "/2018-06-01/runtime/restore/next"},
		{http.MethodPost, "/2018-06-01/runtime/restore/error"},
		{http.MethodGet, credentialsPath},
		{http.MethodGet, "/2018-06-01/runtime/whatever/comes"},
	}

	t.Run("an extension", func(t *testing.T) {
		w := newWorld(t, setup{origin: func(context.Context, net.Conn) error { return foreign }})
		w.running()
		for _, c := range runtimePaths {
			r := w.do(c.method, c.path, "{}")
			if r.status != http.StatusForbidden || r.errorType() != "Runtime.Forbidden" || !strings.Contains(r.body, foreign.Error()) {
				t.Errorf("%s %s: %d %s; want 403, Runtime.Forbidden and why", c.method, c.path, r.status, r.body)
			}
		}
		if r := w.do(http.MethodGet, "/2018-06-01/ping", ""); r.status != http.StatusOK {
			t.Errorf("ping: %d %s", r.status, r.body)
		}
		if r := w.do(http.MethodPost, "/2020-01-01/extension/register", "{}", "Lambda-Extension-Name", "internal"); r.status != http.StatusOK {
			t.Errorf("register: %d %s", r.status, r.body)
		}
	})
	t.Run("the runtime", func(t *testing.T) {
		var asked atomic.Int64
		w := newWorld(t, setup{origin: func(_ context.Context, c net.Conn) error {
			asked.Add(1)
			if _, ok := c.(*net.TCPConn); !ok {
				t.Errorf("asked about a %T", c)
			}
			return nil
		}})
		_, result := w.dispatched("id")
		if r := w.do(http.MethodPost, path("id", "response"), "1"); r.status != http.StatusAccepted {
			t.Errorf("response: %d %s", r.status, r.body)
		}
		w.later(http.MethodGet, nextPath)
		if got := <-result; got == nil || string(got.Payload) != "1" {
			t.Errorf("result %+v", got)
		}
		w.client.CloseIdleConnections()
		if asked.Load() == 0 {
			t.Error("never asked")
		}
	})
}
