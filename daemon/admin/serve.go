package admin

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/accept"
)

// answerTime is how long a client may take to read an answer.
const answerTime = 10 * time.Second

// FactServer is the supervisor's side. It reads nothing: whoever connects gets the facts,
// and the connection is closed.
type FactServer struct {
	l    net.Listener
	done sync.WaitGroup
}

// ServeFacts serves facts on l, which it owns, until Close. It goes on after errors that
// pass, such as too many open files; failed is told if it cannot go on. facts is called
// from one goroutine.
func ServeFacts(l net.Listener, facts func() []Fact, failed func(error)) *FactServer {
	l = accept.Listener(l, nil)
	s := &FactServer{l: l}
	s.done.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				if !errors.Is(err, net.ErrClosed) {
					failed(err)
				}
				return
			}
			_ = conn.SetDeadline(time.Now().Add(answerTime))
			_ = json.NewEncoder(conn).Encode(facts()) // a client that has gone misses nothing
			_ = conn.Close()
		}
	})
	return s
}

// Close stops serving.
func (s *FactServer) Close() {
	_ = s.l.Close()
	s.done.Wait()
}

// reportPath is the one resource of the worker's socket.
const reportPath = "/v1/sandboxes"

// ReportServer is the worker's side.
type ReportServer struct {
	server *http.Server
	done   chan struct{} // closed when the server has ended
}

// ServeReports serves reports on l, which it owns, until Close. It goes on after errors that
// pass, as ServeFacts does; failed is told if it cannot go on. report may be called from
// several goroutines.
func ServeReports(l net.Listener, report func() Report, failed func(error)) *ReportServer {
	l = accept.Listener(l, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+reportPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report()) // a client that has gone misses nothing
	})
	s := &ReportServer{
		server: &http.Server{Handler: mux, ReadTimeout: answerTime, WriteTimeout: answerTime},
		done:   make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		if err := s.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed(err)
		}
	}()
	return s
}

// Close stops serving.
func (s *ReportServer) Close() {
	_ = s.server.Close() // its error is that of the listener, which is gone anyway
	<-s.done
}
