// Package load drives an invoke endpoint and measures what it answers.
//
// The client is lean on purpose, one goroutine and one connection without a pool in
// between: on a small host a client that needs as much CPU as the server would hide
// what the server needs.
package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/bench/clock"
)

// Path is where SDKs invoke a function; StreamPath the same for a streamed response.
const (
	Path       = "/2015-03-31/functions/function/invocations"
	StreamPath = "/2021-11-15/functions/function/response-streaming-invocations"
)

// Endpoint completes target, a URL or host:port: without a path of its own it gets Path.
func Endpoint(target string) (*url.URL, error) {
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	u, err := url.Parse(target)
	if err != nil {
		return nil, fmt.Errorf("target: %w", err)
	}
	if u.Scheme != "http" || u.Port() == "" && u.Hostname() == "" {
		return nil, fmt.Errorf("target %s: want http://HOST:PORT, with or without a path", target)
	}
	if u.Port() == "" {
		u.Host += ":80"
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = Path
	}
	return u, nil
}

// Answer is what came of one request.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte        // its first keptBytes; valid until the client's next request
	Bytes  int64         // of the whole body
	Sent   time.Duration // when the request was sent, by clock.Now
	First  time.Duration // from then to the first byte of the body
	Took   time.Duration // from then to its last
}

// keptBytes is how much of a body is kept.
const keptBytes = 8 << 10

// Client is one connection to an endpoint. It connects when it must and is not safe
// for concurrent use.
type Client struct {
	url     *url.URL
	timeout time.Duration
	conn    net.Conn
	in      *bufio.Reader
	scratch []byte
}

// NewClient returns a client for u. Each request may take timeout.
func NewClient(u *url.URL, timeout time.Duration) *Client {
	return &Client{url: u, timeout: timeout, scratch: make([]byte, 64<<10)}
}

// Close closes the connection.
func (c *Client) Close() {
	if c.conn != nil {
		_ = c.conn.Close() // nothing was left to be sent
		c.conn = nil
	}
}

// Request makes the bytes of a request to the client's endpoint.
func (c *Client) Request(body []byte, header http.Header) ([]byte, error) {
	r, err := http.NewRequest(http.MethodPost, c.url.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "sandboxd-bench")
	for name, values := range header {
		r.Header[name] = values
	}
	var b bytes.Buffer
	err = r.Write(&b)
	return b.Bytes(), err
}

// Connect makes the connection if there is none.
func (c *Client) Connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.url.Host)
	if err != nil {
		return err
	}
	c.conn, c.in = conn, bufio.NewReaderSize(conn, 64<<10)
	return nil
}

// Send sends a request that Request made and reads the answer. After an error the
// connection is made anew by the next one.
func (c *Client) Send(ctx context.Context, request []byte) (a Answer, err error) {
	if err := c.Connect(ctx); err != nil {
		return a, err
	}
	conn := c.conn
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return a, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	a.Sent = clock.Now()
	if _, err := conn.Write(request); err != nil {
		return a, err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.Status, a.Header = resp.StatusCode, resp.Header
	for filled := 0; ; {
		n, err := resp.Body.Read(c.scratch[filled:])
		if n > 0 && a.Bytes == 0 {
			a.First = clock.Now() - a.Sent
		}
		a.Bytes += int64(n)
		if filled < keptBytes { // what follows overwrites itself
			filled += n
			a.Body = c.scratch[:min(filled, keptBytes)]
			filled = min(filled, keptBytes)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return a, err
		}
	}
	a.Took = clock.Now() - a.Sent
	if resp.Close {
		c.Close()
	}
	return a, nil
}

// Fault says what is wrong with the answer to an invocation; nil if nothing is.
func (a Answer) Fault() error {
	kind := a.Header.Get("X-Amz-Function-Error")
	if a.Status == http.StatusOK && kind == "" {
		return nil
	}
	if kind == "" {
		kind = a.Header.Get("X-Amzn-Errortype")
	}
	return fmt.Errorf("status %d %s: %.200s", a.Status, kind, a.Body)
}
