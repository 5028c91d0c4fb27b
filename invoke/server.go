// Package invoke is the Invoke API over HTTP, as SDKs see it (spec section 5): it reads a
// request completely, checks it, has the function run it, and writes the answer.
//
// The client is not trusted. What it can hold is bounded: connections, bytes of headers,
// bodies and answers, and the time to send and to receive them. It never holds a sandbox:
// one is taken after the last byte of the request has come, and is free
// again whether or not the client reads the answer. There is no authentication: listen
// on loopback. A web page in the operator's browser can reach loopback too, so
// requests that a browser makes for a page are refused (see guard.go).
package invoke

import (
	"context"
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

// Config is fixed for the life of a server. Zero limits mean the defaults.
type Config struct {
	Functions         Functions // run the invocations; not closed by the server
	Region, AccountID string    // of all functions' ARNs

	HeaderTimeout time.Duration // for request line and headers; default 10 s
	BodyTimeout   time.Duration // for the body; default 60 s
	WriteTimeout  time.Duration // for the client to take the answer; default 30 s
	DrainTimeout  time.Duration // for requests that run when Serve ends; default 10 s
	MaxConns      int           // connections at once; default 256
	MaxBuffered   int64         // bytes of request bodies and of answers held at once; default 128 MiB

	// OnError is told what the client is not: faults behind a ServiceException, and
	// what net/http complains of. It may be nil, and is called from several goroutines.
	OnError func(error)
}

// maxHeaderBytes bounds request line and headers. Lambda allows 1 MB (ENV-35), which
// as very many small headers is some 20 MB of memory a connection; no header
// of the API needs more than the client context's 3,583 bytes.
const maxHeaderBytes = 64 << 10

// hurried is how long a client may take for an answer that MaxBuffered has no room for: it
// is there already, and cannot be refused.
const hurried = time.Second

// Server is the Invoke API, an http.Handler. Use New.
type Server struct {
	cfg      Config
	buffered budget
	events   sync.WaitGroup // Event invocations that run after their 202
}

// New returns a server. It holds nothing that must be closed; use Serve, or serve the
// handler with a net/http server that limits connections and headers itself.
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

// Serve answers requests on l until ctx ends or l fails, and closes l. Then it takes no
// more requests and waits for those that run, Event invocations among them, for
// at most DrainTimeout; the error says if they did not end. What still runs then
// ends with the functions' shutdown, which must come after. What passes, such as too many
// open files, goes to OnError and is no failure of l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	l = accept.Listener(l, s.cfg.OnError)
	conns := newConns(s.cfg.MaxConns)
	srv := &http.Server{
		Handler: http.HandlerFunc(s.serveCold),
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
		failed <- srv.Serve(&hotListener{l, conns, &httpfast.Server{Handler: s, Wants: isHot}, s.cfg.HeaderTimeout, s.cfg.WriteTimeout})
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
	err := conns.drain(drain) // closes those without a request, to which Shutdown would give 5 s
	if err == nil {
		err = srv.Shutdown(drain)
	}
	if err == nil {
		err = s.waitEvents(drain)
	}
	if err != nil {
		srv.Close()
		return fmt.Errorf("requests still run after %v: %w", s.cfg.DrainTimeout, err)
	}
	return nil
}

// waitEvents waits for the Event invocations. No handler may run any more.
func (s *Server) waitEvents(ctx context.Context) error {
	over := make(chan struct{})
	go func() { // ends with the events, at the latest at the functions' shutdown
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

// errorWriter makes net/http's log lines errors.
type errorWriter func(error)

func (w errorWriter) Write(line []byte) (int, error) {
	w(errors.New(string(line[:max(len(line)-1, 0)])))
	return len(line), nil
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn := http.NewResponseController(w)
	// The handler's own limits, because those of http.Server would also run while
	// the function does. Errors mean that the connection has gone.
	limit := time.Now().Add(s.cfg.BodyTimeout)
	_ = conn.SetReadDeadline(limit)
	_ = conn.SetWriteDeadline(limit.Add(s.cfg.WriteTimeout)) // for 100 Continue and refusals

	ids := newIDs()
	id := ids.request
	proposed := r.Header.Get("X-Amzn-Requestid")
	if isUUID(proposed) {
		id = proposed
	}
	w.Header().Set("X-Amzn-Requestid", id)
	if err := guard(r); err != nil {
		err.write(w)
		return
	}
	op, name, err := route(r)
	if err == nil && proposed != "" && id != proposed {
		err = errRequestID // INV-07
	}
	var req request
	if err == nil {
		req, err = s.parse(r, op, name)
	}
	if err != nil {
		err.write(w)
		return
	}
	body, held, err := s.readBody(r, req.kind)
	if err != nil { // the deadline stays: net/http reads on before it answers
		s.buffered.give(held)
		err.write(w)
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	if req.kind == dryRun { // INV-02
		s.buffered.give(held)
		w.WriteHeader(http.StatusNoContent)
		return
	}
	inv := &rapid.Invocation{
		ID: id, Payload: body, ContentType: req.contentType, ClientContext: req.clientContext,
		TraceID: req.traceID, FunctionARN: req.arn, Stream: req.stream, TenantID: req.tenant, NoTail: !req.tail,
	}
	if inv.TraceID == "" {
		inv.TraceID = ids.trace
	}
	s.run(w, r, conn, req, inv, held)
}

// run has the invocation executed and answers. It gives back the held bytes when the
// body is of no use any more.
func (s *Server) run(w http.ResponseWriter, r *http.Request, conn *http.ResponseController, req request, inv *rapid.Invocation, held int64) {
	lease, err := s.cfg.Functions.Lease(r.Context(), req.name, inv.TenantID)
	if err != nil {
		s.buffered.give(held)
		s.refuse(w, conn, inv.ID, req.arn, err)
		return
	}
	inv.Arrived = time.Now()
	if req.kind == event {
		s.events.Go(func() {
			defer s.buffered.give(held)
			if _, err := lease.Invoke(inv); err != nil {
				s.cfg.OnError(fmt.Errorf("accepted event %s was not run: %w", inv.ID, err))
			}
		})
		_ = conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout)) // the wait for a place may have been long
		s.accepted(w, req)
		return
	}
	res, err := lease.Invoke(inv)
	req.version = lease.Version()
	s.buffered.give(held)
	if err != nil {
		s.refuse(w, conn, inv.ID, req.arn, err)
		return
	}
	patience := s.cfg.WriteTimeout
	if n := int64(len(res.Payload)); s.buffered.take(n) {
		defer s.buffered.give(n)
	} else {
		patience = min(patience, hurried)
	}
	if req.stream {
		s.stream(r.Context(), w, conn, req, res, patience)
		return
	}
	if req.tail { // INV-03: REPORT is the last line, so the answer waits for it
		select {
		case <-res.Done:
			w.Header().Set("X-Amz-Log-Result", base64.StdEncoding.EncodeToString(res.Tail()))
		case <-r.Context().Done():
			panic(http.ErrAbortHandler) // as in refuse
		}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(patience))
	s.answer(w, req.version, res)
}

// answer writes the function's answer (INV-06, INV-10 to INV-14).
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
		h["Content-Type"] = nil // RT-31: none, so net/http must not guess one
	}
	h.Set("Content-Length", strconv.Itoa(len(res.Payload)))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(res.Payload) // a client that has gone has no need of an error
}

