package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
	"github.com/sandboxd/sandboxd/invoke"
)

// A fakeLine hands out connections to a process that can be killed and started again.
type fakeLine struct {
	t      *testing.T
	opened atomic.Int32

	mu      sync.Mutex
	streams *seqpacket.Streams // nil while there is no process
	server  *http.Server
	retired []uint64
}

func newFakeLine(t *testing.T, h http.Handler) *fakeLine {
	l := &fakeLine{t: t}
	l.begin(h)
	t.Cleanup(l.kill)
	return l
}

// begin starts the process.
func (l *fakeLine) begin(h http.Handler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams, l.server = seqpacket.NewStreams(), &http.Server{Handler: h}
	go l.server.Serve(l.streams)
}

// kill ends the process, whose connections break.
func (l *fakeLine) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams != nil {
		l.server.Close()
		l.streams.Close()
	}
	l.streams = nil
}

func (l *fakeLine) Connect(context.Context) (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.streams == nil {
		return nil, message.ErrNoControl
	}
	l.opened.Add(1)
	ours, theirs, err := seqpacket.StreamPair()
	if err != nil {
		return nil, err
	}
	l.streams.Add(theirs)
	defer ours.Close()
	return net.FileConn(ours)
}

func (l *fakeLine) Retire(_ context.Context, number uint64) error {
	l.retired = append(l.retired, number)
	return nil
}

func TestControlClient(t *testing.T) {
	var questions []string
	answers := map[string]string{}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		questions = append(questions, strings.TrimSpace(fmt.Sprint(r.Method, " ", r.Host, r.RequestURI, " ", string(body))))
		answer, ok := answers[r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			answer = `{"Status":404,"Type":"ResourceNotFoundException","Message":"Function not found: x"}`
		}
		io.WriteString(w, answer)
	})
	line := newFakeLine(t, handler)
	var failures []error
	c := newControlClient(line, func(err error) { failures = append(failures, err) })
	defer c.close()
	asks := func(want string) {
		t.Helper()
		if len(questions) != 1 || questions[0] != want {
			t.Errorf("asked %q, want %q", questions, want)
		}
		questions = nil
	}

	_, err := c.resolve(t.Context(), "x", "1")
	if fault, ok := errors.AsType[*invoke.Fault](err); !ok || *fault != (invoke.Fault{Status: 404, Type: "ResourceNotFoundException", Message: "Function not found: x"}) {
		t.Errorf("a refusal: %v", err)
	}
	asks("GET control.internal/resolve?name=x&qualifier=1")

	answers[message.ResolvePath] = `{"Revision":{"ID":"1f/3","Name":"x","MemoryMB":256},"Reserved":-1}`
	r, err := c.resolve(t.Context(), "x", "")
	if err != nil || r.Revision.ID.Number != 3 || r.Revision.ID.Epoch != 0x1f || r.Revision.MemoryMB != 256 || r.Reserved != -1 {
		t.Errorf("%+v, %v", r, err)
	}
	asks("GET control.internal/resolve?name=x&qualifier=")

	answers[message.EnvironmentPath] = `{"A":"b"}`
	if vars, err := c.environment(t.Context(), 3); err != nil || len(vars) != 1 || vars["A"] != "b" {
		t.Errorf("%v, %v", vars, err)
	}
	asks("GET control.internal/environment?revision=3")

	answers[message.VerifyPath] = `{"Exists":true,"Known":true,"Allowed":true}`
	if v, err := c.verify(t.Context(), message.Verify{AccessKeyID: "AKSD", Action: "a"}); err != nil || !v.Exists || !v.Known || !v.Allowed {
		t.Errorf("%+v, %v", v, err)
	}
	if want := `POST control.internal/verify {"AccessKeyID":"AKSD"`; len(questions) != 1 || !strings.HasPrefix(questions[0], want) {
		t.Errorf("asked %q, want %s…", questions, want)
	}
	questions = nil
	if n := line.opened.Load(); n != 1 {
		t.Errorf("%d connections for questions one after the other", n)
	}

	for _, nonsense := range []string{"{", strings.Repeat("x", maxAnswer+1)} {
		answers[message.EnvironmentPath] = nonsense
		if _, err := c.environment(t.Context(), 3); !errors.Is(err, errControl) {
			t.Errorf("an answer %.10q: %v", nonsense, err)
		}
		if len(failures) != 1 {
			t.Errorf("an answer %.10q: the log has %v, want one line", nonsense, failures)
		}
		failures = nil
	}
	answers[message.EnvironmentPath] = `{"A":"b"}`

	// The process dies: its connections break, and there is no other for a while.
	line.kill()
	if _, err := c.environment(t.Context(), 3); !errors.Is(err, errControl) {
		t.Errorf("without the process: %v", err)
	}
	if failures != nil {
		t.Errorf("the log has %v; the supervisor reports the end of the process", failures)
	}
	line.begin(handler)
	if vars, err := c.environment(t.Context(), 3); err != nil || vars["A"] != "b" {
		t.Errorf("with the next process: %v, %v", vars, err)
	}
	// It is started again between two questions: the connection in the pool is broken.
	line.kill()
	line.begin(handler)
	if v, err := c.verify(t.Context(), message.Verify{AccessKeyID: "AKSD"}); err != nil || !v.Known {
		t.Errorf("over a connection that has broken: %v, %v", v, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.environment(cancelled, 3); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has left: %v", err)
	}
}

