package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// openBody sends the head of a POST and part of its body, and keeps the connection. The
// server asks for the body once the call has begun.
func (w *world) openBody(p string) {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Close() })
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n", p); err != nil {
		w.t.Fatal(err)
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.Contains(line, " 100 ") {
		w.t.Fatalf("%q %v", line, err)
	}
	if _, err := io.WriteString(c, "half"); err != nil {
		w.t.Fatal(err)
	}
}

// RT-53 to RT-55, RT-57: each cell of the table of section 1.8.
func TestRuntimeTable(t *testing.T) {
	states := []struct {
		name  string
		setup setup
		reach func(w *world)
		want  string // next, response, error, init/error, and with snap-start restore/next, restore/error
	}{
		{"Started", setup{}, func(w *world) { w.running() }, "block 400 400 202"},
		{"Started inline", setup{failInits: 1}, func(w *world) { w.await(rapid.Cold); w.invoke("id"); w.running() }, "same 403 403 202"},
		{"InitError", setup{}, func(w *world) { w.running(); w.do("POST", "/2018-06-01/runtime/init/error", "{}") }, "403 400 400 403"},
		{"Ready", setup{}, func(w *world) { w.running(); w.later("GET", nextPath); w.await(rapid.Idle) }, "block 400 400 403"},
		{"Ready inline", setup{failInits: 1}, func(w *world) {
			w.await(rapid.Cold)
			w.invoke("id")
			w.running()
			// An agent that never asks for its first event holds the dispatch up.
			w.do("POST", "/2020-01-01/extension/register", "{}", "Lambda-Extension-Name", "slow")
			w.later("GET", nextPath)
			w.until(func() bool { return strings.Contains(w.do("POST", path("id", "response"), "").body, "from Ready") })
		}, "block 403 403 403"},
		{"Running", setup{}, func(w *world) { w.dispatched("id") }, "same 202 202 403"},
		{"InvocationResponse", setup{}, func(w *world) { w.dispatched("id"); w.openBody(path("id", "response")) }, "403 403 403 403"},
		{"InvocationErrorResponse", setup{}, func(w *world) { w.dispatched("id"); w.openBody(path("id", "error")) }, "403 403 403 403"},
		{"RuntimeResponseSentState", setup{}, func(w *world) { w.dispatched("id"); w.do("POST", path("id", "response"), "1") }, "block 403 403 403"},
		{"Started snap-start", snap, func(w *world) { w.running() }, "block 400 400 202 block 403"},
		{"InitError snap-start", snap, func(w *world) { w.running(); w.do("POST", "/2018-06-01/runtime/init/error", "{}") }, "403 400 400 403 403 403"},
		{"RestoreReady", snap, restoreReady, "403 400 400 403 403 403"},
		{"Restoring", snap, restoring, "same 400 400 202 403 202"},
		{"RuntimeRestoreErrorState", snap, func(w *world) {
			restoring(w)
			w.openBody("/2018-06-01/runtime/restore/error")
		}, "403 400 400 403 403 403"},
		{"Running snap-start", snap, func(w *world) { restoring(w); w.do("GET", nextPath, "") }, "same 202 202 403 403 403"},
		{"RuntimeResponseSentState snap-start", snap, func(w *world) {
			restoring(w)
			w.do("GET", nextPath, "")
			w.do("POST", path("id", "response"), "1")
		}, "block 403 403 403 403 403"},
		{"Ready snap-start", snap, func(w *world) { w.running(); w.later("GET", nextPath); w.await(rapid.Idle) }, "block 400 400 403 403 403"},
	}
	calls := []struct{ method, path string }{
		{"GET", nextPath}, {"POST", path("id", "response")}, {"POST", path("id", "error")}, {"POST", "/2018-06-01/runtime/init/error"},
		{"GET", restoreNextPath}, {"POST", "/2018-06-01/runtime/restore/error"},
	}
	for _, st := range states {
		for i, want := range strings.Fields(st.want) {
			t.Run(st.name+calls[i].path, func(t *testing.T) {
				w := newWorld(t, st.setup)
				st.reach(w)
				if want == "block" {
					got, _ := w.later(calls[i].method, calls[i].path)
					select {
					case r := <-got:
						t.Errorf("%d %s, want it to block", r.status, r.body)
					case <-time.After(30 * time.Millisecond):
					}
					return
				}
				r := w.do(calls[i].method, calls[i].path, "{}")
				if want == "same" {
					if r.status != 200 || r.header.Get("Lambda-Runtime-Aws-Request-Id") != "id" || r.body != `{"x":1}` {
						t.Errorf("%d %q, want the same event (RT-26)", r.status, r.body)
					}
					return
				}
				if fmt.Sprint(r.status) != want {
					t.Errorf("%d %s, want %s", r.status, r.body, want)
				}
				wantType := map[string]string{"400": "InvalidRequestID", "403": "InvalidStateTransition", "202": ""}[want]
				if r.errorType() != wantType {
					t.Errorf("error type %q, want %q", r.errorType(), wantType)
				}
			})
		}
	}
}

