// Package invoke serves the Invoke API over HTTP, as SDKs use it (spec section 5). A [Server]
// reads a request completely, checks it, runs it with [Functions], and writes the response.
//
// Clients are untrusted. Limits apply to the number of connections, to the bytes of headers,
// bodies and responses, and to the time to send and to receive them. A client cannot block a
// sandbox: the server leases one after the last byte of the request has arrived, and the
// sandbox is free again whether or not the client reads the response. Without
// Config.Authorize there is no authentication, so listen on loopback. A web page in the
// operator's browser can connect to loopback too, so the server refuses requests of web pages
// (see guard.go).
package invoke

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/accept"
	"github.com/sandboxd/sandboxd/internal/httpfast"
	"github.com/sandboxd/sandboxd/rapid"
)

// Config configures a server. It must not be changed after New. A zero limit means its
// default.
type Config struct {
	Functions Functions // runs the invocations; the caller still owns it
	// TLS, if not nil, makes the server expect TLS, with the configuration that it returns for each
	// connection. See TLSConfig.
	TLS               func() *tls.Config
	Region, AccountID string // in the ARNs of all functions

	HeaderTimeout time.Duration // for request line and headers; default 10 s
	BodyTimeout   time.Duration // for the body; default 60 s
	WriteTimeout  time.Duration // for the client to read the response; default 30 s
	DrainTimeout  time.Duration // for running requests after ctx of Serve has ended; default 10 s
	MaxConns      int           // open connections; default 256
	MaxBuffered   int64         // bytes of all request bodies and responses in memory; default 128 MiB

	// Authorize, if not nil, is called for each request before its body is read, with the ARN of
	// the function that the request names, which is "" if it names none in a valid form. The
	// error is a *Fault, that of the request's context, or a fault of the platform. What it
	// returns is called with the body, unless it is nil, and has errors of the same kinds.
	Authorize func(r *http.Request, arn string) (BodyCheck, error)
	// Pass, if not nil, answers requests that are no invocations. It has the deadlines for
	// reading and writing in its hands.
	Pass http.Handler
	// NoEvents refuses asynchronous invocations.
	NoEvents bool

	// OnError, if not nil, receives errors that the client does not get: the cause of a
	// ServiceException, and errors of net/http. It must be safe for concurrent use.
	OnError func(error)
}

// A BodyCheck reports whether the body of a request is the one that was authorized.
type BodyCheck func(body []byte) error

// maxHeaderBytes limits request line and headers. Lambda allows 1 MB (ENV-35). In net/http 1 MB
// of small headers takes about 20 MB of memory for each connection, so the limit is lower here.
// The largest header of the API is the client context, with 3,583 bytes.
const maxHeaderBytes = 64 << 10

// overBudgetTimeout replaces WriteTimeout for a response that exceeds MaxBuffered. The
// response is in memory already, so it cannot be refused, only written quickly.
const overBudgetTimeout = time.Second

// Server serves the Invoke API. It is an http.Handler and safe for concurrent use. Use New.
type Server struct {
	cfg      Config
	buffered budget
	events   sync.WaitGroup // Event invocations, which run after the response 202
}

// New returns a server. It needs no Close. Call Serve, or use it as the handler of a net/http
// server that limits connections and headers itself.
func New(cfg Config) *Server {
	def(&cfg.HeaderTimeout, 10*time.Second)
	def(&cfg.BodyTimeout, time.Minute)
	def(&cfg.WriteTimeout, 30*time.Second)
	def(&cfg.DrainTimeout, 10*time.Second)
	def(&cfg.MaxConns, 256)
	def(&cfg.MaxBuffered, 128<<20)
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	return &Server{cfg: cfg, buffered: budget{max: cfg.MaxBuffered}}
}

// def sets v to value if it is the zero value.
func def[T comparable](v *T, value T) {
	var zero T
	if *v == zero {
		*v = value
	}
}

// Serve serves requests on l until ctx ends or l fails, and closes l. When ctx has ended, it
// accepts no more requests, and waits for running ones, including Event invocations, for at
// most DrainTimeout. If some still run then, it returns an error; the caller must shut the
// functions down afterwards, which ends them. Temporary errors of l, such as too many open
// files, go to OnError, and Serve continues.
//
// Most requests are never seen by net/http: conn.Read answers them while net/http waits for
// the first bytes of the next request. See conn.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return s.serve(ctx, l, s, isHot, s.waitEvents)
}

