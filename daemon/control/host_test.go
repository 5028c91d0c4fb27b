package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/daemon/control/folder"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newHost returns a host whose supervisor is cfg.
func newHost(t *testing.T, cfg registry.Config) *Host {
	t.Helper()
	ours, line, err := registry.Pair()
	if err != nil {
		t.Fatal(err)
	}
	server, err := registry.NewServer(ours, cfg)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(func() {}) }()
	client, err := registry.NewClient(line)
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	h := &Host{Config: &message.ControlConfig{}, Log: log, Lines: t.Output(), Folders: folder.New(nil), client: client}
	t.Cleanup(func() {
		if h.worker != nil {
			h.worker.CloseIdleConnections()
		}
		client.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return h
}

// Register sends the files that the supervisor wants, each time that it wants some, but not
// for ever.
func TestRegisterSends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, []byte("blob"), 0o600); err != nil {
		t.Fatal(err)
	}
	rev := &message.Revision{ID: function.ID{Epoch: 1, Number: 1}, Code: message.Digest{1}, Layers: []message.Digest{{2}}}
	gone := errors.New("the blob is gone")
	for name, c := range map[string]struct {
		wants []uint32 // in turn; the last one stays
		open  error
		opens int
		want  error
	}{
		"nothing":           {[]uint32{0}, nil, 0, nil},
		"a layer":           {[]uint32{2, 0}, nil, 1, nil},
		"both":              {[]uint32{3, 0}, nil, 2, nil},
		"one, then both":    {[]uint32{1, 3, 0}, nil, 3, nil},
		"what there is not": {[]uint32{2, 0}, gone, 1, gone},
		"always more":       {[]uint32{1}, nil, maxSends, &registry.Missing{}},
		"an unknown tree":   {[]uint32{4}, nil, 0, errors.New("wants tree 2 of 2")},
	} {
		asked, opens := 0, 0
		var last uint32
		h := newHost(t, registry.Config{Register: func(_ context.Context, _ []byte, files []*os.File) (function.Program, uint32, error) {
			for i, f := range files {
				if (f != nil) != (last&(1<<i) != 0) {
					t.Errorf("%s: the file of tree %d came: %v", name, i, f != nil)
				}
			}
			last = c.wants[min(asked, len(c.wants)-1)]
			asked++
			return function.Program{Locale: "C.UTF-8"}, last, nil
		}})
		program, err := h.Register(t.Context(), rev, func(d message.Digest) (*os.File, error) {
			opens++
			if c.open != nil {
				return nil, c.open
			}
			return os.Open(path)
		})
		missing, wantsMissing := (*registry.Missing)(nil), false
		if _, ok := c.want.(*registry.Missing); ok {
			wantsMissing = true
		}
		switch {
		case opens != c.opens:
			t.Errorf("%s: %d files were opened, want %d", name, opens, c.opens)
		case wantsMissing && !errors.As(err, &missing), !wantsMissing && (err == nil) != (c.want == nil), c.want != nil && !wantsMissing && !strings.Contains(err.Error(), c.want.Error()):
			t.Errorf("%s: %v, want %v", name, err, c.want)
		case err == nil && program.Locale != "C.UTF-8":
			t.Errorf("%s: %+v", name, program)
		}
	}
}

// Switch returns when a worker has confirmed it, or when there is none, and not before.
func TestSwitch(t *testing.T) {
	var refuse atomic.Int32 // so many connections are dropped, and then requests fail
	var told atomic.Int32
	streams := seqpacket.NewStreams()
	worker := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var s message.Switch
		if err := json.NewDecoder(r.Body).Decode(&s); err != nil || s.Name != "hello" || s.Number != 3 || r.Host != message.WorkerHost || r.URL.Path != message.SwitchPath {
			t.Errorf("%+v of %s%s, %v", s, r.Host, r.URL.Path, err)
		}
		told.Add(1)
		if refuse.Add(-1) >= 0 {
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})}
	go worker.Serve(streams)
	t.Cleanup(func() { worker.Close() })
	var none atomic.Bool
	h := newHost(t, registry.Config{Connect: func(context.Context) (*os.File, error) {
		if none.Load() {
			return nil, message.ErrNoWorker
		}
		ours, theirs, err := seqpacket.StreamPair()
		if err != nil {
			return nil, err
		}
		if refuse.Load() > 2 {
			refuse.Add(-1)
			theirs.Close() // as a worker that dies
		} else {
			streams.Add(theirs)
		}
		return ours, nil
	}})
	sw := message.Switch{Name: "hello", Number: 3}
	refuse.Store(4)
	if err := h.Switch(t.Context(), sw); err != nil || told.Load() != 3 {
		t.Errorf("%v after the worker was told %d times, want 3", err, told.Load())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	refuse.Store(1 << 20)
	if err := h.Switch(ctx, sw); err == nil || !strings.Contains(err.Error(), "tell the worker of function hello") {
		t.Errorf("a worker that never confirms: %v", err)
	}
	none.Store(true)
	h.worker.CloseIdleConnections()
	if err := h.Switch(t.Context(), sw); err != nil {
		t.Errorf("without a worker: %v", err)
	}
}

// fakeAPI answers with what it is.
type fakeAPI struct{ err error }

