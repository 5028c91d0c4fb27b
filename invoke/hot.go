package invoke

import (
	"context"
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

// isHot tells which requests are served without net/http: invocations of a function by
// its plain name.
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

// serveCold is ServeHTTP for net/http, which does not know that a connection was closed, to
// drain or to make room for another, if it had read a request of it already. Who sent that
// gets no answer, so it is not run. From here on nobody closes the connection.
func (s *Server) serveCold(w http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok && c.life.Err() != nil {
		panic(http.ErrAbortHandler)
	}
	s.ServeHTTP(w, r)
}

// hotListener accepts connections that serve hot requests by themselves.
type hotListener struct {
	net.Listener
	conns  *conns
	server *httpfast.Server
	header time.Duration // for the head of a request that is not hot
	write  time.Duration // for what net/http answers without a handler
}

// Accept implements net.Listener.
func (l *hotListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, l: l, hot: true, unlimited: true}
	c.life, c.end = context.WithCancel(context.Background())
	return c, nil
}

// conn is one of them. What is not said to be for others is the reading goroutine's.
type conn struct {
	net.Conn
	l         *hotListener
	life      context.Context // ends with Close
	end       context.CancelFunc
	hot       bool // it has had hot requests only
	served    bool // and one at least
	unlimited bool // it has no write deadline
	request   *presence
}

// Read reads for net/http, what it is to know of.
func (c *conn) Read(p []byte) (int, error) {
	if !c.hot || len(p) < httpfast.MinRead {
		return c.Conn.Read(p)
	}
	c.hot = false
	n, err := c.l.server.Serve(c, p)
	if n > 0 && c.served { // net/http believes that it has set these
		_ = c.SetWriteDeadline(time.Time{})
		_ = c.Conn.SetReadDeadline(time.Now().Add(c.l.header))
	}
	return n, err
}

// SetWriteDeadline is for net/http and its handlers.
func (c *conn) SetWriteDeadline(t time.Time) error {
	c.unlimited = t.IsZero()
	return c.Conn.SetWriteDeadline(t)
}

// Write writes for net/http. Between two handlers that has no deadline, and may refuse a
// request by itself, to a client that does not read.
func (c *conn) Write(p []byte) (int, error) {
	if c.unlimited {
		_ = c.SetWriteDeadline(time.Now().Add(c.l.write)) // of a connection that is gone: so is Write
	}
	return c.Conn.Write(p)
}

// Close ends the connection and the context of its request. It is for all goroutines.
func (c *conn) Close() error {
	c.end()
	return c.Conn.Close()
}

// CloseWrite lets net/http say goodbye before it closes, so that a client that still
// sends can read the answer.
func (c *conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Under is the connection itself. This and what follows is for package hot.
func (c *conn) Under() net.Conn { return c.Conn }

// Begin says that there is a request; not while the server drains.
func (c *conn) Begin() context.Context {
	if !c.l.conns.begin(c) {
		return nil
	}
	c.served = true
	c.request = &presence{Context: c.life, conn: c.Conn}
	return c.request
}

// Idle says that it is answered.
func (c *conn) Idle() {
	c.request.stop()
	_ = c.Conn.SetReadDeadline(time.Now().Add(idleTimeout)) // a connection that is gone fails in the next Read
	c.l.conns.idle(c)
}

// Last tells whether the server drains.
func (c *conn) Last() bool { return c.l.conns.isDraining() }

// presence is the context of a hot request, which ends when its client goes away. That is
// watched for from the first time on that somebody wants to wait for it: most requests
// are over before, and to watch costs a goroutine.
type presence struct {
	context.Context // the connection's
	conn            net.Conn
	once            sync.Once
	watched         atomic.Pointer[context.Context]
	gone            context.CancelFunc // ends watched
	stopped         chan struct{}      // closed when the watch has ended; nil if there is none
}

// Done implements context.Context.
func (p *presence) Done() <-chan struct{} {
	p.once.Do(p.watch)
	if w := p.watched.Load(); w != nil {
		return (*w).Done()
	}
	return p.Context.Done() // the request is over
}

// Err implements context.Context.
func (p *presence) Err() error {
	if w := p.watched.Load(); w != nil {
		return (*w).Err()
	}
	return p.Context.Err()
}

func (p *presence) watch() {
	ctx, gone := context.WithCancel(p.Context)
	p.watched.Store(&ctx)
	stopped := make(chan struct{})
	p.gone, p.stopped = gone, stopped
	go func() {
		defer close(stopped)
		if hungUp(p.conn) {
			gone()
		}
	}()
}

// stop ends the context, if it was watched, of a request that is over. The connection's
// read deadline has passed then.
func (p *presence) stop() {
	p.once.Do(func() {}) // there will be none any more
	if p.stopped != nil {
		_ = p.conn.SetReadDeadline(time.Unix(1, 0))
		<-p.stopped
		p.gone() // else the connection's context would keep it
	}
}

// hungUp waits until the peer of c has closed it, and returns false if it says something
// before, or if the read deadline passes.
func hungUp(c net.Conn) (gone bool) {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	_ = raw.Read(func(fd uintptr) bool { // fails at the deadline, and with Close, which ends the context
		var b [1]byte
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK)
		gone = err == nil && n == 0 || err != nil && err != unix.EAGAIN && err != unix.EINTR
		return err != unix.EAGAIN && err != unix.EINTR
	})
	return gone
}
