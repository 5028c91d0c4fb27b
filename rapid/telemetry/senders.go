package telemetry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// requestTime is how long a subscriber may take to answer a POST.
	requestTime = 5 * time.Second
	// answerBytes is the most bytes that are read of a response, so that its connection can be
	// used again. After a longer response the connection is closed.
	answerBytes  = 64 << 10
	answerHeader = 16 << 10
)

// httpSender posts to an extension's listener (TL-15). It always connects to the sandbox's
// loopback address, whatever host the URI names.
type httpSender struct {
	sub       *Subscription
	clock     Clock
	transport *http.Transport
}

func newHTTPSender(sub *Subscription, dial Dial, clock Clock) *httpSender {
	return &httpSender{sub: sub, clock: clock, transport: &http.Transport{
		DialContext:            func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, sub.Port) },
		MaxIdleConnsPerHost:    1,
		MaxResponseHeaderBytes: answerHeader,
		DisableCompression:     true,
	}}
}

// send uses the transport directly, so that it does not follow redirections (TL-18).
func (h *httpSender) send(ctx context.Context, b *batch) error {
	ctx, cancel := limit(ctx, h.clock, requestTime)
	defer cancel()
	req, err := h.request(ctx, b.body)
	if err != nil {
		return err
	}
	resp, err := h.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("deliver to %s: %w", h.sub.URI, err)
	}
	// Only the status matters. If the body cannot be read to its end, the connection is closed,
	// and the next request opens another.
	_, _ = io.CopyN(io.Discard, resp.Body, answerBytes)
	_ = resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("deliver to %s: %s", h.sub.URI, resp.Status)
	}
	return nil
}

func (h *httpSender) request(ctx context.Context, body []byte) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, h.sub.Method, h.sub.URI, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("deliver to %s: %w", h.sub.URI, err)
	}
	req.Header.Set("Content-Type", "application/json")
	return req, nil
}

func (h *httpSender) close() { h.transport.CloseIdleConnections() }

// tcpSender writes lines to an extension's listener (TL-16). A listener that does not read
// delays only its own batches.
type tcpSender struct {
	dial Dial
	port int
	conn net.Conn // nil if it must be opened
	sent int      // bytes of the current batch that have been sent
}

func (t *tcpSender) send(ctx context.Context, b *batch) error {
	if t.conn == nil {
		conn, err := t.dial(ctx, t.port)
		if err != nil {
			return fmt.Errorf("deliver to sandbox:%d: %w", t.port, err)
		}
		t.conn = conn
	}
	conn := t.conn
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // makes Write return
	n, err := conn.Write(b.body[t.sent:])
	stop()
	t.sent += n
	if err != nil { // the new connection begins with a whole event
		t.sent = bytes.LastIndexByte(b.body[:t.sent], '\n') + 1
		t.close()
		t.conn = nil
		return fmt.Errorf("deliver to sandbox:%d: %w", t.port, err)
	}
	t.sent = 0
	return nil
}

func (t *tcpSender) close() {
	if t.conn != nil {
		_ = t.conn.Close() // everything was delivered, or has failed already
	}
}
