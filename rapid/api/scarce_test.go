package api

import (
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

// The API of a sandbox survives what the kernel lacks for a moment: without it the
// sandbox is lost.
func TestTemporaryErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EPROTO} {
		w := newWorld(t, setup{listener: func(l net.Listener) net.Listener {
			s := &scarceListener{Listener: l, errno: errno}
			s.fails.Store(3)
			return s
		}})
		if got := w.do("GET", "/2018-06-01/runtime/nowhere", ""); got.status != 404 {
			t.Errorf("%v: status %d, want an answer", errno, got.status)
		}
	}
}
