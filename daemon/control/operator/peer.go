package operator

import (
	"context"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// Peer is the process at the other end of a connection, as the kernel knows it.
type Peer struct{ UID, PID int }

type peerKey struct{}

// WithPeer returns a context that knows who has opened a connection of the operators' socket.
// It is for http.Server.ConnContext.
func WithPeer(ctx context.Context, c net.Conn) context.Context {
	if p, err := peerOf(c); err == nil {
		return context.WithValue(ctx, peerKey{}, p)
	}
	return ctx
}

// peerFrom returns the peer of a request; -1 and -1 if it is not known.
func peerFrom(ctx context.Context) Peer {
	if p, ok := ctx.Value(peerKey{}).(Peer); ok {
		return p
	}
	return Peer{-1, -1}
}

func peerOf(c net.Conn) (p Peer, err error) {
	socket, ok := c.(syscall.Conn)
	if !ok {
		return p, fmt.Errorf("%T is not a socket", c)
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return p, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if failed = err; err == nil {
			p = Peer{int(cred.Uid), int(cred.Pid)}
		}
	})
	if err == nil {
		err = failed
	}
	return p, err
}
