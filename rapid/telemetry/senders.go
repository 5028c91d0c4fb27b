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
	// answerBytes is how much of an answer is read, so that its connection can be
	// used again; a longer one costs the connection.
	answerBytes  = 64 << 10
	answerHeader = 16 << 10
)

// httpSender posts to an extension's listener (TL-15). Whatever host the URI names,
// the connection goes to the sandbox's loopback.
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

// send uses the transport itself: redirections are answers like others (TL-18).
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
	// The status is all that counts. A body that cannot be read to its end costs the
	// connection, which is made again.
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

// tcpSender writes lines to an extension's listener (TL-16). One that does not read
// holds up nothing but its own batches.
type tcpSender struct {
	dial Dial
	port int
	conn net.Conn // nil when it must be made again
	sent int      // bytes of the batch that is being sent
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
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() }) // which ends the Write
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
		_ = t.conn.Close() // what it had to send has failed, or was delivered
	}
}
