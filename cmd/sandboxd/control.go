package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/internal/accept"
)

// maxListBytes bounds the list that a daemon gives: 4,094 sandboxes take 2 MB.
const maxListBytes = 16 << 20

// sandboxesPath is the one resource of the control API.
const sandboxesPath = "/v1/sandboxes"

// sandboxInfo is what the control API tells of a sandbox.
type sandboxInfo struct {
	ID          string         `json:"id"`
	Instance    string         `json:"instance"`
	Function    string         `json:"function"`
	State       string         `json:"state"`
	Created     time.Time      `json:"created"` // in quarantine: since when
	Invocations uint64         `json:"invocations"`
	MemoryBytes uint64         `json:"memory_bytes"`
	PIDs        uint64         `json:"pids"`
	Cgroup      string         `json:"cgroup"` // below the mount of each tree
	Init        map[string]int `json:"init"`   // domain to the host's process id of its PID 1
	Network     networkInfo    `json:"network"`
}

// control serves the control API on a unix socket that only root can open.
type control struct {
	server *http.Server
	done   chan struct{} // closed when the server has ended
}

// listenControl makes the socket. The worker serves it, who could not make it.
func listenControl(path string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it goes with the instance's folder
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}

// startControl serves the sandboxes of w on l.
func startControl(w *worker, l net.Listener) *control {
	l = accept.Listener(l, func(err error) { w.log.WithError(err).Warn("the control socket takes no connections for a moment") })
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+sandboxesPath, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(rw).Encode(w.list()) // the client has gone
	})
	c := &control{
		server: &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second},
		done:   make(chan struct{}),
	}
	go func() {
		defer close(c.done)
		if err := c.server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			w.log.WithError(err).Error("the control socket is not served any more: ps and inspect will not work")
		}
	}()
	return c
}

// close stops serving.
func (c *control) close() {
	_ = c.server.Close() // its error is that of the listener, which is gone anyway
	<-c.done
}

// list describes the sandboxes of the worker, oldest first, and after them those in
// quarantine. One that is being made has no id yet and is left out.
func (w *worker) list() []sandboxInfo {
	infos := []sandboxInfo{}
	for _, stat := range w.fleet.Stats() {
		box := w.factory.find(stat.ID)
		if box == nil {
			continue
		}
		info := sandboxInfo{
			ID: stat.ID, Instance: w.order.Instance, Function: w.order.Function.Name, State: stat.State,
			Created: stat.Made, Invocations: stat.Invocations,
			Cgroup: box.box.CgroupPath(), Init: box.box.PIDs(), Network: box.networkInfo(),
		}
		if usage, err := box.box.Usage(); err == nil { // one that is being removed has none
			info.MemoryBytes, info.PIDs = usage.MemoryBytes, usage.PIDs
		}
		infos = append(infos, info)
	}
	held, err := w.client.Held()
	if err != nil { // the end is near
		w.log.WithError(err).Debug("the sandboxes in quarantine are not known")
	}
	for id, since := range held {
		infos = append(infos, sandboxInfo{ID: id, Instance: w.order.Instance, Function: w.order.Function.Name, State: "Quarantined", Created: since})
	}
	return infos
}

// listAll asks every daemon under runDir for its sandboxes. It returns what it got,
// and an error for the daemons that did not answer.
func listAll(ctx context.Context, runDir string) ([]sandboxInfo, error) {
	instances, err := instance.List(runDir)
	if err != nil {
		return nil, err
	}
	all := []sandboxInfo{}
	var errs []error
	for _, i := range instances {
		if !i.Alive {
			continue
		}
		list, err := ask(ctx, i.ControlSocket())
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
			continue // it is starting or ending
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("daemon %s does not answer: %w", i.ID, err))
			continue
		}
		all = append(all, list...)
	}
	slices.SortStableFunc(all, func(a, b sandboxInfo) int { return a.Created.Compare(b.Created) })
	return all, errors.Join(errs...)
}

// ask gets the list of one daemon.
func ask(ctx context.Context, socket string) ([]sandboxInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://sandboxd"+sandboxesPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers with status %d", resp.StatusCode)
	}
	var list []sandboxInfo
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxListBytes)).Decode(&list); err != nil {
		return nil, err
	}
	return list, nil
}

// findSandbox finds the sandbox whose id is or begins with prefix.
func findSandbox(list []sandboxInfo, prefix string) (sandboxInfo, error) {
	var found []sandboxInfo
	for _, s := range list {
		if s.ID == prefix {
			return s, nil
		}
		if strings.HasPrefix(s.ID, prefix) {
			found = append(found, s)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return sandboxInfo{}, fmt.Errorf("no sandbox has the id %q; 'sandboxd ps' lists them", prefix)
	}
	return sandboxInfo{}, fmt.Errorf("%d sandboxes have ids that begin with %q; 'sandboxd ps' lists them", len(found), prefix)
}
