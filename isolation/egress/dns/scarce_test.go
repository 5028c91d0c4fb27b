package dns

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// scarce are the errors of sockets that fail for a while.
type scarce struct {
	mu   sync.Mutex
	errs []error
}

func (s *scarce) next() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errs) == 0 {
		return nil
	}
	err := s.errs[0]
	s.errs = s.errs[1:]
	return err
}

type scarceListener struct {
	net.Listener
	fails *scarce
}

func (l scarceListener) Accept() (net.Conn, error) {
	if err := l.fails.next(); err != nil {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	return l.Listener.Accept()
}

type scarcePackets struct {
	net.PacketConn
	fails *scarce
}

func (c scarcePackets) ReadFrom(b []byte) (int, net.Addr, error) {
	if err := c.fails.next(); err != nil {
		return 0, nil, &net.OpError{Op: "read", Err: os.NewSyscallError("recvfrom", err)}
	}
	return c.PacketConn.ReadFrom(b)
}

// What the kernel lacks for a moment, or says of what was sent before, does not end the
// resolver.
func TestTemporaryErrors(t *testing.T) {
	s := newServer(t)
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM, syscall.EPROTO, syscall.ECONNREFUSED} {
		var tcp, udp scarce
		for range 3 {
			tcp.errs, udp.errs = append(tcp.errs, errno), append(udp.errs, errno)
		}
		f := serveOn(t, func(p net.PacketConn, l net.Listener) (net.PacketConn, net.Listener) {
			return scarcePackets{p, &udp}, scarceListener{l, &tcp}
		}, s.addr)
		for _, network := range []string{"udp", "tcp"} {
			if m := f.exchange(t, network, query(t, "one.example.", dnsmessage.TypeA)); m.RCode != 0 {
				t.Errorf("%v: %s: %v", errno, network, m)
			}
		}
	}
}

// tellingListener tells of the errors of Accept.
type tellingListener struct {
	net.Listener
	failed chan error
}

func (l tellingListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		select {
		case l.failed <- err:
		default:
		}
	}
	return conn, err
}

// The resolver of a sandbox serves again when files of its process are free again.
func TestOutOfFiles(t *testing.T) {
	failed := make(chan error, 1)
	f := serveOn(t, func(p net.PacketConn, l net.Listener) (net.PacketConn, net.Listener) {
		return p, tellingListener{l, failed}
	}, newServer(t).addr)
	to, err := net.ResolveTCPAddr("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := os.NewFile(uintptr(client), "client")
	defer conn.Close()

	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil { // what is open stays
		t.Fatal(err)
	}
	restore := sync.OnceValue(func() error { return unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
	defer restore()
	if err := unix.Connect(client, &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(to.IP.To4())}); err != nil {
		t.Fatal(err)
	}
	select {
	case err = <-failed:
	case <-time.After(20 * time.Second):
		t.Fatal("Accept does not fail: the test shows nothing")
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("Accept failed with %v, want EMFILE", err)
	}
	if err := unix.SetsockoptTimeval(client, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		t.Fatal(err)
	}
	if err := writeMessage(conn, query(t, "one.example.", dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	if _, err := readMessage(conn, 1<<16); err != nil {
		t.Errorf("no answer once files are free again: %v", err)
	}
}