func (a fakeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, "api "+r.RequestURI)
}
func (a fakeAPI) Resolve(_ context.Context, name, qualifier string) (message.Resolved, error) {
	return message.Resolved{Reserved: len(name + qualifier)}, a.err
}
func (a fakeAPI) Environment(context.Context, uint64) (map[string]string, error) {
	return map[string]string{"A": "b"}, a.err
}
func (a fakeAPI) Verify(_ context.Context, v message.Verify) (message.Verdict, error) {
	return message.Verdict{Known: v.AccessKeyID == "a"}, a.err
}
func (a fakeAPI) Operators() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "operator "+r.RequestURI) })
}
func (a fakeAPI) Close() error { return nil }

// The worker's questions are told from the requests of clients by their host, and nothing is
// answered before the functions are known.
func TestServer(t *testing.T) {
	log := logrus.New()
	var logged strings.Builder
	log.SetOutput(&logged)
	s := newServer(log)
	ask := func(host, method, target, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Host = host
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		return w
	}
	synctest.Test(t, func(t *testing.T) {
		s = newServer(log)
		began := time.Now()
		if w := ask(message.ControlHost, "GET", "/resolve?name=a", ""); w.Code != 503 || w.Header().Get("X-Amzn-Errortype") != "ServiceException" || !strings.Contains(w.Body.String(), `"Status":503`) {
			t.Errorf("a question before it is open: %d %s", w.Code, w.Body)
		}
		if w := ask("127.0.0.1:9000", "GET", "/x", ""); w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"Type":"Service"`) {
			t.Errorf("a client before it is open: %d %v %s", w.Code, w.Header(), w.Body)
		}
		if waited := time.Since(began); waited != 2*openTime {
			t.Errorf("the two waited %v", waited)
		}
		time.AfterFunc(openTime/2, func() { s.ready(fakeAPI{}) })
		if w := ask("127.0.0.1:9000", "GET", "/x", ""); w.Code != 200 {
			t.Errorf("a client while it opens: %d %s", w.Code, w.Body)
		}
	})
	open := func(a API) {
		s = newServer(log)
		s.ready(a)
	}
	open(fakeAPI{})
	for _, c := range []struct {
		host, method, target, body string
		code                       int
		want                       string
	}{
		{message.ControlHost, "GET", "/resolve?name=ab&qualifier=c", "", 200, `"Reserved":3`},
		{message.ControlHost, "GET", "/environment?revision=7", "", 200, `"A":"b"`},
		{message.ControlHost, "GET", "/environment?revision=-7", "", 400, "a revision is a number"},
		{message.ControlHost, "POST", "/verify", `{"AccessKeyID":"a"}`, 200, `"Known":true`},
		{message.ControlHost, "POST", "/verify", strings.Repeat(" ", maxQuestion) + "{}", 400, "is JSON"},
		{message.ControlHost, "POST", "/resolve?name=ab", "", 405, ""},
		{message.ControlHost, "GET", "/2015-03-31/functions", "", 404, ""},
		{"127.0.0.1:9000", "GET", "/resolve?name=ab", "", 200, "api /resolve?name=ab"},
		{"127.0.0.1:9000", "GET", "/a%2Fb", "", 200, "api /a%2Fb"},
		{message.WorkerHost, "POST", "/switch", "", 200, "api /switch"},
	} {
		if w := ask(c.host, c.method, c.target, c.body); w.Code != c.code || !strings.Contains(w.Body.String(), c.want) {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.host, c.method, c.target, w.Code, w.Body, c.code, c.want)
		}
	}
	open(fakeAPI{&message.Fault{Status: 409, Type: "ResourceConflictException", Message: "pending"}})
	if w := ask(message.ControlHost, "GET", "/resolve?name=a", ""); w.Code != 409 || w.Header().Get("X-Amzn-Errortype") != "ResourceConflictException" || !strings.Contains(w.Body.String(), `"pending"`) {
		t.Errorf("a refusal: %d %v %s", w.Code, w.Header(), w.Body)
	}
	open(fakeAPI{errors.New("a secret path")})
	if w := ask(message.ControlHost, "GET", "/resolve?name=a", ""); w.Code != 500 || strings.Contains(w.Body.String(), "secret") || !strings.Contains(logged.String(), "a secret path") {
		t.Errorf("a failure: %d %s; logged: %s", w.Code, w.Body, logged.String())
	}
}

// Only so many connections are accepted at once; a place is free again when one is closed.
func TestLimited(t *testing.T) {
	streams := seqpacket.NewStreams()
	l := &limited{Listener: streams, free: make(chan struct{}, 2)}
	accepted := make(chan net.Conn, 4)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	for range 3 {
		ours, theirs, err := seqpacket.StreamPair()
		if err != nil {
			t.Fatal(err)
		}
		defer ours.Close()
		streams.Add(theirs)
	}
	first, second := <-accepted, <-accepted
	select {
	case <-accepted:
		t.Error("a third connection is accepted")
	case <-time.After(20 * time.Millisecond):
	}
	first.Close()
	first.Close() // gives up one place
	third := <-accepted
	second.Close()
	third.Close()
	streams.Close()
	if _, ok := <-accepted; ok {
		t.Error("another connection is accepted")
	}
}
