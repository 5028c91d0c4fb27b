package operator

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/lambda"
)

// Errors of [Config.Logs].
var (
	ErrNoLines        = errors.New("the function has no lines")
	ErrTooManyReaders = errors.New("too many commands read logs at once")
)

// maxLogReaders is how many operators may read logs at once. Others keep their connections for
// other commands.
const maxLogReaders = 16

// logWriteTime is how long an operator may take to read a part of the lines.
const logWriteTime = 20 * time.Second

// logs passes on the lines of a function, as the worker sends them.
func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	body, err := s.openLogs(r)
	if err != nil {
		writeJSON(w, s.failed(r, err), admin.Failure{Error: err.Error()})
		return
	}
	defer func() {
		body.Close()
		<-s.readers
	}()
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{}) // it may last; what fails here fails below
	w.Header().Set("Content-Type", "application/x-ndjson")
	w.Header().Set("Cache-Control", "no-store")
	part := make([]byte, 32<<10)
	for n := 0; ; {
		_ = c.SetWriteDeadline(time.Now().Add(logWriteTime))
		if _, err := w.Write(part[:n]); err != nil {
			return
		}
		if c.Flush() != nil {
			return
		}
		if n, err = body.Read(part); n == 0 && errors.Is(err, io.EOF) {
			return
		} else if n == 0 && err != nil {
			panic(http.ErrAbortHandler) // so that the operator does not take it for the end
		}
	}
}

// openLogs asks the worker. It takes a place among the readers, unless it fails.
func (s *Server) openLogs(r *http.Request) (_ io.ReadCloser, err error) {
	q, err := admin.ParseLogQuery(r.URL.Query())
	if err != nil {
		return nil, failure{http.StatusBadRequest, err}
	}
	if !function.NameForm.MatchString(q.Function) {
		return nil, failure{http.StatusBadRequest, fmt.Errorf("%.200q is no name of a function", q.Function)}
	}
	known, err := s.cfg.Known(r.Context(), q.Function)
	if err != nil {
		return nil, err
	}
	select {
	case s.readers <- struct{}{}:
	default:
		return nil, failure{http.StatusTooManyRequests, fmt.Errorf("%d commands read logs already: end one, then retry", maxLogReaders)}
	}
	defer func() {
		if err != nil {
			<-s.readers
		}
	}()
	body, err := s.cfg.Logs(r.Context(), q, known)
	s.cfg.Audit.read(peerFrom(r.Context()), q.Function, err)
	switch {
	case errors.Is(err, ErrNoLines):
		err = failure{http.StatusNotFound, fmt.Errorf("there is no function %s, and no logs of one; 'aws lambda list-functions' lists functions", q.Function)}
	case errors.Is(err, message.ErrNoWorker):
		err = failure{http.StatusServiceUnavailable, errors.New("the worker is being started; retry")}
	case errors.Is(err, ErrTooManyReaders):
		err = failure{http.StatusTooManyRequests, err}
	}
	return body, err
}

// Caller returns the caller of a request to the API on the operators' socket, who may do
// everything: root or a member of the operators' group. ok is false for all other requests.
func Caller(r *http.Request) (_ lambda.Caller, ok bool) {
	p, ok := r.Context().Value(peerKey{}).(Peer)
	return lambda.Caller{Key: fmt.Sprintf("uid:%d", p.UID)}, ok
}
