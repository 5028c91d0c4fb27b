package invoke

import (
	"context"
	"errors"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
)

// scarceListener fails with an error a few times before it accepts.
type scarceListener struct {
	net.Listener
	fails atomic.Int32
	errno syscall.Errno
}

func (l *scarceListener) Accept() (net.Conn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", l.errno)}
	}
	return l.Listener.Accept()
}

// The endpoint survives what the kernel lacks for a moment, and reports it once.
func TestTemporaryErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO} {
		r := newRig(t, 1, echo, nil)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := &scarceListener{Listener: l, errno: errno}
		s.fails.Store(3)
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error, 1)
		go func() { over <- r.srv.Serve(ctx, s) }()
		c := r.dial(l.Addr().String())
		post(c, "{}")
		if code, body := status(t, c); code != 200 || body != "{}" {
			t.Errorf("%v: %d %q", errno, code, body)
		}
		cancel()
		if err := <-over; err != nil {
			t.Errorf("%v: Serve: %v", errno, err)
		}
		if errs := r.errors(); len(errs) != 1 || !errors.Is(errs[0], errno) {
			t.Errorf("%v: reported %v", errno, errs)
		}
	}
}
