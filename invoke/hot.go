package invoke

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/httpfast"
)

// idleTimeout is how long a connection may stay without a request.
const idleTimeout = 5 * time.Minute

// isHot reports whether a request is served without net/http: it is an invocation of a
// function by its plain name.
func isHot(method, path string) bool {
	for _, p := range paths {
		if p.op == invokeAsync {
			continue
		}
		rest, ok := strings.CutPrefix(path, p.prefix)
		name, is := strings.CutSuffix(rest, p.suffix)
		if ok && is {
			return method == http.MethodPost && name != "" && !strings.Contains(name, "/")
		}
	}
	return false
}

type connKey struct{}

// unlessClosed returns h as a handler for net/http. If the connection was closed, to drain or
// to make room, after net/http had read the request, it does not run the request: the client
// could not get the answer. From here on the connection is not closed before the answer.
func unlessClosed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*conn); ok && c.life.Err() != nil {
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	})
}

// hotListener accepts connections that serve hot requests themselves (conn.Read).
type hotListener struct {
	net.Listener
	conns  *conns
	server *httpfast.Server
	header time.Duration      // time limit for the head of a request that is not hot
	write  time.Duration      // time limit for a response of net/http itself
	tls    func() *tls.Config // of the next connection; nil without TLS
}

// Accept implements net.Listener.
func (l *hotListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, l: l, hot: true, unlimited: true}
	if l.tls != nil {
		c.secure = newTLSConn(nc, l.tls(), l.write)
		c.Conn = c.secure
	}
	c.life, c.end = context.WithCancel(context.Background())
	return c, nil
}

// conn is a connection of a hotListener. Only the goroutine that reads uses it, except for
// Close.
type conn struct {
	net.Conn
	l         *hotListener
	life      context.Context // ends when Close is called
	end       context.CancelFunc
	hot       bool // there have been only hot requests
	served    bool // there has been a hot request
	unlimited bool // no write deadline is set
	request   *presence
	secure    *tlsConn // what Conn is, until the handshake is over; nil without TLS
}

// Read reads for net/http. It serves hot requests first, and returns the bytes that follow
// them.
func (c *conn) Read(p []byte) (int, error) {
	if !c.hot || len(p) < httpfast.MinRead {
		return c.Conn.Read(p)
	}
	if c.secure != nil {
		if c.secure.handshake(time.Now().Add(c.l.header)) != nil {
			return 0, io.EOF // net/http would answer, and could not
		}
		c.secure = nil
	}
	c.hot = false
	n, err := c.l.server.Serve(c, p)
	if n > 0 && c.served { // set the deadlines that net/http has set and hot requests have changed
		_ = c.SetWriteDeadline(time.Time{})
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.l.header))
	}
	return n, err
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.unlimited = t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// Write writes for net/http. Outside a handler net/http sets no deadline, but may write an
// error response, to a client that does not read. Write sets a deadline for that.
func (c *conn) Write(p []byte) (int, error) {
	if c.unlimited {
		_ = c.SetWriteDeadline(time.Now().Add(c.l.write)) // if it fails, Write fails too
	}
	return c.Conn.Write(p)
}

// Close closes the connection and ends the context of its request. It is safe for concurrent
// use.
func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}

// CloseWrite closes the writing side. net/http calls it before Close, so that a client that
// is still sending can read the response.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Under returns the underlying connection. This method and those below implement
// httpfast.Conn.
func (c *conn) Under() net.Conn { return c.Conn }

// Begin records that a hot request has begun, and returns its context. It returns nil if the
// connection must be closed instead, because the server drains.
func (c *conn) Begin() context.Context {
	if !c.l.conns.begin(c) {
		return nil
	}
	c.served = true
	c.request = &presence{Context: c.life, conn: c.Conn}
	return c.request
}

// Idle records that the request is answered.
func (c *conn) Idle() {
	c.request.stop()
	_ = c.Conn.SetReadDeadline(time.Now().Add(idleTimeout)) // if it fails, the next Read fails too
	c.l.conns.idle(c)
}

// Last reports whether the server drains.
func (c *conn) Last() bool { return c.l.conns.isDraining() }

// presence is the context of a hot request. It ends when the client disconnects. It watches
// the client only after the first call of Done, because that takes a goroutine, and most
// requests are answered before Done is called. And it watches only when the request has arrived as
// a whole: whoever reads the rest of it must not have to wait for the watch.
type presence struct {
	context.Context // the connection's
	conn            net.Conn
	watched         atomic.Pointer[context.Context] // nil before the first Done

	mu      sync.Mutex
	arrived bool               // see whole
	over    bool               // the request is answered
	gone    context.CancelFunc // ends watched
	stopped chan struct{}      // closed when the watching goroutine has returned; nil if there is none
}

// Done implements context.Context.
func (p *presence) Done() <-chan struct{} {
	if w := p.watched.Load(); w != nil {
		return (*w).Done()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.watched.Load(); w != nil {
		return (*w).Done()
	}
	if p.over {
		return p.Context.Done()
	}
	ctx, gone := context.WithCancel(p.Context)
	p.gone = gone
	p.watched.Store(&ctx)
	p.watch()
	return ctx.Done()
}

// Err implements context.Context.
func (p *presence) Err() error {
	if w := p.watched.Load(); w != nil {
		return (*w).Err()
	}
	return p.Context.Err()
}

// whole records that nothing more of the request is to be read.
func (p *presence) whole() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.arrived = true
	p.watch()
}

// watch starts to watch the client, if it is time. The caller holds p.mu.
func (p *presence) watch() {
	if !p.arrived || p.over || p.gone == nil || p.stopped != nil {
		return
	}
	stopped, gone := make(chan struct{}), p.gone
	p.stopped = stopped
	go func() {
		defer close(stopped)
		if hungUp(p.conn) {
			gone()
		}
	}()
}

// stop ends the watch, if there is one, after the request is answered. It leaves the
// connection with a read deadline in the past.
func (p *presence) stop() {
	p.mu.Lock()
	p.over = true // from here on no watch begins
	p.mu.Unlock()
	if p.stopped != nil {
		_ = p.conn.SetReadDeadline(time.Unix(1, 0))
		<-p.stopped
	}
	if p.gone != nil {
		p.gone() // releases the context from that of the connection
	}
}

// arrivedWhole tells the context of a request that nothing more of it is to be read.
func arrivedWhole(ctx context.Context) {
	if p, ok := ctx.(*presence); ok {
		p.whole()
	}
}

// hungUp waits until the peer of c has closed the connection, and returns true. It returns
// false if the peer sends something before, or if the read deadline passes.
func hungUp(c net.Conn) (gone bool) {
	if c, ok := c.(*tlsConn); ok {
		return c.hungUp()
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	_ = raw.Read(func(fd uintptr) bool { // fails at the deadline, and after Close, which has ended the context
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		gone = err == nil && n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return gone
}
