package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/httpfast"
	"github.com/sandboxd/sandboxd/rapid"
)

// guard is a listener that limits the number of its connections. When the limit is reached,
// it closes the longest idle connection, so that a process that holds many connections cannot
// block the requests of others.
type guard struct {
	net.Listener
	sandbox *rapid.Sandbox
	limits  Limits
	origin  Origin        // nil without strict mode
	asking  chan struct{} // semaphore of calls of origin
	ctx     context.Context
	handler http.Handler
	hot     *httpfast.Server
	headers atomic.Int64  // bytes of headers of all connections
	large   chan struct{} // semaphore of reads of large bodies of extensions

	mu    sync.Mutex
	conns map[*conn]struct{}
	all   sync.WaitGroup
}

func newGuard(ctx context.Context, l net.Listener, s *rapid.Sandbox, limits Limits) *guard {
	h := &handler{s: s}
	return &guard{Listener: l, sandbox: s, limits: limits, ctx: ctx, handler: h, hot: hotServer(h), conns: map[*conn]struct{}{}, asking: make(chan struct{}, maxOrigins), large: make(chan struct{}, maxLarge)}
}

// Accept returns the next connection that admit allows.
func (g *guard) Accept() (net.Conn, error) {
	for {
		nc, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: nc, guard: g, client: g.sandbox.NewClient(), since: time.Now(), unknown: g.origin != nil, hot: !g.sandbox.Rules().CountsWaiters}
		c.client.HungUp = c.hungUp
		c.ctx, c.cancel = context.WithCancel(context.WithValue(g.ctx, connKey{}, c))
		if g.admit(c) {
			return c, nil
		}
		_ = c.Close() // nothing was written to it
	}
}

// admit adds c, and closes an idle connection if the limit is reached. It reports false if
// there is no room for c.
func (g *guard) admit(c *conn) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.conns) >= g.limits.Connections {
		var oldest *conn
		for o := range g.conns {
			switch p := phase(o.phase.Load()); {
			case p == handling, p == waiting:
			case oldest == nil || o.since.Before(oldest.since):
				oldest = o
			}
		}
		if oldest == nil { // else one that waits for an event and whose client has gone
			for o := range g.conns {
				if phase(o.phase.Load()) == waiting && o.hungUp() {
					oldest = o
					break
				}
			}
		}
		if oldest == nil {
			return false
		}
		delete(g.conns, oldest)
		_ = oldest.Close() // its server goroutine sees it and closes the rest
	}
	g.conns[c] = struct{}{}
	g.all.Add(1)
	return true
}

// changed updates the phase of a connection when the server changes its state.
func (g *guard) changed(nc net.Conn, st http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	switch st {
	case http.StateActive: // the headers are complete; the handler has not started
		c.handle()
	case http.StateIdle:
		g.mu.Lock()
		c.since = time.Now()
		g.mu.Unlock()
		c.release()
		c.phase.Store(int32(idle))
	case http.StateClosed, http.StateHijacked:
		c.release()
		g.mu.Lock()
		delete(g.conns, c)
		g.mu.Unlock()
		c.closed.Do(g.all.Done)
	}
}

// wait waits until the server has closed every connection.
func (g *guard) wait() { g.all.Wait() }

// phase is the progress of the current request of a connection.
type phase int32

const (
	idle     phase = iota // nothing of the next request has arrived
	begun                 // a part of request line and headers has arrived
	handling              // the headers are complete: no time limit from here on
	waiting               // a hot request waits for an event: nothing watches the connection
)

// conn limits the time that request line and headers may take. The time starts at the second
// read, so a request whose head arrives in one piece, as well-behaved clients send it, costs
// nothing. The limit is thawed time, but a read deadline is wall-clock time: when a deadline
// passes, Read checks the thawed time, and sets the deadline again if some is left.
type conn struct {
	net.Conn
	guard   *guard
	client  *rapid.Client
	foreign error     // why the connection may not use the runtime's paths; nil if it may; valid unless unknown
	since   time.Time // start of the idle time; guarded by guard.mu
	phase   atomic.Int32
	closed  sync.Once
	ctx     context.Context // of its hot requests; ends with Close
	cancel  context.CancelFunc

	// Only the goroutine of the server that reads uses these two.
	unknown bool // the origin has not been determined
	hot     bool // there have been only hot requests

	until   time.Duration // end of the time for headers, in thawed time; 0 if it has not started
	headers int64         // bytes of request line and headers of the current request, except its first piece
}

// hold counts n more bytes of headers until the request ends, and reports whether the limit
// allows them.
func (c *conn) hold(n int) bool {
	c.headers += int64(n)
	return c.guard.headers.Add(int64(n)) <= maxHeaders
}

// release stops counting the headers of the current request.
func (c *conn) release() {
	c.guard.headers.Add(-c.headers)
	c.headers = 0
}

var errHeaders = errors.New("the headers of all unfinished requests of the sandbox are too large")

// handle records that the headers of a request are complete.
func (c *conn) handle() {
	c.phase.Store(int32(handling))
	if c.until != 0 {
		c.until = 0
		_ = c.Conn.SetReadDeadline(time.Time{}) // fails only if the connection is closed
	}
}

// Read reads for the server. Before the first byte it determines the origin of the
// connection. It serves hot requests itself; the server gets what follows them.
func (c *conn) Read(p []byte) (int, error) {
	if c.unknown {
		c.unknown = false
		if err := c.identify(); err != nil {
			return 0, err
		}
	}
	if c.hot { // the first Read
		var n int
		var err error
		if len(p) >= httpfast.MinRead {
			n, err = c.guard.hot.Serve(c, p)
		}
		c.hot = false
		if n > 0 {
			c.phase.CompareAndSwap(int32(idle), int32(begun))
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
	if phase(c.phase.Load()) != begun {
		n, err := c.Conn.Read(p)
		if n > 0 {
			c.phase.CompareAndSwap(int32(idle), int32(begun))
		}
		return n, err
	}
	thawed := c.guard.sandbox.Thawed
	if c.until == 0 {
		c.until = thawed() + c.guard.limits.HeaderTime
	}
	for {
		left := c.until - thawed()
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		if err := c.Conn.SetReadDeadline(time.Now().Add(left)); err != nil {
			return 0, err
		}
		n, err := c.Conn.Read(p)
		switch {
		case n > 0 && !c.hold(n):
			return 0, errHeaders
		case n > 0 || !errors.Is(err, os.ErrDeadlineExceeded):
			return n, err
		}
		select { // there is thawed time left: the sandbox was frozen
		case <-c.guard.sandbox.Running():
		case <-c.ctx.Done():
			return 0, net.ErrClosed
		}
	}
}

// Close closes the connection, and ends a waiting hot request.
func (c *conn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// hungUp reports whether the peer has closed the connection, even if there are bytes left to
// read. It does not depend on a read of the server.
func (c *conn) hungUp() (gone bool) {
	sc, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true // closed by us
	}
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Ppoll(fds, &unix.Timespec{}, nil)
		gone = err == nil && n > 0 // after an error assume that it is open: a write will fail
	})
	return gone || err != nil
}

// CloseWrite closes the writing side. The server calls it before Close, so that a client that
// is still sending can read the response.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