const restoreNextPath = "/2018-06-01/runtime/restore/next"

var snap = setup{config: func(c *rapid.Config) { c.Initialization = rapid.SnapStart }}

func restoreReady(w *world) { w.running(); w.later("GET", restoreNextPath); w.await(rapid.Idle) }

// restoring has an invocation that waits for the hooks of the runtime.
func restoring(w *world) {
	w.running()
	got, _ := w.later("GET", restoreNextPath)
	w.await(rapid.Idle)
	w.invoke("id")
	if r := <-got; r.status != 200 || r.body != "" {
		w.t.Fatalf("restore/next: %d %q, want 200 without a body (RT-53)", r.status, r.body)
	}
}

// The routes of section 4.7 exist with snap-start only (RT-53, RT-55, RT-72).
func TestNoRestoreWithoutSnapStart(t *testing.T) {
	w := newWorld(t, setup{})
	w.running()
	for _, r := range []reply{w.do("GET", restoreNextPath, ""), w.do("POST", "/2018-06-01/runtime/restore/error", "{}"), w.do("GET", credentialsPath, "")} {
		if r.status != 404 {
			t.Errorf("%d %s, want 404", r.status, r.body)
		}
	}
}

// RT-72, LC-93: who shows the token gets the credentials, those of the restore after it.
func TestCredentials(t *testing.T) {
	w := newWorld(t, setup{config: func(c *rapid.Config) {
		c.Initialization, c.Token = rapid.SnapStart, "the-token"
		c.Credentials = rapid.Credentials{AccessKeyID: "old", SecretAccessKey: "s", SessionToken: "t"}
		c.Restore = func(context.Context) (rapid.Restored, error) {
			return rapid.Restored{Credentials: rapid.Credentials{AccessKeyID: "new", SecretAccessKey: "S", SessionToken: "T"}}, nil
		}
	}})
	for _, token := range []string{"", "the-toke", "the-token2"} {
		if r := w.do("GET", credentialsPath, "", "Authorization", token); r.status != 404 {
			t.Errorf("token %q: %d %s, want 404", token, r.status, r.body)
		}
	}
	ask := func() string {
		r := w.do("GET", credentialsPath, "", "Authorization", "the-token")
		var c struct {
			AccessKeyID            string `json:"AccessKeyId"`
			SecretAccessKey, Token string
			Expiration             time.Time
		}
		if err := json.Unmarshal([]byte(r.body), &c); err != nil || r.status != 200 || time.Until(c.Expiration) <= 0 {
			t.Fatalf("%d %s: %v", r.status, r.body, err)
		}
		return c.AccessKeyID + c.SecretAccessKey + c.Token
	}
	if got := ask(); got != "oldst" {
		t.Errorf("before the restore: %q", got)
	}
	restoring(w)
	if got := ask(); got != "newST" {
		t.Errorf("after the restore: %q", got)
	}
}

// agentWorld has one external extension and its runtime.
func agentWorld(t *testing.T) *world { return newWorld(t, setup{extensions: []string{"ext"}}) }

const extPath = "/2020-01-01/extension/"

func (w *world) register(name, body string) reply {
	w.t.Helper()
	return w.do("POST", extPath+"register", body, "Lambda-Extension-Name", name)
}

