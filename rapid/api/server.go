// Package api serves the Runtime, Extensions, Logs and Telemetry APIs of one sandbox over
// HTTP, with [Serve]. It translates requests to the methods of rapid.Client and errors to
// status codes. It keeps no state of the sandbox, and has no endpoint that controls the
// daemon.
//
// Clients are untrusted. Limits apply to the number of connections, to the size of request
// line and headers (of one request and of all together), to the time that they take, and to
// the size of bodies. Time is that of the sandbox (RT-04): it stops while the sandbox is
// frozen. A parked call of next and an idle connection have no time limit. A body has none
// of its own: the process that sends it is killed when its invocation ends.
package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/sandboxd/sandboxd/internal/accept"
	"github.com/sandboxd/sandboxd/rapid"
)

// Limits are the limits on the resources that the processes of one sandbox can use in the
// daemon.
type Limits struct {
	Connections int           // open connections; above it the longest idle one is closed, or the new one
	HeaderTime  time.Duration // for request line and headers from their second piece on, in thawed time (RT-04)
	OriginTime  time.Duration // for Origin; without a result in time the connection counts as not the runtime's
}

// DefaultLimits returns the usual limits.
func DefaultLimits() Limits {
	return Limits{Connections: 256, HeaderTime: 10 * time.Second, OriginTime: 5 * time.Second}
}

const (
	maxHeader = 1 << 20 // RT-05
	// maxHeaders limits the headers of all unfinished requests of a sandbox together, including
	// parked calls of next. Many small headers take twenty times as much memory as their size.
	maxHeaders = 4 * maxHeader
	maxSmall   = 64 << 10 // largest usual body of an extension's request, in bytes
	maxLarge   = 4        // concurrent reads of larger bodies of extensions
)

// Serve serves the processes of s on l until ctx ends. The context must outlive Sandbox.Run,
// because extensions get the SHUTDOWN event through this API. Serve closes l, and returns
// when every connection is closed. After a temporary error, such as too many open files, it
// continues. It returns nil if ctx has ended. If origin is not nil, only the runtime may use
// the runtime's paths (strict mode), else every process of the sandbox may.
func Serve(ctx context.Context, s *rapid.Sandbox, l net.Listener, limits Limits, origin Origin) error {
	conns := newGuard(ctx, accept.Listener(l, nil), s, limits)
	conns.origin = origin
	srv := &http.Server{
		Handler:                      conns.handler,
		MaxHeaderBytes:               maxHeader,
		DisableGeneralOptionsHandler: true,
		ConnState:                    conns.changed,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    log.New(io.Discard, "", 0), // errors in requests are not the operator's concern
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // the listener may be closed already
	defer stop()
	err := srv.Serve(conns)
	_ = srv.Close() // closes every connection, which ends its handler
	conns.wait()
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

type connKey struct{}

// connOf returns the connection of r.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