// What control asks the worker: a switch is answered when it is in force.
func TestAnswersControl(t *testing.T) {
	f, c := newLearner(t, nil)
	defer f.finish(t)
	c.update("a")
	if got := f.run(t.Context(), "a"); got != "1" {
		t.Fatal(got)
	}
	streams := seqpacket.NewStreams()
	defer (&worker{functions: f}).listen(streams)()
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs, err := seqpacket.StreamPair()
		if err != nil {
			return nil, err
		}
		streams.Add(theirs)
		defer ours.Close()
		return net.FileConn(ours)
	}}}
	defer client.CloseIdleConnections()
	post := func(url string, body any) int {
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Post(url, "application/json", bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	url := "http://" + message.WorkerHost + message.SwitchPath
	if status := post(url, message.Switch{Name: "a", Number: c.update("a")}); status != http.StatusNoContent {
		t.Errorf("a switch: %d", status)
	}
	if got := f.run(t.Context(), "a"); got != "2" {
		t.Errorf("after the switch: %s", got)
	}
	if status := post(url, "nonsense"); status != http.StatusBadRequest {
		t.Errorf("no switch: %d", status)
	}
	if status := post("http://elsewhere"+message.SwitchPath, message.Switch{Name: "a"}); status != http.StatusNotFound {
		t.Errorf("another host: %d", status)
	}
}

// The variables of a revision are there while it has sandboxes.
func TestEnvironment(t *testing.T) {
	fetched := 0
	var failure error
	e := newEnvironment(func(context.Context) (map[string]string, error) {
		fetched++
		return map[string]string{"A": "function", "B": "b"}, failure
	})
	hold := func() {
		t.Helper()
		vars, err := e.hold(t.Context(), map[string]string{"A": "image", "C": "c"})
		if err != nil || len(vars) != 3 || vars["A"] != "function" || vars["B"] != "b" || vars["C"] != "c" {
			t.Errorf("%v, %v", vars, err)
		}
	}
	hold()
	hold()
	if fetched != 1 {
		t.Errorf("fetched %d times for two sandboxes", fetched)
	}
	e.release()
	if e.vars == nil {
		t.Error("the variables are gone, but there is a sandbox")
	}
	e.release()
	if e.vars != nil {
		t.Error("the variables stay without a sandbox")
	}
	failure = errControl
	if _, err := e.hold(t.Context(), nil); !errors.Is(err, errControl) || e.vars != nil || e.users != 0 {
		t.Errorf("%v; %v, %d users", err, e.vars, e.users)
	}
	failure = nil
	hold()
	e.release()

	// Two sandboxes at once: the second waits for the variables, at most until its context ends.
	fetching, answer := make(chan bool), make(chan bool)
	e.fetch = func(context.Context) (map[string]string, error) {
		fetching <- true
		<-answer
		return nil, nil
	}
	held := make(chan error)
	go func() {
		_, err := e.hold(t.Context(), nil)
		held <- err
	}()
	<-fetching
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := e.hold(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	answer <- true
	if err := <-held; err != nil || e.users != 1 || e.vars == nil {
		t.Errorf("%v; %v, %d users", err, e.vars, e.users)
	}
	var none *environment
	if vars, err := none.hold(t.Context(), map[string]string{"A": "b"}); err != nil || vars["A"] != "b" {
		t.Errorf("without control: %v, %v", vars, err)
	}
	none.release()
}