// accepted writes the answer to an Event request (INV-02, INV-34).
func (s *Server) accepted(w http.ResponseWriter, req request) {
	if req.legacy {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusAccepted)
		_, _ = w.Write([]byte(`{"Status":202}`))
		return
	}
	w.WriteHeader(http.StatusAccepted)
}

// refuse writes why there is no answer of the function.
func (s *Server) refuse(w http.ResponseWriter, conn *http.ResponseController, id, arn string, err error) {
	_ = conn.SetWriteDeadline(time.Now().Add(s.cfg.WriteTimeout))
	switch {
	case errors.Is(err, ErrNoFunction):
		notFound(arn).write(w)
	case errors.Is(err, ErrTooMany):
		errTooMany.write(w)
	case errors.Is(err, rapid.ErrUnavailable):
		errUnavailable.write(w)
	case errors.Is(err, rapid.ErrDuplicate):
		errDuplicate.write(w)
	case errors.Is(err, ErrClosed):
		w.Header().Set("Connection", "close")
		errShutdown.write(w)
	case errors.Is(err, context.Canceled): // the client has gone, or has said all at least
		panic(http.ErrAbortHandler) // closes the connection: an empty 200 would be a function's answer
	default:
		s.cfg.OnError(fmt.Errorf("request %s: %w", id, err))
		errService.write(w)
	}
}
