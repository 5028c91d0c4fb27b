package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/internal/seal"
)

// Host is what an API gets of the daemon. Its methods are safe for concurrent use.
type Host struct {
	Config *message.ControlConfig
	Log    *logrus.Logger

	// Ring has the host keys, which encrypt what is secret in the store.
	Ring *seal.Ring

	client *registry.Client
	once   sync.Once
	worker *http.Client
}

// maxSends bounds how often the files of a revision are sent: the supervisor may have removed
// a tree between two requests.
const maxSends = 3

// Register registers a revision with the supervisor, which then makes sandboxes of it, and
// returns what the supervisor has found in its files. open opens the file of a tree that the
// supervisor does not have; Register closes it. Registering a revision again does no harm.
func (h *Host) Register(ctx context.Context, rev *message.Revision, open func(message.Digest) (*os.File, error)) (function.Program, error) {
	var files map[int]*os.File
	for n := 0; ; n++ {
		program, err := h.client.Register(ctx, rev, files)
		for _, f := range files {
			f.Close()
		}
		missing, ok := errors.AsType[*registry.Missing](err)
		if !ok || n == maxSends {
			return program, err
		}
		files = map[int]*os.File{}
		for _, i := range missing.Trees {
			if i >= len(rev.Trees()) {
				return program, fmt.Errorf("the supervisor wants tree %d of %d", i, len(rev.Trees()))
			}
			if files[i], err = open(rev.Trees()[i]); err != nil {
				delete(files, i)
				for _, f := range files {
					f.Close()
				}
				return program, err
			}
		}
	}
}

// Forget lets the supervisor forget a revision that will not be used any more. One that has
// sandboxes stays until the worker ends it.
func (h *Host) Forget(ctx context.Context, number uint64) error { return h.client.Forget(ctx, number) }

// switchPause is how long Switch waits before it asks a worker again that did not answer.
const switchPause = 20 * time.Millisecond

// Switch tells the worker that a function has changed, and returns when that is in force:
// the worker has confirmed it, or there is no worker, and the next one will ask. It tries
// until ctx ends.
func (h *Host) Switch(ctx context.Context, s message.Switch) error {
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	for {
		err := h.ask(ctx, message.SwitchPath, body)
		if err == nil || errors.Is(err, message.ErrNoWorker) {
			return nil
		}
		timer := time.NewTimer(switchPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("tell the worker of function %s: %w", s.Name, err)
		}
	}
}

// ask sends the worker a POST request that is to be answered with 204.
func (h *Host) ask(ctx context.Context, path string, body []byte) error {
	h.once.Do(func() {
		h.worker = &http.Client{Transport: &http.Transport{
			DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return h.client.Connect(ctx) },
			MaxIdleConns: 4, MaxConnsPerHost: 16, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
		}}
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+message.WorkerHost+path, strings.NewReader(string(body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.worker.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxHeader)) // so that the connection can be used again
	if res.StatusCode != http.StatusNoContent {
		return fmt.Errorf("the worker answers %s with %s", path, res.Status)
	}
	return nil
}
