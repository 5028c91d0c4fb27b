package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"time"
)

// patience says how long to try what a registry or the network may do wrong. The zero value
// tries nothing twice and gives up at once.
type patience struct {
	silence time.Duration // without a byte from the registry, while we wait for one: it is given up
	busy    time.Duration // for all pauses that a request makes because the registry is busy; an eighth for other faults
	pause   time.Duration // the first one; each is twice as long as the one before
	cuts    int           // broken transfers of one blob without a byte in between
}

var defaultPatience = patience{silence: time.Minute, busy: time.Minute, pause: time.Second, cuts: 4}

// errSilent says that a registry is given up.
var errSilent = errors.New("the registry has sent nothing")

// fixSilent is what to do about errSilent.
const fixSilent = "check the network, the proxy and the name of the registry, or pull the image elsewhere and give it as an archive"

// patient is a transport that asks again where a registry is busy or a connection breaks
// before its answer, and ends requests of a silent registry.
type patient struct {
	patience
	inner http.RoundTripper

	mu     sync.Mutex
	waited time.Duration // for a byte since the last one
}

// wait calls receive, which waits for the registry until a byte comes or its context ends.
// The error is errSilent if the registry has been silent for too long, in this call and those
// before it together: several addresses and forms of a registry are tried one after the other.
func (p *patient) wait(cancel context.CancelCauseFunc, receive func() (got bool, err error)) error {
	p.mu.Lock()
	left := p.silence - p.waited
	p.mu.Unlock()
	silent := fmt.Errorf("%w for %v", errSilent, p.silence)
	began := time.Now()
	timer := time.AfterFunc(left, func() { cancel(silent) })
	got, err := receive()
	if !timer.Stop() && err != nil {
		err = silent
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waited += time.Since(began); got {
		p.waited = 0
	}
	return err
}

// RoundTrip makes a request. What it returns has been busy for as long as patience allows.
func (p *patient) RoundTrip(req *http.Request) (*http.Response, error) {
	var paused time.Duration
	for pause := p.pause; ; pause *= 2 {
		ctx, cancel := context.WithCancelCause(req.Context())
		var resp *http.Response
		err := p.wait(cancel, func() (bool, error) {
			var err error
			resp, err = p.inner.RoundTrip(req.WithContext(ctx))
			return err == nil, err
		})
		if err == nil && !busyStatus(resp.StatusCode) {
			resp.Body = &watchedBody{ReadCloser: resp.Body, p: p, cancel: cancel}
			return resp, nil
		}
		next, most := pause, p.busy/8
		if err == nil && (resp.StatusCode == http.StatusTooManyRequests || resp.StatusCode == http.StatusServiceUnavailable) {
			next, most = max(pause, retryAfter(resp.Header)), p.busy
		}
		again := (err == nil || broken(err)) && (req.Body == nil || req.GetBody != nil)
		if !again || paused+next > most || req.Context().Err() != nil {
			if err == nil {
				resp.Body = &watchedBody{ReadCloser: resp.Body, p: p, cancel: cancel}
				return resp, nil
			}
			cancel(nil)
			return nil, err
		}
		if err == nil {
			resp.Body.Close()
		}
		cancel(nil)
		paused += next
		if err := sleep(req.Context(), next); err != nil {
			return nil, err
		}
		if req.Body != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req = req.Clone(req.Context())
			req.Body = body
		}
	}
}

// watchedBody ends its request when the registry is silent.
type watchedBody struct {
	io.ReadCloser
	p      *patient
	cancel context.CancelCauseFunc
}

func (b *watchedBody) Read(buf []byte) (n int, err error) {
	err = b.p.wait(b.cancel, func() (bool, error) {
		n, err = b.ReadCloser.Read(buf)
		return n > 0 || errors.Is(err, io.EOF), err
	})
	return n, err
}

func (b *watchedBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// busyStatus reports whether a request may succeed later that was answered with this status.
func busyStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
		http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// retryAfter returns how long a busy server wants to be left alone, 0 if it does not say.
func retryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// broken reports whether an error is that of a connection which ended too early.
func broken(err error) bool {
	var reset *net.OpError
	switch {
	case errors.Is(err, errSilent), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return true
	}
	return errors.As(err, &reset) && (reset.Op == "read" || reset.Op == "write")
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// resumed reads a blob whose transfer may break. It asks for the rest then, or for the whole
// blob from a registry that does not know ranges.
type resumed struct {
	patience
	ctx  context.Context
	size int64 // of the blob; -1 if unknown
	get  func(ctx context.Context, from int64) (*http.Response, error)

	body io.ReadCloser
	n    int64 // bytes read
	cuts int   // since the last byte
}

func (r *resumed) Read(p []byte) (int, error) {
	for {
		n, err := r.body.Read(p)
		if r.n += int64(n); n > 0 {
			r.cuts = 0
		}
		if errors.Is(err, io.EOF) && r.size >= 0 && r.n < r.size {
			err = io.ErrUnexpectedEOF // a server that does not say how long its answer is
		}
		if n > 0 || err == nil || errors.Is(err, io.EOF) {
			if err != nil && !errors.Is(err, io.EOF) {
				err = nil // the next call meets it again
			}
			return n, err
		}
		for {
			if r.cuts++; r.cuts > r.patience.cuts || !broken(err) {
				return 0, r.explain(err)
			}
			if err = sleep(r.ctx, r.pause<<(r.cuts-1)); err != nil {
				return 0, err
			}
			if err = r.reopen(); err == nil {
				break
			}
		}
	}
}

// explain says how far the transfer came, and what to do.
func (r *resumed) explain(err error) error {
	switch {
	case errors.Is(err, errSilent):
		return fmt.Errorf("its transfer stopped at byte %d: %w; %s", r.n, err, fixSilent)
	case broken(err):
		return fmt.Errorf("its transfer broke off at byte %d, and so did the %d that resumed it: %w; check the network and the proxy on the way to the registry, then retry", r.n, r.patience.cuts, err)
	}
	return err
}

// reopen has body continue at byte n.
func (r *resumed) reopen() error {
	r.body.Close()
	resp, err := r.get(r.ctx, r.n)
	if err != nil {
		r.body = http.NoBody
		return err
	}
	r.body = resp.Body
	if resp.StatusCode != http.StatusPartialContent {
		_, err = io.CopyN(io.Discard, r.body, r.n)
	}
	return err
}

func (r *resumed) Close() error { return r.body.Close() }
