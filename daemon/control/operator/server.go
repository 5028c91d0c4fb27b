// Package operator answers the operators of a daemon, on a socket that only they can open: it
// makes, lists and revokes access keys, and tells metrics and whether the daemon is ready. What
// they and the clients of the API do goes to the audit log.
package operator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda/access"
	"github.com/sandboxd/sandboxd/state"
)

// Config configures a [Server]. All fields but Uploads, Usage and API must be set.
type Config struct {
	Keys     *access.Keys
	Store    Store
	HostKeys admin.HostKeys
	Audit    *Audit
	Log      *logrus.Logger

	Start       int // which control process of the daemon this is, from 1 on
	SeriesLimit int // most functions that have series of their own

	// Numbers asks the worker what it has counted, for that many functions at most. The answer
	// is not trusted.
	Numbers func(ctx context.Context, functions int) (message.Numbers, error)
	// Forget makes the worker forget what it knows of an access key. It returns nil when the
	// worker has confirmed that, or when there is no worker.
	Forget func(ctx context.Context, id string) error
	// API serves the Lambda API to operators, for whom [Caller] answers.
	API http.Handler
	// Endpoint is where clients reach the API.
	Endpoint admin.Endpoint
	// Known reports whether there is a function of that name.
	Known func(ctx context.Context, name string) (bool, error)
	// Logs returns lines of a function from the worker, each an admin.LogLine. known says that
	// there is such a function; else the error is ErrNoLines if there are none.
	Logs func(ctx context.Context, q admin.LogQuery, known bool) (io.ReadCloser, error)
	// Uploads returns how many uploads are under way, and how many wait.
	Uploads func() (running, waiting int)
	// Backup writes a backup, with the host key if that is wanted.
	Backup func(ctx context.Context, w io.Writer, hostKey bool) error
	// Usage returns what of the limits is used.
	Usage func(context.Context) (Usage, error)
}

// Usage is what clients use together, and the most that they may.
type Usage struct {
	Functions, MaxFunctions int
	CodeBytes, MaxCodeBytes int64
	DiskFree, DiskFloor     int64 // bytes; with less free than DiskFloor nothing is changed
}

// Store is what the metrics tell of a store.
type Store interface {
	Stats() state.Stats
	Damage() []state.Damage
}

// Server answers operators. It is an http.Handler. Use New.
type Server struct {
	http.Handler
	cfg     Config
	metrics *metrics
	readers chan struct{} // of logs; its capacity bounds them
	backups chan struct{} // capacity 1: held while a backup is made
	stall   time.Duration // stallTime
}

// maxRequest is the most bytes of a request's body.
const maxRequest = 64 << 10

// Time limits of what the worker is asked for.
const (
	numbersTime = 2 * time.Second
	forgetTime  = 10 * time.Second
)

// New returns a server.
func New(cfg Config) *Server {
	s := &Server{cfg: cfg, metrics: newMetrics(cfg), readers: make(chan struct{}, maxLogReaders), backups: make(chan struct{}, 1), stall: stallTime}
	mux := http.NewServeMux()
	mux.Handle("GET "+admin.MetricsPath, s.metrics.handler)
	mux.HandleFunc("GET "+admin.ReadyPath, s.ready)
	mux.HandleFunc("GET "+admin.KeysPath, answer(s, func(r *http.Request, _ *struct{}) (any, error) { return s.list(r.Context()) }))
	mux.HandleFunc("POST "+admin.KeysPath, answer(s, s.create))
	mux.HandleFunc("POST "+admin.RevokePath, answer(s, s.revoke))
	mux.HandleFunc("GET "+admin.HostKeysPath, answer(s, func(*http.Request, *struct{}) (any, error) { return cfg.HostKeys, nil }))
	mux.HandleFunc("GET "+admin.EndpointPath, answer(s, func(*http.Request, *struct{}) (any, error) { return cfg.Endpoint, nil }))
	mux.HandleFunc("GET "+admin.LogsPath, s.logs)
	if cfg.API != nil {
		mux.Handle(admin.APIPath, cfg.API)
	}
	mux.HandleFunc("GET "+admin.BackupPath, s.backup)
	s.Handler = mux
	return s
}