// serve serves requests with h, those that are hot without net/http, as Serve does. finish
// waits for what the handler has left running.
func (s *Server) serve(ctx context.Context, l net.Listener, h http.Handler, hot func(method, path string) bool, finish func(context.Context) error) error {
	l = accept.Listener(l, s.cfg.OnError)
	conns := newConns(s.cfg.MaxConns)
	srv := &http.Server{
		Handler: unlessClosed(h),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
		ReadHeaderTimeout:            s.cfg.HeaderTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeaderBytes,
		DisableGeneralOptionsHandler: true,
		ConnState:                    conns.observe,
		ErrorLog:                     log.New(errorWriter(s.cfg.OnError), "", 0),
	}
	failed := make(chan error, 1)
	go func() {
		failed <- srv.Serve(&hotListener{l, conns, &httpfast.Server{Handler: h, Wants: hot}, s.cfg.HeaderTimeout, s.cfg.WriteTimeout, s.cfg.TLS})
	}()
	select {
	case err := <-failed:
		srv.Close()
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.DrainTimeout)
	defer cancel()
	_ = l.Close()
	<-failed
	err := conns.drain(drain) // closes connections without a request, for which Shutdown would wait 5 s
	if err == nil {
		err = srv.Shutdown(drain)
	}
	if err == nil {
		err = finish(drain)
	}
	if err != nil {
		srv.Close()
		return fmt.Errorf("requests still run after %v: %w", s.cfg.DrainTimeout, err)
	}
	return nil
}

