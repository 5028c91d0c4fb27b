package invoke

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/sandboxd/sandboxd/rapid"
)

// lateListener has connections on which the drain comes first, and closes them, when the
// request that is not hot has been read already.
type lateListener struct {
	net.Listener
	drain func()
}

type lateConn struct {
	net.Conn
	drain  func()
	once   sync.Once
	closed chan struct{}
}

func (l *lateListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &lateConn{Conn: c, drain: l.drain, closed: make(chan struct{})}, err
}

func (c *lateConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if bytes.Contains(p[:n], []byte("Qualifier")) {
		c.drain()
		<-c.closed
	}
	return n, err
}

func (c *lateConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return c.Conn.Close()
}

// What comes on a connection that is being closed is not run: its client gets no answer,
// and may ask another server.
func TestNothingRunsOnAClosedConnection(t *testing.T) {
	started, finish := make(chan struct{}, 2), make(chan struct{})
	r := newRig(t, 2, func(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
		if string(inv.Payload) == `"first"` {
			started <- struct{}{}
			<-finish
		}
		return echo(ctx, inv)
	}, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- r.srv.Serve(ctx, &lateListener{l, cancel}) }()
	hot, cold := r.raw(l.Addr().String()), r.raw(l.Addr().String())
	hot.send("%s", requestHead+"Content-Length: 7\r\n\r\n\"first\"") // the drain waits for it
	<-started
	cold.send("%s", strings.Replace(requestHead, "invocations", "invocations?Qualifier=$LATEST", 1)+"Content-Length: 2\r\n\r\n{}")
	if b, err := io.ReadAll(cold.in); len(b) > 0 || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	close(finish)
	if a, is := hot.get(); a.status != 200 || !is {
		t.Errorf("hot %v, %+v", is, a)
	}
	if err := <-over; err != nil {
		t.Errorf("Serve: %v", err)
	}
	if n := len(r.invocations()); n != 1 {
		t.Errorf("%d invocations were run, want the one that was answered", n)
	}
}