// failure is an error that the operator gets as it is.
type failure struct {
	status int
	error
}

// answer returns a handler that decodes the body of a request, if it has one, and answers with
// what do returns.
func answer[In any](s *Server, do func(*http.Request, *In) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var in In
		out, err := any(nil), error(nil)
		if r.Method == http.MethodPost {
			d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
			d.DisallowUnknownFields()
			if err = d.Decode(&in); err != nil {
				err = failure{http.StatusBadRequest, fmt.Errorf("the request is not as it should be: %w", err)}
			}
		}
		if err == nil {
			out, err = do(r, &in)
		}
		status := http.StatusOK
		if err != nil {
			status, out = s.failed(r, err), admin.Failure{Error: err.Error()}
		}
		writeJSON(w, status, out)
	}
}

func writeJSON(w http.ResponseWriter, status int, out any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // fails only if the client has gone
}

// failed returns the status for an error, which it logs if the operator is not at fault.
func (s *Server) failed(r *http.Request, err error) int {
	if f, ok := errors.AsType[failure](err); ok {
		return f.status
	}
	if r.Context().Err() == nil {
		s.cfg.Log.WithError(err).WithField("path", r.URL.Path).Error("a command of an operator has failed")
	}
	return http.StatusInternalServerError
}

func (s *Server) list(ctx context.Context) (any, error) {
	keys, err := s.cfg.Keys.List(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]admin.Key, len(keys))
	for i, k := range keys {
		list[i] = describe(k)
	}
	return list, nil
}

func describe(k access.Key) admin.Key {
	return admin.Key{ID: k.ID, Kind: string(k.Kind), Functions: k.Functions, Created: k.Created, Used: k.Used, Revoked: k.Revoked}
}

func (s *Server) create(r *http.Request, in *admin.NewKey) (any, error) {
	kind := access.Admin
	if len(in.Invoke) > 0 {
		kind = access.Invoke
	}
	if err := access.Check(kind, in.Invoke); err != nil {
		return nil, failure{http.StatusBadRequest, err}
	}
	key, secret, err := s.cfg.Keys.Create(r.Context(), kind, in.Invoke)
	s.cfg.Audit.command(peerFrom(r.Context()), "create-key", key.ID, err)
	if errors.Is(err, access.ErrTooMany) {
		err = failure{http.StatusConflict, err}
	}
	if err != nil {
		return nil, err
	}
	return admin.CreatedKey{Key: describe(key), Secret: secret}, nil
}

// revoke revokes a key. It answers when the worker, too, accepts it no more.
func (s *Server) revoke(r *http.Request, in *admin.RevokeKey) (any, error) {
	// Begun, it is finished: a client that goes away must not leave the worker untold.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), forgetTime)
	defer cancel()
	key, err := s.cfg.Keys.Revoke(ctx, in.ID)
	s.cfg.Audit.command(peerFrom(r.Context()), "revoke-key", in.ID, err)
	if errors.Is(err, access.ErrNoKey) {
		return nil, failure{http.StatusNotFound, fmt.Errorf("there is no access key %.128q; 'sandboxd key list' lists them", in.ID)}
	}
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Forget(ctx, in.ID); err != nil {
		return nil, fmt.Errorf("access key %s is revoked, but the worker has not confirmed that it will accept it no more; repeat the command: %w", in.ID, err)
	}
	return describe(key), nil
}

// ready reports whether functions can be called: the functions are open, or this handler would
// not be there, and the worker answers.
func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), numbersTime)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := s.cfg.Numbers(ctx, 0); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintf(w, "not ready: the worker does not answer: %v\n", err)
		return
	}
	text := "ready"
	if n := len(s.cfg.Store.Damage()); n > 0 {
		text = fmt.Sprintf("ready, but %d parts of the store are damaged: nothing can be changed until a backup is restored", n)
	}
	fmt.Fprintln(w, cmp.Or(s.unreadable(), text))
}

// unreadable says that secrets cannot be decrypted, "" if all can.
func (s *Server) unreadable() string {
	if n := s.cfg.HostKeys.Unreadable; n > 0 {
		return fmt.Sprintf("ready, but %d secrets in the store cannot be decrypted with the host key", n)
	}
	return ""
}
