package cases

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
	"github.com/sandboxd/sandboxd/conformance/suite"
)

// fake is a target within the test: the least of a Lambda environment that the cases
// below need, with faults that can be switched on.
type fake struct {
	t      *testing.T
	faults faults
	starts int
}

// faults are ways to be wrong. The zero value is right.
type faults struct {
	accepted     int    // status of what is accepted, instead of 202
	pong         string // instead of pong
	payload      bool   // the event is changed on its way
	otherID      bool   // the caller is told another id than the runtime
	contentType  bool   // the runtime gets the caller's content type
	noVersion    bool   // no X-Amz-Executed-Version
	errorStatus  int    // of a function error, instead of 200
	unknownTaken bool   // a response for an unknown id is accepted
	loseAnswers  bool   // the caller gets nothing of an answer that is not JSON
}

func (f *fake) Features() []string { return nil }

// fakeEnv is one start of the fake.
type fakeEnv struct {
	f       *fake
	server  *httptest.Server
	api     *httptest.Server
	events  chan *invocation
	ended   chan struct{} // closed when the actor has ended
	closing chan struct{} // closed to end it
	stop    sync.Once

	mu      sync.Mutex
	current *invocation
	ids     int
}

type invocation struct {
	id, contentType string
	payload         []byte
	answer          chan answered // has room for one
}

type answered struct {
	body        []byte
	contentType string
	failed      bool
}

func (f *fake) Start(_ context.Context, s *suite.Setup) (suite.Instance, error) {
	f.starts++
	dir := f.t.TempDir()
	program := filepath.Join(dir, script.File)
	if err := os.WriteFile(program, []byte(script.Encode(script.Program{})), 0o644); err != nil {
		return nil, err
	}
	e := &fakeEnv{f: f, events: make(chan *invocation), ended: make(chan struct{}), closing: make(chan struct{})}
	api := http.NewServeMux()
	api.HandleFunc("GET "+nextPath, e.next)
	api.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/{kind}", e.answer)
	api.HandleFunc("GET "+pingPath, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, or(f.faults.pong, "pong")) })
	e.api = httptest.NewServer(api)
	e.server = httptest.NewServer(http.HandlerFunc(e.invoke))
	go func() {
		defer close(e.ended)
		err := actor.Run(actor.Config{
			Who: "runtime", API: strings.TrimPrefix(e.api.URL, "http://"), Program: program, Scratch: dir,
			Exit: func(int) { runtime.Goexit() }, Out: io.Discard, Err: io.Discard,
		})
		if err == nil {
			f.t.Error("the actor ended without a reason")
		}
	}()
	return e, nil
}

func or(s, otherwise string) string {
	if s != "" {
		return s
	}
	return otherwise
}

func (e *fakeEnv) URL() string                        { return e.server.URL }
func (e *fakeEnv) Log() string                        { return "" }
func (e *fakeEnv) WaitLog(string, time.Duration) bool { return false }

func (e *fakeEnv) Stop() error {
	e.stop.Do(func() {
		close(e.closing)
		<-e.ended // no request is under way any more
		e.api.Close()
		e.server.Close()
	})
	return nil
}

func (e *fakeEnv) invoke(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	kind := "application/json"
	if e.f.faults.contentType {
		kind = r.Header.Get("Content-Type")
	}
	if e.f.faults.payload {
		body = append(body, ' ')
	}
	e.mu.Lock()
	e.ids++
	inv := &invocation{id: fmt.Sprintf("00000000-0000-4000-8000-%012d", e.ids), contentType: kind, payload: body, answer: make(chan answered, 1)}
	e.mu.Unlock()
	e.events <- inv
	a := <-inv.answer
	w.Header().Set("X-Amzn-Requestid", inv.id)
	if e.f.faults.otherID {
		w.Header().Set("X-Amzn-Requestid", "other")
	}
	if !e.f.faults.noVersion {
		w.Header().Set("X-Amz-Executed-Version", "$LATEST")
	}
	w.Header().Set("Content-Type", a.contentType)
	status := http.StatusOK
	if a.failed {
		w.Header().Set("X-Amz-Function-Error", "Unhandled")
		if e.f.faults.errorStatus != 0 {
			status = e.f.faults.errorStatus
		}
	}
	w.WriteHeader(status)
	if !e.f.faults.loseAnswers || a.contentType == "application/json" {
		w.Write(a.body)
	}
}

func (e *fakeEnv) next(w http.ResponseWriter, r *http.Request) {
	select {
	case inv := <-e.events:
		e.mu.Lock()
		e.current = inv
		e.mu.Unlock()
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", inv.id)
		w.Header().Set("Content-Type", inv.contentType)
		w.Write(inv.payload)
	case <-r.Context().Done():
	case <-e.closing: // which ends the actor
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

func (e *fakeEnv) answer(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	e.mu.Lock()
	defer e.mu.Unlock()
	known := e.current != nil && r.PathValue("id") == e.current.id
	if !known && !e.f.faults.unknownTaken {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		io.WriteString(w, `{"errorMessage":"Invalid request ID","errorType":"InvalidRequestID"}`+"\n")
		return
	}
	if known {
		e.current.answer <- answered{body, r.Header.Get("Content-Type"), r.PathValue("kind") == "error"}
		e.current = nil
	}
	w.Header().Set("Content-Type", "application/json")
	if e.f.faults.accepted == 0 {
		e.f.faults.accepted = http.StatusAccepted
	}
	w.WriteHeader(e.f.faults.accepted)
	io.WriteString(w, `{"status":"OK"}`+"\n")
}
