package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"time"

	"github.com/sandboxd/sandboxd/integration/script"

	"golang.org/x/sys/unix"
)

// dial connects to the address Path by Method, tcp or udp, sends Data and notes what is
// answered within MS.
func dial(_ *testRuntime, s script.Step, r *script.Result) {
	c, err := net.DialTimeout(s.Method, s.Path, millis(s))
	if err != nil {
		fail(r, err)
		return
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(millis(s))); err != nil {
		fail(r, err)
		return
	}
	if _, err := io.WriteString(c, s.Data); err != nil {
		fail(r, err)
		return
	}
	buf := make([]byte, 1024)
	n, err := c.Read(buf)
	r.Text = string(buf[:n])
	fail(r, err)
}

// lookup notes the addresses of the name Path.
func lookup(_ *testRuntime, s script.Step, r *script.Result) {
	list, err := (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), s.Path)
	r.List = list
	fail(r, err)
}

// listen listens at the TCP address Path and stops again.
func listen(_ *testRuntime, s script.Step, r *script.Result) {
	l, err := net.Listen("tcp", s.Path)
	if err != nil {
		fail(r, err)
		return
	}
	l.Close()
}

// raw opens a socket for packets of its own making: of Method "ip" or "packet".
func raw(_ *testRuntime, s script.Step, r *script.Result) {
	family, protocol := unix.AF_INET, unix.IPPROTO_UDP
	if s.Method == "packet" {
		family, protocol = unix.AF_PACKET, 0
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW, protocol)
	if err != nil {
		fail(r, err)
		return
	}
	unix.Close(fd)
}

// linkDown asks the kernel to lower the interface Path, and notes its answer.
func linkDown(_ *testRuntime, s script.Step, r *script.Result) {
	i, err := net.InterfaceByName(s.Path)
	if err != nil {
		fail(r, err)
		return
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		fail(r, err)
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
		fail(r, err)
		return
	}
	answer := make([]byte, 1024)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < unix.SizeofNlMsghdr+4 {
		r.Error = "no answer of the kernel"
		return
	}
	if code := int32(binary.NativeEndian.Uint32(answer[unix.SizeofNlMsghdr:])); code != 0 {
		fail(r, unix.Errno(-code))
	}
}
