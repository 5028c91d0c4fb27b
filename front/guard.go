package front

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
)

// guard refuses what a browser sends for a web page. There is no authentication, so a
// page that the operator visits must not be able to run functions on 127.0.0.1.
// SDKs and tools send neither Origin nor Sec-Fetch-Site; browsers send Origin with every
// POST. A page may pass only if this server itself is its origin, and is addressed
// by number or as localhost: any other name could be one that its
// owner has pointed at 127.0.0.1 (DNS rebinding).
func guard(r *http.Request) *refusal {
	origin := r.Header.Values("Origin")
	site := r.Header.Get("Sec-Fetch-Site")
	if len(origin) == 0 && (site == "" || site == "none") {
		return nil
	}
	if len(origin) == 1 && (site == "" || site == "same-origin") {
		u, err := url.Parse(origin[0])
		if err == nil && u.Scheme == "http" && u.Host == r.Host && isLocalName(u.Hostname()) {
			return nil
		}
	}
	return &refusal{status: http.StatusForbidden, name: "AccessDeniedException", hangUp: true,
		text: "Requests of web pages from other origins are refused, because this endpoint has no authentication."}
}

func isLocalName(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil || strings.EqualFold(host, "localhost")
}

// conns bounds the connections of a server. When one comes too many, the one that has
// waited longest without a request is closed, so that idle and half-open connections,
// however many, do not keep out who has a request. If all have one, the new one is closed.
type conns struct {
	mu      sync.Mutex
	max     int
	open    map[net.Conn]bool
	waiting []net.Conn // without a request (new or idle), longest first
}

func newConns(limit int) *conns { return &conns{max: limit, open: map[net.Conn]bool{}} }

// observe is the server's ConnState hook.
func (c *conns) observe(conn net.Conn, state http.ConnState) {
	var victim net.Conn
	c.mu.Lock()
	switch state {
	case http.StateNew:
		c.open[conn] = true
		c.waiting = append(c.waiting, conn)
		if len(c.open) > c.max {
			victim = c.waiting[0] // the new one, if no other waits
			c.forget(victim)
			delete(c.open, victim)
		}
	case http.StateIdle:
		if c.open[conn] {
			c.waiting = append(c.waiting, conn)
		}
	case http.StateActive:
		c.forget(conn)
	case http.StateClosed, http.StateHijacked:
		c.forget(conn)
		delete(c.open, conn)
	}
	c.mu.Unlock()
	if victim != nil {
		_ = victim.Close() // the server's goroutine of this connection sees it and ends
	}
}

// forget takes conn out of waiting.
func (c *conns) forget(conn net.Conn) {
	if i := slices.Index(c.waiting, conn); i >= 0 {
		c.waiting = slices.Delete(c.waiting, i, i+1)
	}
}

// closeWaiting closes the connections without a request.
func (c *conns) closeWaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.waiting {
		_ = conn.Close()
	}
	c.waiting = nil
}
