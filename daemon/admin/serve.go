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

// FactServer serves facts. It reads nothing from clients: each connection gets the facts
// and is closed.
type FactServer struct {
	l    net.Listener
	done sync.WaitGroup
}

// ServeFacts serves facts on l until Close, and owns l. After a temporary error, such as
// too many open files, it continues; on any other error it stops and calls failed. It calls
// facts from one goroutine.
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
			_ = json.NewEncoder(conn).Encode(facts()) // fails only if the client has gone
			_ = conn.Close()
		}
	})
	return s
}

// Close closes the listener and waits until the goroutine of the server has returned.
func (s *FactServer) Close() {
	_ = s.l.Close()
	s.done.Wait()
}

// reportPath is the only resource on the worker's socket.
const reportPath = "/v1/sandboxes"

// ReportServer serves reports.
type ReportServer struct {
	server *http.Server
	done   chan struct{} // closed when the server has returned
}

// ServeReports serves reports on l until Close, and owns l. It handles errors as ServeFacts
// does. It may call report from several goroutines at once.
func ServeReports(l net.Listener, report func() Report, failed func(error)) *ReportServer {
	l = accept.Listener(l, nil)
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+reportPath, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report()) // fails only if the client has gone
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

// Close closes the listener and all connections, and waits until the server has returned.
func (s *ReportServer) Close() {
	_ = s.server.Close() // an error can only come from closing the listener
	<-s.done
}
