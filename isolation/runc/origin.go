package runc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/host"
	"github.com/sandboxd/sandboxd/internal/accept"
)

// Domain returns the domain whose process created the other end of conn, an accepted
// connection of Listener. See supervisor.Box.
//
// Both domains have the same addresses and host ids, but different cgroups, and a socket keeps
// the v2 cgroup of the process that created it. The kernel reports the cgroup of the socket
// that has conn's addresses reversed (sock_diag(7)). That socket is the peer of conn if conn's
// own end is open: another socket with the same addresses then cannot get beyond SYN-SENT. So
// Domain fails if our end has been closed, or if the peer is still connecting.
func (s *Sandbox) Domain(_ context.Context, conn net.Conn) (string, error) {
	id, err := s.net.originOf(conn)
	if err != nil {
		return "", fmt.Errorf("find the origin of a connection in %s: %w", s.spec.ID, err)
	}
	for _, name := range s.spec.Domains {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(s.group.core, name), &st); err == nil && st.Ino == id { // the id of a v2 cgroup is its inode
			return name, nil
		}
	}
	return "", fmt.Errorf("find the origin of a connection in %s: cgroup %d does not belong to a domain", s.spec.ID, id)
}

// TellsDomains returns nil if [Sandbox.Domain] works on this host, and a [host.Unsupported]
// error if it does not. It tries with a connection of its own, and returns other errors if
// that fails.
func (h Host) TellsDomains() error {
	if h.Mode != ModeUnified && h.Mode != ModeHybrid {
		return &host.Unsupported{Feature: host.CgroupV2, Need: fmt.Sprintf("the %s cgroup layout has no v2 tree, which is needed to find the domain of a connection", h.Mode),
			Fix: "mount cgroup2 at " + unifiedRoot}
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	peer, err := net.Dial("tcp4", l.Addr().String())
	if err != nil {
		return err
	}
	defer peer.Close()
	conn, err := l.Accept()
	if err != nil {
		return err
	}
	defer conn.Close()
	socket, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
	if err == nil {
		defer socket.Close()
		_, err = originOf(&nl.SocketHandle{Socket: socket}, conn)
	}
	return originError(err)
}

// originError returns the error of TellsDomains if err is the result of the query for our own
// connection. A temporary error, such as too many open files, says nothing about the kernel.
func originError(err error) error {
	switch {
	case err == nil:
		return nil
	case accept.Temporary(err):
		return fmt.Errorf("query the cgroup of a connection's other end: %w", err)
	}
	return &host.Unsupported{Feature: host.ConnectionOrigin, Need: "the kernel does not report the cgroup of a connection's other end", Err: err,
		Fix: "use Linux 5.9 or newer with CONFIG_INET_DIAG and CONFIG_CGROUPS"}
}

// originOf returns the id of the cgroup in which the other end of conn was created. It opens
// the socket for the query inside the namespace, and keeps it.
func (n *netns) originOf(conn net.Conn) (uint64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.diag == nil {
		err := onOwnThread(func() error {
			if err := n.enter(); err != nil {
				return err
			}
			socket, err := nl.Subscribe(unix.NETLINK_INET_DIAG)
			if err != nil {
				return fmt.Errorf("sock_diag: %w", err)
			}
			n.diag = &nl.SocketHandle{Socket: socket}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return originOf(n.diag, conn)
}

func originOf(diag *nl.SocketHandle, conn net.Conn) (uint64, error) {
	request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, 0)
	request.Sockets = map[int]*nl.SocketHandle{unix.NETLINK_INET_DIAG: diag}
	query, err := peerQuery(conn)
	if err != nil {
		return 0, err
	}
	request.AddRawData(query)
	answers, err := request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
	if err != nil {
		return 0, fmt.Errorf("sock_diag: %w", err)
	}
	if len(answers) != 1 {
		return 0, fmt.Errorf("sock_diag: %d answers instead of 1", len(answers))
	}
	state, cgroup, err := parsePeer(answers[0])
	if err != nil {
		return 0, err
	}
	switch state {
	case netlink.TCP_ESTABLISHED, netlink.TCP_FIN_WAIT1, netlink.TCP_FIN_WAIT2, netlink.TCP_CLOSE_WAIT, netlink.TCP_CLOSING, netlink.TCP_LAST_ACK:
	default: // the socket is listening or connecting
		return 0, errors.New("another socket has its addresses now")
	}
	if err := stillOpen(conn); err != nil {
		return 0, err
	}
	return cgroup, nil
}

// The sizes of struct inet_diag_req_v2 and struct inet_diag_msg (linux/inet_diag.h).
const (
	diagRequestSize = 56
	diagMessageSize = 72
)

// peerQuery returns the query for the socket at the other end of conn, a struct
// inet_diag_req_v2.
func peerQuery(conn net.Conn) ([]byte, error) {
	own, ok := conn.LocalAddr().(*net.TCPAddr)
	peer, ok2 := conn.RemoteAddr().(*net.TCPAddr)
	if !ok || !ok2 || own.IP.To4() == nil || peer.IP.To4() == nil {
		return nil, fmt.Errorf("the connection from %v is not an IPv4 TCP connection", conn.RemoteAddr())
	}
	q := make([]byte, diagRequestSize)
	q[0], q[1] = unix.AF_INET, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(q[4:], ^uint32(0)) // in any state
	binary.BigEndian.PutUint16(q[8:], uint16(peer.Port))
	binary.BigEndian.PutUint16(q[10:], uint16(own.Port))
	copy(q[12:], peer.IP.To4())
	copy(q[28:], own.IP.To4())
	binary.NativeEndian.PutUint32(q[48:], nl.TCPDIAG_NOCOOKIE)
	binary.NativeEndian.PutUint32(q[52:], nl.TCPDIAG_NOCOOKIE)
	return q, nil
}

// parsePeer parses a struct inet_diag_msg and its attributes.
func parsePeer(msg []byte) (state uint8, cgroup uint64, err error) {
	if len(msg) < diagMessageSize {
		return 0, 0, fmt.Errorf("sock_diag: answer of %d bytes instead of at least %d", len(msg), diagMessageSize)
	}
	attributes, err := nl.ParseRouteAttr(msg[diagMessageSize:])
	if err != nil {
		return 0, 0, fmt.Errorf("sock_diag: %w", err)
	}
	for _, a := range attributes {
		if a.Attr.Type == netlink.INET_DIAG_CGROUP_ID && len(a.Value) == 8 {
			return msg[1], binary.NativeEndian.Uint64(a.Value), nil
		}
	}
	return 0, 0, errors.New("sock_diag: no cgroup: the other end is closed") // its address is in TIME-WAIT, without a socket
}

// stillOpen returns an error if our own end of conn has been closed, by a reset.
func stillOpen(conn net.Conn) error {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T is not a socket", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.SOL_TCP, unix.TCP_INFO) }); e != nil {
		err = e
	}
	if err != nil {
		return os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	if info.State == netlink.TCP_CLOSE {
		return errors.New("the connection was reset")
	}
	return nil
}
