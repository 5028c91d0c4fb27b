package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/daemon/control/operator"
	"github.com/sandboxd/sandboxd/internal/accept"
)

// Limits of operators' requests.
const (
	maxOperators = 32               // connections at once
	commandTime  = 30 * time.Second // that a command waits for the functions to be open
	operatorTime = time.Minute      // for a whole request
)

// operators answers the operators' socket. The supervisor holds it as well: commands that come
// while there is no control process wait in it.
type operators struct {
	server   *server
	http     *http.Server
	stopping context.Context // ends when the process stops; those who follow logs would not end
	stop     context.CancelFunc
}

func newOperators(s *server) *operators {
	o := &operators{server: s}
	o.stopping, o.stop = context.WithCancel(context.Background())
	o.http = &http.Server{
		Handler: o, ReadTimeout: operatorTime, WriteTimeout: operatorTime, IdleTimeout: operatorTime, MaxHeaderBytes: maxHeader,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if l, ok := c.(*limitedConn); ok {
				c = l.Conn
			}
			return operator.WithPeer(ctx, c)
		},
	}
	return o
}

// serve serves connections of l until shutdown.
func (o *operators) serve(l net.Listener) error {
	err := o.http.Serve(&limited{Listener: accept.Listener(l, nil), free: make(chan struct{}, maxOperators)})
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve the operators' socket: %w", err)
}

// shutdown ends serve. Requests that run have endTime.
func (o *operators) shutdown() {
	o.stop()
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	if o.http.Shutdown(ctx) != nil {
		_ = o.http.Close()
	}
}

// ServeHTTP answers one request. Only commands wait for the functions to be open.
func (o *operators) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	patience := commandTime
	switch r.URL.Path {
	case admin.HealthPath:
		fmt.Fprintln(w, "ok")
		return
	case admin.ReadyPath, admin.MetricsPath:
		patience = 0
	case admin.LogsPath:
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(o.stopping, cancel)()
		r = r.WithContext(ctx)
	}
	if !o.server.isOpen(r.Context(), patience) {
		http.Error(w, "not ready: the functions are being opened", http.StatusServiceUnavailable)
		return
	}
	o.server.api.Operators().ServeHTTP(w, r)
}
