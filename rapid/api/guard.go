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

// guard is a listener that counts its connections. When there are too many, it closes the
// one that has been idle longest to make room, so that a process that hoards connections
// does not keep the next good request out.
type guard struct {
	net.Listener
	sandbox *rapid.Sandbox
	limits  Limits
	origin  Origin        // nil: not asked
	asking  chan struct{} // has one element for each connection whose origin is being asked for
	ctx     context.Context
	handler http.Handler
	hot     *httpfast.Server
	headers atomic.Int64  // sum of the connections' headers
	large   chan struct{} // has one element for each large body of an extension that is being read

	mu    sync.Mutex
	conns map[*conn]struct{}
	all   sync.WaitGroup
}

func newGuard(ctx context.Context, l net.Listener, s *rapid.Sandbox, limits Limits) *guard {
	h := &handler{s: s}
	return &guard{Listener: l, sandbox: s, limits: limits, ctx: ctx, handler: h, hot: hotServer(h), conns: map[*conn]struct{}{}, asking: make(chan struct{}, maxOrigins), large: make(chan struct{}, maxLarge)}
}

// Accept returns the next connection there is room for.
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

// admit reports whether there is room for c, which it makes by closing an idle connection.
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
		if oldest == nil { // or one that waits for an event, and nobody is there
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

// changed follows the server's view of a connection.
func (g *guard) changed(nc net.Conn, st http.ConnState) {
	c, ok := nc.(*conn)
	if !ok {
		return
	}
	switch st {
	case http.StateActive: // headers are read, and nobody else reads yet
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

// wait returns when the server has let go of every connection.
func (g *guard) wait() { g.all.Wait() }

// phase is where a connection is between two requests.
type phase int32

const (
	idle     phase = iota // nothing of the next request has come
	begun                 // some of its line and headers have
	handling              // headers are complete: no limit of ours from here
	waiting               // for an event, as a hot request: nobody sees the peer go away
)

// conn limits the time that request line and headers may take once they have begun.
// A request that comes in one piece, as all good ones do, costs nothing: the clock
// starts when the server has to ask for more. Because a deadline runs by the wall
// clock, one that passes is checked against the sandbox's thawed time, and set again
// for what is left of it.
type conn struct {
	net.Conn
	guard   *guard
	client  *rapid.Client
	foreign error     // why its maker may not act as the runtime; nil if it may; not valid while unknown
	since   time.Time // of idleness; guard.mu
	phase   atomic.Int32
	closed  sync.Once
	ctx     context.Context // of its hot requests: ends with Close
	cancel  context.CancelFunc
	unknown bool // its origin is to be asked for, before anything is read; the server's reading goroutine's
	hot     bool // it has had hot requests only; the server's reading goroutine's

	until   time.Duration // end of the header time, thawed; 0 if the clock has not started
	headers int64         // bytes of line and headers of the request that is not over, but for its first piece
}

// hold counts n more bytes of headers until the request is over, and reports whether
// there is room for them.
func (c *conn) hold(n int) bool {
	c.headers += int64(n)
	return c.guard.headers.Add(int64(n)) <= maxHeaders
}

// release forgets the headers of a request that is over.
func (c *conn) release() {
	c.guard.headers.Add(-c.headers)
	c.headers = 0
}

var errHeaders = errors.New("the sandbox has too many bytes of headers in requests that are not over")

// handle notes that the headers of a request are complete.
func (c *conn) handle() {
	c.phase.Store(int32(handling))
	if c.until != 0 {
		c.until = 0
		_ = c.Conn.SetReadDeadline(time.Time{}) // of an open connection: cannot fail in a way that matters
	}
}

// Read reads for the server. Before the first byte it finds out where the connection comes
// from, and it serves hot requests itself: the server sees what follows them.
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
		select { // there is time left: it was frozen
		case <-c.guard.sandbox.Running():
		case <-c.ctx.Done():
			return 0, net.ErrClosed
		}
	}
}

// Close ends the connection, and a hot request that waits.
func (c *conn) Close() error {
	c.cancel()
	return c.Conn.Close()
}

// hungUp reports whether the peer has closed the connection, whatever of it is left to
// read, without waiting for the server's own reading to see it.
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
		gone = err == nil && n > 0 // if it cannot be asked, writing will tell
	})
	return gone || err != nil
}

// CloseWrite lets the server say goodbye before it closes, so that a client that is
// still sending can read the answer.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}
