// Package api serves the Runtime, Extensions, Logs and Telemetry APIs of one sandbox over
// HTTP. It translates requests to the methods of rapid's Client and errors to status
// codes, keeps no state of its own, and has no path that controls anything.
//
// Its peers are hostile. The number of connections is limited; so are request line and
// headers, in size (of one request and of all together) and in time, and bodies in size.
// Time is the sandbox's own (RT-04), which stands still while the sandbox is frozen. A next
// that waits and an idle connection may last for ever. A body may last as long as its
// invocation: the process that sends it dies with that.
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

// Limits bound what the processes of one sandbox can make the daemon hold.
type Limits struct {
	Connections int           // at once; above it the longest idle one is closed, or the new one
	HeaderTime  time.Duration // for request line and headers that have begun, thawed time (RT-04)
	OriginTime  time.Duration // for the answer of Origin; a connection without one in time is not the runtime's
}

// DefaultLimits returns the usual limits.
func DefaultLimits() Limits {
	return Limits{Connections: 256, HeaderTime: 10 * time.Second, OriginTime: 5 * time.Second}
}

const (
	maxHeader = 1 << 20 // RT-05
	// maxHeaders limits the headers of all requests of a sandbox together that are not over,
	// among them each next that waits. Very many small headers take twenty times as much
	// memory.
	maxHeaders = 4 * maxHeader
	maxSmall   = 64 << 10 // bytes of a usual body of an extension's call: a short list
	maxLarge   = 4        // larger bodies of such calls that are read at the same time
)

// Serve answers the processes of s on l until ctx ends. The context must outlive
// Sandbox.Run: extensions hear of the shutdown through this API. Serve closes l, and
// returns when every connection is closed. It goes on after errors that pass, such as too
// many open files. The error is nil after an end by ctx. With an origin the paths of the runtime are for the runtime alone (strict mode); with
// none, for every process of the sandbox.
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
		ErrorLog:    log.New(io.Discard, "", 0), // what is wrong with requests is the function's business
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() }) // the listener may be closed already
	defer stop()
	err := srv.Serve(conns)
	_ = srv.Close() // closes every connection, which ends its handler; err is what matters
	conns.wait()
	if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve %s: %w", l.Addr(), err)
}

type connKey struct{}

// connOf returns the connection that r came in by.
func connOf(r *http.Request) *conn {
	c, _ := r.Context().Value(connKey{}).(*conn)
	return c
}
