package api

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/sandboxd/sandboxd/internal/httpfast"
)

// hotServer serves the requests that a runtime makes all day long: for the next event, and
// with an answer.
func hotServer(h http.Handler) *httpfast.Server {
	return &httpfast.Server{Handler: h, Wants: isHot, Trailers: []string{"Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"}}
}

func isHot(method, path string) bool {
	rest, ok := strings.CutPrefix(path, runtimeBase+"runtime/invocation/")
	if method == http.MethodGet {
		return ok && rest == "next"
	}
	id, call, _ := strings.Cut(rest, "/")
	return ok && id != "" && (call == "response" || call == "error")
}

// Under returns the connection itself. It and the methods below implement httpfast.Conn.
func (c *conn) Under() net.Conn { return c.Conn }

// Begin notes that the headers of a hot request are complete.
func (c *conn) Begin() context.Context {
	c.handle()
	return c.ctx
}

// Idle notes that the request is answered.
func (c *conn) Idle() { c.guard.changed(c, http.StateIdle) }

// Last reports whether the server ends after this answer; this one closes its connections
// instead.
func (c *conn) Last() bool { return false }
