package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/conformance/actor"
	"github.com/sandboxd/sandboxd/conformance/script"
)

func dial(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	c, err := net.DialTimeout(s.Method, s.Path, millis(s))
	if err != nil {
		e.Fail(err)
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(millis(s))); err != nil {
		e.Fail(err)
		return
	}
	if _, err := io.WriteString(c, s.Data); err != nil {
		e.Fail(err)
		return
	}
	buf := make([]byte, 1024)
	n, err := c.Read(buf)
	e.Text = string(buf[:n])
	e.Fail(err)
}

func lookup(ctx context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	list, err := (&net.Resolver{PreferGo: true}).LookupHost(ctx, s.Path)
	e.List = list
	e.Fail(err)
}

func bind(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	l, err := net.Listen("tcp", s.Path)
	if err != nil {
		e.Fail(err)
		return
	}
	e.Fail(l.Close())
}

func rawSocket(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	family, protocol := unix.AF_INET, unix.IPPROTO_UDP
	if s.Method == "packet" {
		family, protocol = unix.AF_PACKET, 0
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, protocol)
	if err != nil {
		e.Fail(err)
		return
	}
	e.Fail(unix.Close(fd))
}

// linkDown asks the kernel by netlink, and notes its answer.
func linkDown(_ context.Context, _ *actor.Actor, s script.Step, e *script.Entry) {
	i, err := net.InterfaceByName(s.Path)
	if err != nil {
		e.Fail(err)
		return
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		e.Fail(err)
		return
	}
	defer unix.Close(fd)
	const size = unix.SizeofNlMsghdr + unix.SizeofIfInfomsg
	m := binary.NativeEndian.AppendUint32(nil, size)
	m = binary.NativeEndian.AppendUint16(m, unix.RTM_NEWLINK)
	m = binary.NativeEndian.AppendUint16(m, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m = append(m, make([]byte, 8+4)...) // sequence and port; family, type
	m = binary.NativeEndian.AppendUint32(m, uint32(i.Index))
	m = binary.NativeEndian.AppendUint32(m, 0)           // flags: not up
	m = binary.NativeEndian.AppendUint32(m, unix.IFF_UP) // of which this one changes
	if err := unix.Sendto(fd, m, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		e.Fail(err)
		return
	}
	answer := make([]byte, 1024)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		e.Error = "no answer of the kernel"
		return
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		e.Fail(unix.Errno(-code))
	}
}
