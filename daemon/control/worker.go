package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
)

// switchPause is how long a request to the worker waits before it is repeated, if the worker
// did not answer.
const switchPause = 20 * time.Millisecond

// maxAnswer is the most bytes of an answer of the worker.
const maxAnswer = 4 << 20

// Switch tells the worker that a function has changed, and returns when that is in force:
// the worker has confirmed it, or there is no worker, and the next one will ask. It tries
// until ctx ends.
func (h *Host) Switch(ctx context.Context, s message.Switch) error {
	if err := h.tell(ctx, message.SwitchPath, s); err != nil {
		return fmt.Errorf("tell the worker of function %s: %w", s.Name, err)
	}
	return nil
}

// ForgetKey makes the worker forget what was derived from an access key, and returns when that
// is in force. It tries until ctx ends.
func (h *Host) ForgetKey(ctx context.Context, id string) error {
	if err := h.tell(ctx, message.ForgetPath, message.ForgetKey{AccessKeyID: id}); err != nil {
		return fmt.Errorf("tell the worker of access key %.128q: %w", id, err)
	}
	return nil
}

// Numbers returns what the worker has counted, for that many functions at most. The worker may
// lie.
func (h *Host) Numbers(ctx context.Context, functions int) (n message.Numbers, err error) {
	err = h.ask(ctx, http.MethodGet, fmt.Sprintf("%s?functions=%d", message.NumbersPath, functions), nil, &n)
	return n, err
}

// tell sends the worker a message until it confirms it, or until there is no worker, which then
// needs no message.
func (h *Host) tell(ctx context.Context, path string, m any) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	for {
		err := h.ask(ctx, http.MethodPost, path, body, nil)
		if err == nil || errors.Is(err, message.ErrNoWorker) {
			return nil
		}
		timer := time.NewTimer(switchPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

// ask sends the worker a request, and decodes the answer. If answer is nil, it must be 204.
func (h *Host) ask(ctx context.Context, method, target string, body []byte, answer any) error {
	h.once.Do(func() {
		h.worker = &http.Client{Transport: &http.Transport{
			DialContext:  func(ctx context.Context, _, _ string) (net.Conn, error) { return h.client.Connect(ctx) },
			MaxIdleConns: 4, MaxConnsPerHost: 16, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: maxHeader, DisableCompression: true,
		}}
	})
	req, err := http.NewRequestWithContext(ctx, method, "http://"+message.WorkerHost+target, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := h.worker.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1)) // to its end, so that the connection can be used again
	switch {
	case err != nil:
		return err
	case len(text) > maxAnswer:
		return fmt.Errorf("the worker answers %s with more than %d bytes", target, maxAnswer)
	case answer == nil && res.StatusCode == http.StatusNoContent:
		return nil
	case answer != nil && res.StatusCode == http.StatusOK:
		return json.Unmarshal(text, answer)
	}
	return fmt.Errorf("the worker answers %s with %s", target, res.Status)
}
