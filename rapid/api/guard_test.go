package api

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
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
// time left, costs next to nothing for as long as the sandbox is frozen.
func TestFrozenHeaderIsQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := rapid.New(rapid.Config{Settings: rapid.DefaultSettings()}, fakeSup{fakesup.New(nil)})
		ours, peer := net.Pipe()
		counted := &deadlines{Conn: ours}
		c := &conn{Conn: counted, guard: &guard{sandbox: s, limits: Limits{HeaderTime: time.Millisecond}}}
		c.phase.Store(int32(begun))
		read := make(chan error, 1)
		go func() {
			_, err := c.Read(make([]byte, 1))
			read <- err
		}()
		time.Sleep(time.Hour) // the sandbox's time begins with Run, and stands still until then
		if n := counted.n.Load(); n > 3601 {
			t.Errorf("the connection was looked at %d times in an hour", n)
		}
		if _, err := peer.Write([]byte("x")); err != nil {
			t.Error(err)
		}
		if err := <-read; err != nil {
			t.Error(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
}
