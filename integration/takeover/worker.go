package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/sandboxd/sandboxd/internal/confine"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// worker does what requests below /worker/ say, and passes the others to the control process.
type worker struct {
	client *privsep.Client

	mu       sync.Mutex
	boxes    []*privsep.Box
	inits    []*wire.Conn
	conns    []net.Conn
	switches []message.Switch
}

func workerMain() int {
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	return exit.Report(runWorker(), os.Stderr)
}

func runWorker() error {
	config, err := message.ReadWorkerConfig(os.NewFile(message.ConfigFD, "config"))
	if err != nil {
		return err
	}
	if !config.Control {
		return errors.New("the worker was not told of the control process")
	}
	l, err := net.FileListener(os.NewFile(message.EndpointFD, "endpoint"))
	if err != nil {
		return err
	}
	if err := confine.Process(); err != nil {
		return err
	}
	w := &worker{}
	if w.client, err = privsep.NewClient(os.NewFile(message.LineFD, "line"), message.Sandboxes(config.Concurrency)); err != nil {
		return err
	}
	pass := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", r.In.Host, r.In.Host
		},
		Transport: &http.Transport{
			DialContext:     func(ctx context.Context, _, _ string) (net.Conn, error) { return w.client.Connect(ctx) },
			MaxConnsPerHost: 16,
		},
		ErrorHandler: func(rw http.ResponseWriter, _ *http.Request, err error) {
			rw.Header().Set("Retry-After", "1")
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
		},
	}
	mux := http.NewServeMux()
	mux.Handle("/", pass)
	mux.HandleFunc("/worker/", w.serve)
	go http.Serve(w.client.Streams(), http.HandlerFunc(w.fromControl))
	fmt.Fprintf(os.Stderr, "listening addr=%s instance=%s\n", l.Addr(), config.Instance)
	go http.Serve(l, mux)
	select {
	case <-w.client.Stops():
		return nil // the end of the process closes the line
	case <-w.client.Gone():
		return errors.New("the supervisor has exited")
	}
}

// fromControl answers the control process.
func (w *worker) fromControl(rw http.ResponseWriter, r *http.Request) {
	var s message.Switch
	if err := json.NewDecoder(r.Body).Decode(&s); err != nil || r.Host != message.WorkerHost || r.URL.Path != message.SwitchPath {
		http.Error(rw, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	w.mu.Lock()
	w.switches = append(w.switches, s)
	w.mu.Unlock()
	rw.WriteHeader(http.StatusNoContent)
}

// serve does one thing and answers with what became of it.
func (w *worker) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _ := strconv.ParseUint(r.FormValue("n"), 10, 64)
	var said any
	var err error
	switch strings.TrimPrefix(r.URL.Path, "/worker/") {
	case "create": // a sandbox of the revision n, with a process
		var box *privsep.Box
		if box, err = w.client.Create(r.Context(), n); err != nil {
			break
		}
		w.boxes = append(w.boxes, box)
		var init *wire.Conn
		if init, err = box.Start(r.Context(), isolation.RuntimeDomain); err == nil {
			w.inits = append(w.inits, init)
			said = box.ID()
		}
	case "credentials": // of the sandbox that was made last
		said, err = w.boxes[len(w.boxes)-1].Credentials(r.Context())
	case "retire":
		err = w.client.Retire(r.Context(), n)
	case "close": // the sandbox that was made first
		err = w.boxes[0].Close(r.Context())
		w.boxes = w.boxes[1:]
	case "flood": // n connections to the control process, which are not closed
		for range n {
			var c net.Conn
			if c, err = w.client.Connect(r.Context()); err != nil {
				break
			}
			w.conns = append(w.conns, c)
		}
		said = len(w.conns)
	case "switches":
		said = w.switches
	}
	answer(rw, said, err)
}

// answer writes what became of a request, in JSON.
func answer(rw http.ResponseWriter, said any, err error) {
	a := map[string]any{"said": said, "pid": os.Getpid()}
	if err != nil {
		a["error"] = err.Error()
		var kinds []string
		for name, kind := range map[string]error{
			"unknown revision": message.ErrUnknownRevision, "too many": message.ErrTooMany, "revision": message.ErrRevision,
			"no control": message.ErrNoControl, "no worker": message.ErrNoWorker, "digest": message.ErrDigest,
			"too large": message.ErrTooLarge, "package": message.ErrPackage, "unusable": message.ErrUnusable, "no space": syscall.ENOSPC,
			"permission": os.ErrPermission,
		} {
			if errors.Is(err, kind) {
				kinds = append(kinds, name)
			}
		}
		a["kinds"] = kinds
	}
	_ = json.NewEncoder(rw).Encode(a)
}
