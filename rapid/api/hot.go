package api

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/sandboxd/sandboxd/internal/httpfast"
)

// hotServer returns the server for hot requests, which a runtime makes for every invocation:
// the call of next, and the post of an answer.
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

// Under returns the underlying connection. This method and those below implement
// httpfast.Conn.
func (c *conn) Under() net.Conn { return c.Conn }

// Begin records that the headers of a hot request are complete.
func (c *conn) Begin() context.Context {
	c.handle()
	return c.ctx
}

// Idle records that the request has been answered.
func (c *conn) Idle() { c.guard.changed(c, http.StateIdle) }

// Last reports whether the server wants no more requests on the connection. It is always
// false: when this server ends, it closes its connections.
func (c *conn) Last() bool { return false }