// waitEvents waits for the Event invocations. The caller ensures that no handler is running.
func (s *Server) waitEvents(ctx context.Context) error {
	over := make(chan struct{})
	go func() { // returns when the functions have been shut down, at the latest
		s.events.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// errorWriter passes log lines of net/http on as errors.
type errorWriter func(error)

func (w errorWriter) Write(line []byte) (int, error) {
	w(errors.New(string(line[:max(len(line)-1, 0)])))
	return len(line), nil
}

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := http.NewResponseController(w)
	// Set deadlines here, because those of http.Server would also apply while the function
	// runs. An error means that the connection is closed.
	limit := time.Now().Add(s.cfg.BodyTimeout)
	_ = conn.SetReadDeadline(limit)
	_ = conn.SetWriteDeadline(limit.Add(s.cfg.WriteTimeout)) // for 100 Continue and refusals

	op, name, bad := route(r)
	if bad == errUnknownPath && s.cfg.Pass != nil {
		if bad = guard(r, s.scheme()); bad != nil {
			w.Header().Set("X-Amzn-Requestid", newIDs().request)
			bad.write(w)
			return
		}
		s.cfg.Pass.ServeHTTP(w, r)
		return
	}
	ids := newIDs()
	id := ids.request
	proposed := r.Header.Get("X-Amzn-Requestid")
	if isUUID(proposed) {
		id = proposed
	}
	w.Header().Set("X-Amzn-Requestid", id)
	if err := guard(r, s.scheme()); err != nil {
		err.write(w)
		return
	}
	if bad != nil {
		bad.write(w)
		return
	}
	var req request
	t, bad := s.targetOf(name, r.URL)
	signed, err := s.authorize(r, &t, bad == nil)
	switch {
	case err != nil:
	case proposed != "" && id != proposed:
		err = errRequestID // INV-07
	case bad != nil:
		err = bad
	default:
		req, err = s.parse(r, op, &t)
	}
	if err != nil {
		s.refuse(w, id, s.fullARN(&t), err)
		return
	}
	body, held, err := s.readBody(r, req.kind, signed)
	if err != nil { // keep the deadline: net/http reads on before it responds
		s.buffered.give(held)
		s.refuse(w, id, req.arn, err)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	arrivedWhole(r.Context())
	if req.kind == dryRun { // INV-02
		s.buffered.give(held)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	inv := &rapid.Invocation{
		ID: id, Payload: body, ClientContext: req.clientContext,
		TraceID: req.traceID, FunctionARN: req.arn, Stream: req.stream, TenantID: req.tenant, NoTail: !req.tail,
	}
	if inv.TraceID == "" {
		inv.TraceID = ids.trace
	}
	s.run(w, r, conn, req, inv, held)
}

// authorize reports whether the caller may invoke t. If t is not valid, it only reports
// whether the caller is known.
func (s *Server) authorize(r *http.Request, t *target, valid bool) (BodyCheck, error) {
	switch {
	case s.cfg.Authorize == nil:
		return nil, nil
	case !valid:
		return s.cfg.Authorize(r, "")
	}
	return s.cfg.Authorize(r, s.fullARN(t))
}

// run runs the invocation and writes the response. It gives the held bytes back when the body
// is no longer needed.
func (s *Server) run(w http.ResponseWriter, r *http.Request, conn *http.ResponseController, req request, inv *rapid.Invocation, held int64) {
	lease, err := s.cfg.Functions.Lease(r.Context(), req.name, req.qualifier, inv.TenantID)
	if err != nil {
		s.buffered.give(held)
		_ = conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
		s.refuse(w, inv.ID, req.arn, err)
		return
	}
	inv.Arrived = time.Now()
	if req.kind == event {
		s.events.Go(func() {
			defer s.buffered.give(held)
			if _, err := lease.Invoke(inv); err != nil {
				s.cfg.OnError(fmt.Errorf("run the accepted event %s: %w", inv.ID, err))
			}
		})
		_ = conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // the wait for the lease may have taken long
		s.accepted(w, req)
		return
	}
	res, err := lease.Invoke(inv)
	req.version = lease.Version()
	s.buffered.give(held)
	if err != nil {
		_ = conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
		s.refuse(w, inv.ID, req.arn, err)
		return
	}
	patience, held := s.hold(res)
	defer s.buffered.give(held)
	if req.stream {
		s.stream(r.Context(), w, conn, req, res, patience)
		return
	}
	if req.tail { // INV-03: the tail ends with REPORT, so wait for it
		select {
		case <-res.Done:
			w.Header().Set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString(res.Tail()))
		case <-r.Context().Done():
			panic(http.ErrAbortHandler) // see refuse
		}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	s.answer(w, req.version, res)
}

// answer writes the function's result (INV-06, INV-10 to INV-14).
func (s *Server) answer(w http.ResponseWriter, version string, res *rapid.Result) {
	h := w.Header()
	h.Set("X-Amz-Executed-Version", version)
	contentType := res.ContentType
	if res.FunctionError {
		h.Set("X-Amz-Function-Error", "Unhandled")
		def(&contentType, "application/json")
	}
	if contentType != "" {
		h.Set("Content-Type", contentType)
	} else {
		h["Content-Type"] = nil // RT-31: keeps net/http from adding one
	}
	h.Set("Content-Length", strconv.Itoa(len(res.Payload)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(res.Payload) // fails only if the client has gone
}

// accepted writes the response to an Event request (INV-02, INV-34).
func (s *Server) accepted(w http.ResponseWriter, req request) {
	if req.legacy {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"Status":202}`))
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// refuse writes the response to a request that failed with err.
func (s *Server) refuse(w http.ResponseWriter, id, arn string, err error) {
	if bad, ok := errors.AsType[*refusal](err); ok {
		bad.write(w)
		return
	}
	if fault, ok := errors.AsType[*Fault](err); ok {
		fault.Write(w)
		return
	}
	switch {
	case errors.Is(err, ErrNoFunction):
		notFound(arn).write(w)
	case errors.Is(err, ErrTooMany):
		errTooMany.write(w)
	case errors.Is(err, ErrAllBusy):
		errAllBusy.write(w)
	case errors.Is(err, rapid.ErrUnavailable):
		errUnavailable.write(w)
	case errors.Is(err, rapid.ErrDuplicate):
		errDuplicate.write(w)
	case errors.Is(err, ErrClosed):
		w.Header().Set("Connection", "close")
		errShutdown.write(w)
	case errors.Is(err, context.Canceled): // the client has gone, or has closed its sending side
		panic(http.ErrAbortHandler) // closes the connection; returning would send an empty response 200
	default:
		s.cfg.OnError(fmt.Errorf("request %s: %w", id, err))
		errService.write(w)
	}
}
