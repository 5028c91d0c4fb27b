package invoke

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// guard refuses requests that a browser sends for a web page of another origin. The endpoint
// has no authentication, so a page that the operator visits must not be able to run functions
// on 127.0.0.1. SDKs and tools send neither Origin nor Sec-Fetch-Site; browsers send Origin
// with every POST. A page is allowed only if its origin is this server, addressed by IP
// address or as localhost: the owner of any other name could let it point to 127.0.0.1 (DNS
// rebinding). scheme is that of the server's URLs.
func guard(r *http.Request, scheme string) *refusal {
	origin := r.Header.Values("Origin")
	site := r.Header.Get("Sec-Fetch-Site")
	if len(origin) == 0 && (site == "" || site == "none") {
		return nil
	}
	if len(origin) == 1 && (site == "" || site == "same-origin") {
		u, err := url.Parse(origin[0])
		if err == nil && u.Scheme == scheme && u.Host == r.Host && isLocalName(u.Hostname()) {
			return nil
		}
	}
	return &refusal{status: http.StatusForbidden, name: "AccessDeniedException", hangUp: true,
		text: "Requests of web pages from other origins are refused: any page that the user of a browser visits could send them."}
}

func isLocalName(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

// conns limits the number of connections of a server. When there is one too many, it closes
// the one that has been without a request for longest, so that idle and half-open connections
// do not block clients that have a request. If all have a request, it closes the new one.
type conns struct {
	mu       sync.Mutex
	max      int
	open     map[net.Conn]bool
	waiting  []net.Conn        // connections without a request (new or idle), longest first
	hot      map[net.Conn]bool // connections with a hot request, which net/http does not see
	draining bool
	drained  chan struct{} // closed when draining and hot is empty
}

func newConns(limit int) *conns {
	return &conns{max: limit, open: map[net.Conn]bool{}, hot: map[net.Conn]bool{}, drained: make(chan struct{})}
}

// observe is the server's ConnState hook.
func (c *conns) observe(conn net.Conn, state http.ConnState) {
	var victim net.Conn
	c.mu.Lock()
	switch state {
	case http.StateNew:
		c.open[conn] = true
		c.waiting = append(c.waiting, conn)
		if len(c.open) > c.max {
			victim = c.waiting[0] // the new one if all others have a request
			c.forget(victim)
			delete(c.open, victim)
		}
	case http.StateIdle:
		switch {
		case c.draining: // net/http is not shutting down yet
			victim = conn
		case c.open[conn]:
			c.waiting = append(c.waiting, conn)
		}
	case http.StateActive:
		c.forget(conn)
	case http.StateClosed, http.StateHijacked:
		c.forget(conn)
		delete(c.open, conn)
		c.cool(conn)
	}
	c.mu.Unlock()
	if victim != nil {
		_ = victim.Close() // makes the server's goroutine for this connection return
	}
}

// forget removes conn from waiting.
func (c *conns) forget(conn net.Conn) {
	if i := slices.Index(c.waiting, conn); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}

// begin records that conn has a hot request. It returns false if conn must be closed instead.
func (c *conns) begin(conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining || !c.open[conn] {
		return false
	}
	c.forget(conn)
	c.hot[conn] = true
	return true
}

// idle records that the hot request of conn is answered.
func (c *conns) idle(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cool(conn)
	if c.draining {
		_ = conn.Close()
	} else if c.open[conn] {
		c.waiting = append(c.waiting, conn)
	}
}

// cool removes conn from hot.
func (c *conns) cool(conn net.Conn) {
	if c.hot[conn] {
		delete(c.hot, conn)
		c.noticeDrain()
	}
}

func (c *conns) isDraining() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.draining
}

// noticeDrain closes drained when the last hot request is over.
func (c *conns) noticeDrain() {
	if c.draining && len(c.hot) == 0 {
		select {
		case <-c.drained:
		default:
			close(c.drained)
		}
	}
}

// drain closes the connections without a request, and waits until all hot requests are
// answered or ctx ends.
func (c *conns) drain(ctx context.Context) error {
	c.mu.Lock()
	for _, conn := range c.waiting {
		_ = conn.Close()
	}
	c.waiting = nil
	c.draining = true
	c.noticeDrain()
	c.mu.Unlock()
	select {
	case <-c.drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
