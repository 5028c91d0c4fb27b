package api

import (
	"context"
	"net"
	"net/http"
	"strings"

	"github.com/sandboxd/sandboxd/internal/httpfast"
)

// hotServer serves what a runtime asks all day long: the next event, and that its
// answer be taken.
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

// Under is the connection itself. This and what follows is for package hot.
func (c *conn) Under() net.Conn { return c.Conn }

// Begin says that the headers of a hot request are complete.
func (c *conn) Begin() context.Context {
	c.handle()
	return c.ctx
}

// Idle says that it is answered.
func (c *conn) Idle() { c.guard.changed(c, http.StateIdle) }

// Last is for servers that are about to end; this one closes its connections.
func (c *conn) Last() bool { return false }
