package api

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// deadlines counts how often a connection's deadline is set.
type deadlines struct {
	net.Conn
	n atomic.Int64
}

func (d *deadlines) SetReadDeadline(t time.Time) error {
	d.n.Add(1)
	return d.Conn.SetReadDeadline(t)
}

// RT-04: a request that has begun when the sandbox freezes, with next to none of its
// time left, costs nothing for as long as the sandbox is frozen. Its time ends with the thaw.
func TestFrozenHeaderIsQuiet(t *testing.T) {
	w := newWorld(t, setup{config: func(c *rapid.Config) { c.Settings.Linger = 0 }})
	w.later("GET", nextPath)
	w.until(func() bool { return slices.Contains(w.sup.Calls(), "freeze") })
	begin := func() (c *conn, read chan error, peer net.Conn) {
		ours, peer := net.Pipe()
		c = &conn{Conn: &deadlines{Conn: ours}, guard: &guard{sandbox: w.s}, until: w.s.Thawed() + 1}
		c.ctx, c.cancel = context.WithCancel(t.Context())
		c.phase.Store(int32(begun))
		read = make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		return c, read, peer
	}
	one, oneRead, _ := begin()
	two, twoRead, _ := begin()
	time.Sleep(100 * time.Millisecond)
	for _, c := range []*conn{one, two} {
		if n := c.Conn.(*deadlines).n.Load(); n > 1 {
			t.Errorf("the connection was looked at %d times", n)
		}
	}
	_ = one.Close()
	if err := <-oneRead; !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed while frozen: %v", err)
	}
	w.invoke("id") // thaws
	if err := <-twoRead; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("after the thaw: %v", err)
	}
	_ = two.Close()
}
