package api

import (
	"context"
	"errors"
	"net"
)

// Origin returns why the process that made a connection is not the runtime's; nil if it
// is. It is asked once for each connection, in a goroutine of its own, before anything is
// read from the connection. It may be called from several goroutines, and must return when
// ctx ends.
type Origin func(ctx context.Context, c net.Conn) error

// maxOrigins is how many connections of one sandbox are asked about at the same time. Each
// question is a request to the supervisor, whose answers other sandboxes wait for too: a
// process that makes many connections must not take all their places.
const maxOrigins = 4

var errOriginTime = errors.New("nobody could say in time who made this connection")

// identify asks for the origin of c. Connections that are being asked about, or wait for
// that, hold up nobody but their own peers. The error is net.ErrClosed if c was closed
// meanwhile.
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
