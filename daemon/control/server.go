package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/internal/accept"
	"github.com/sandboxd/sandboxd/internal/message"
)

// API knows the functions. As an http.Handler it answers the requests of clients that the
// worker passes on, the Lambda API. Its methods are called from several goroutines. Errors
// that are a [*message.Fault] go to the client as they are; others are logged.
type API interface {
	http.Handler

	// Resolve returns the revision that serves the function name, registered with the
	// supervisor.
	Resolve(ctx context.Context, name, qualifier string) (message.Resolved, error)
	// Environment returns the variables of the revision with that number.
	Environment(ctx context.Context, revision uint64) (map[string]string, error)
	// Verify checks the signature of an invocation.
	Verify(ctx context.Context, v message.Verify) (message.Verdict, error)
	// Operators answers the requests of operators, except for those about the health of the
	// process.
	Operators() http.Handler

	// Close ends the API. No other method is called any more.
	Close() error
}

// Limits of the worker's requests.
const (
	maxConns    = 512              // connections at once
	maxHeader   = 64 << 10         // bytes of a request's head
	maxQuestion = 64 << 10         // bytes of a body of the worker's own
	headTime    = 10 * time.Second // for the head of a request
	openTime    = 5 * time.Second  // for the functions to be open, after which a request is refused
	idleTime    = 5 * time.Minute  // of a connection; the worker closes its own earlier
	endTime     = 5 * time.Second  // for running requests when the process stops
)

// server answers the worker.
type server struct {
	log  *logrus.Logger
	http *http.Server
	own  http.Handler  // for the worker's own questions
	open chan struct{} // closed when api is set
	api  API
}

func newServer(log *logrus.Logger) *server {
	s := &server{log: log, open: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+message.ResolvePath, answer(s, func(api API, r *http.Request) (any, error) {
		q := r.URL.Query()
		return api.Resolve(r.Context(), q.Get("name"), q.Get("qualifier"))
	}))
	mux.HandleFunc("GET "+message.EnvironmentPath, answer(s, func(api API, r *http.Request) (any, error) {
		n, err := strconv.ParseUint(r.URL.Query().Get("revision"), 10, 64)
		if err != nil {
			return nil, &message.Fault{Status: http.StatusBadRequest, Type: "InvalidParameterValueException", Message: "a revision is a number"}
		}
		return api.Environment(r.Context(), n)
	}))
	mux.HandleFunc("POST "+message.VerifyPath, answer(s, func(api API, r *http.Request) (any, error) {
		var v message.Verify
		if err := json.NewDecoder(io.LimitReader(r.Body, maxQuestion)).Decode(&v); err != nil {
			return nil, &message.Fault{Status: http.StatusBadRequest, Type: "InvalidRequestContentException", Message: "a question about a signature is JSON"}
		}
		return api.Verify(r.Context(), v)
	}))
	s.own = mux
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: headTime, IdleTimeout: idleTime, MaxHeaderBytes: maxHeader}
	return s
}

// ready sets what knows the functions. It is called once.
func (s *server) ready(api API) {
	s.api = api
	close(s.open)
}

// isOpen waits until the functions are open, but no longer than patience, and reports whether
// they are.
func (s *server) isOpen(ctx context.Context, patience time.Duration) bool {
	select {
	case <-s.open:
		return true
	default:
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.open:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// serve serves connections of l until shutdown.
func (s *server) serve(l net.Listener) error {
	err := s.http.Serve(&limited{Listener: accept.Listener(l, nil), free: make(chan struct{}, maxConns)})
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// shutdown ends serve. Requests that run have endTime.
func (s *server) shutdown() {
	ctx, cancel := context.WithTimeout(context.Background(), endTime)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close()
	}
}

// ServeHTTP serves one request: a question of the worker's own, or one of a client.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch open, own := s.isOpen(r.Context(), openTime), r.Host == message.ControlHost; {
	case open && own:
		s.own.ServeHTTP(w, r)
	case open:
		s.api.ServeHTTP(w, r)
	case own:
		fault(w, &message.Fault{Status: http.StatusServiceUnavailable, Type: "ServiceException", Message: starting})
	default:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Amzn-Errortype", "ServiceException")
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(map[string]string{"Type": "Service", "Message": starting}) // fails only if the worker has gone
	}
}

// starting tells clients why a request is refused before the functions are open.
const starting = "The server is starting. Try again."

// answer returns a handler that answers with what ask returns, in JSON.
func answer(s *server, ask func(API, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a, err := ask(s.api, r)
		if err == nil {
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(a) // fails only if the worker has gone
			return
		}
		f, ok := errors.AsType[*message.Fault](err)
		if !ok {
			if r.Context().Err() == nil {
				s.log.WithError(err).WithField("question", r.URL.Path).Error("a question of the worker could not be answered")
			}
			f = &message.Fault{Status: http.StatusInternalServerError, Type: "ServiceException", Message: "the server has failed; its log says more"}
		}
		fault(w, f)
	}
}

func fault(w http.ResponseWriter, f *message.Fault) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Amzn-Errortype", f.Type)
	w.WriteHeader(f.Status)
	_ = json.NewEncoder(w).Encode(f)
}

// limited is a listener with a bounded number of connections at once. Others wait.
type limited struct {
	net.Listener
	free chan struct{}
}

// Accept waits for a free place and for a connection.
func (l *limited) Accept() (net.Conn, error) {
	l.free <- struct{}{}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}

// limitedConn gives up its place when it is closed.
type limitedConn struct {
	net.Conn
	free   chan struct{}
	closed atomic.Bool
}

func (c *limitedConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		<-c.free
	}
	return c.Conn.Close()
}
