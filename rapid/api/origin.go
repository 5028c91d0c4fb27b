package api

import (
	"context"
	"errors"
	"net"
)

// Origin returns nil if a process of the runtime's domain created the connection c, and else
// an error that says why not. It is called once for each connection, in a goroutine of its
// own, before anything is read from the connection. It must be safe for concurrent use and
// return when ctx ends.
type Origin func(ctx context.Context, c net.Conn) error

// maxOrigins is the most concurrent calls of Origin for one sandbox. Each is a request to the
// supervisor, which limits the requests of all sandboxes together: a process that opens many
// connections must not use up that limit.
const maxOrigins = 4

var errOriginTime = errors.New("nobody could say in time who made this connection")

// identify determines the origin of c. While it waits, it delays only the peer of c. The
// error is net.ErrClosed if c was closed meanwhile.
func (c *conn) identify() error {
	g := c.guard
	ctx, cancel := context.WithTimeout(c.ctx, g.limits.OriginTime)
	defer cancel()
	answer := make(chan error, 1)
	select {
	case g.asking <- struct{}{}:
		go func() { // an Origin that does not return keeps its place, and not the connection
			defer func() { <-g.asking }()
			answer <- g.origin(ctx, c.Conn)
		}()
	case <-ctx.Done():
	}
	select {
	case c.foreign = <-answer:
	case <-ctx.Done():
		c.foreign = errOriginTime
	}
	if c.ctx.Err() != nil {
		return net.ErrClosed
	}
	return nil
}