// Section 2.4: each cell of the table of agent states.
func TestAgentTable(t *testing.T) {
	registered := func(w *world) string { return w.register("ext", `{"events":["INVOKE"]}`).header.Get(identifier) }
	fail := func(w *world, call, id string) {
		w.do("POST", extPath+call, "", identifier, id, "Lambda-Extension-Function-Error-Type", "Extension.X")
	}
	states := []struct {
		name  string
		reach func(w *world) (id string)
		want  string // register, event/next, init/error, exit/error
	}{
		{"Registered", registered, "403 block 202 202"},
		{"Ready", func(w *world) string {
			id := registered(w)
			w.later("GET", extPath+"event/next", identifier, id)
			w.running()
			w.later("GET", nextPath)
			w.await(rapid.Idle)
			return id
		}, "403 403 403 202"},
		{"Running", func(w *world) string {
			id := registered(w)
			got, _ := w.later("GET", extPath+"event/next", identifier, id)
			w.dispatched("id")
			<-got
			return id
		}, "403 block 403 202"},
		{"InitError", func(w *world) string { id := registered(w); fail(w, "init/error", id); return id }, "403 403 202 403"},
		{"ExitError", func(w *world) string { id := registered(w); fail(w, "exit/error", id); return id }, "403 403 403 202"},
	}
	calls := []struct{ method, path string }{
		{"POST", "register"}, {"GET", "event/next"}, {"POST", "init/error"}, {"POST", "exit/error"},
	}
	for _, st := range states {
		for i, want := range strings.Fields(st.want) {
			t.Run(st.name+"/"+calls[i].path, func(t *testing.T) {
				w := agentWorld(t)
				id := st.reach(w)
				headers := []string{identifier, id, "Lambda-Extension-Function-Error-Type", "Extension.X", "Lambda-Extension-Name", "ext"}
				if want == "block" {
					got, _ := w.later(calls[i].method, extPath+calls[i].path, headers...)
					select {
					case r := <-got:
						t.Errorf("%d %s, want it to block", r.status, r.body)
					case <-time.After(30 * time.Millisecond):
					}
					return
				}
				r := w.do(calls[i].method, extPath+calls[i].path, "{}", headers...)
				if fmt.Sprint(r.status) != want {
					t.Errorf("%d %s, want %s", r.status, r.body, want)
				}
				if want == "403" && r.errorType() != "Extension.InvalidExtensionState" {
					t.Errorf("error type %q (EX-25)", r.errorType())
				}
				if want == "202" && r.body != "{\"status\":\"OK\"}\n" {
					t.Errorf("body %q (RT-07)", r.body)
				}
			})
		}
	}
}

// EX-26: exit/error ends the blocked call of the same agent.
func TestExitErrorEndsTheBlockedCall(t *testing.T) {
	w := agentWorld(t)
	id := w.register("ext", `{}`).header.Get(identifier)
	got, _ := w.later("GET", extPath+"event/next", identifier, id)
	w.dispatched("id") // so that the agent is Ready for certain
	w.do("POST", extPath+"exit/error", "", identifier, id, "Lambda-Extension-Function-Error-Type", "X.Y")
	if r := <-got; r.status != 403 || r.errorType() != "Extension.InvalidExtensionState" {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// RT-59: a call of a generation that is gone is closed without an event.
func TestOldGenerationIsClosed(t *testing.T) {
	for _, first := range []string{"GET /2018-06-01/ping", "POST " + path("x", "error")} { // the second leaves the connection to hot requests
		w := newWorld(t, setup{config: func(c *rapid.Config) { c.Function.Timeout = 50 * time.Millisecond }})
		w.dispatched("one")
		c, err := net.Dial("tcp", strings.TrimPrefix(w.base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, first+" HTTP/1.1\r\nHost: x\r\n\r\n")
		b := make([]byte, 4096)
		if _, err := c.Read(b); err != nil { // the connection is of the first generation
			t.Fatal(err)
		}
		w.await(rapid.Cold)
		w.invoke("two")
		w.running()
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", nextPath)
		if n, err := c.Read(b); err == nil {
			t.Errorf("an old connection got %q", b[:n])
		}
	}
}
