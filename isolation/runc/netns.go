package runc

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/isolation"
)

// Keep the main thread locked to the main goroutine. The Go runtime can park the main thread
// but never end it. A goroutine that enters a sandbox's namespaces for good, ours or one of
// libcontainer, might run on it otherwise: the thread would keep the namespaces alive, and
// /proc/self would show them.
func init() { runtime.LockOSThread() }

// onOwnThread runs f on a new OS thread, which ends when f returns. So f may change the
// thread's namespaces without affecting other goroutines.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the runtime ends the thread with the goroutine
		done <- f()
	}()
	return <-done
}

// A netns is a network namespace. It exists while its file is open or a process is in it, and
// has no name in the file system.
type netns struct {
	file     *os.File     // nil for the namespace of the host
	listener net.Listener // of the Runtime API
	lookups  struct {     // sockets of lookupAddr; nil without NetworkEgress
		udp net.PacketConn
		tcp net.Listener
	}

	mu   sync.Mutex
	diag *nl.SocketHandle // sock_diag socket inside; nil before its first use
}

// lookupAddr is the name server in the /etc/resolv.conf of every sandbox.
const lookupAddr = "127.0.0.1:53"

// newNetNS creates the network namespace for a mode of isolation.Network, brings up its
// loopback interface, and opens the listener of the Runtime API inside (docs/decisions/0002,
// SUP-19). With the host's namespace it only opens the listener, on a free port.
func newNetNS(mode string) (_ *netns, err error) {
	n := &netns{}
	if mode == isolation.NetworkHost {
		if n.listener, err = net.Listen("tcp4", "127.0.0.1:0"); err != nil {
			return nil, fmt.Errorf("listen in the host's network namespace: %w", err)
		}
		return n, nil
	}
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := raiseLoopback(); err != nil {
			return fmt.Errorf("bring up the loopback interface: %w", err)
		}
		if n.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return fmt.Errorf("open the namespace: %w", err)
		}
		if n.listener, err = net.Listen("tcp4", isolation.APIAddr); err != nil {
			return fmt.Errorf("listen for the Runtime API inside: %w", err)
		}
		if mode != isolation.NetworkEgress {
			return nil
		}
		if n.lookups.udp, err = net.ListenPacket("udp4", lookupAddr); err == nil {
			n.lookups.tcp, err = net.Listen("tcp4", lookupAddr)
		}
		if err != nil {
			return fmt.Errorf("listen for name lookups inside: %w", err)
		}
		return nil
	})
	if err != nil {
		n.Close()
		return nil, fmt.Errorf("create a network namespace: %w", err)
	}
	return n, nil
}

// raiseLoopback brings up the interface lo in the calling thread's namespace (netdevice(7)).
func raiseLoopback() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, request); err != nil {
		return os.NewSyscallError("ioctl SIOCGIFFLAGS", err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return os.NewSyscallError("ioctl SIOCSIFFLAGS", unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request))
}

// atPath calls f with a path of the namespace, or "" for that of the host. The path is valid
// until f returns, in this process and in its children, even if n is closed meanwhile.
func (n *netns) atPath(f func(path string) error) error {
	if n.file == nil {
		return f("")
	}
	return descriptor.Use(n.file, func(fd int) error { return f(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd)) })
}

// enter moves the calling thread into the namespace. Call it inside onOwnThread.
func (n *netns) enter() error {
	if n.file == nil {
		return nil
	}
	if err := descriptor.Use(n.file, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWNET) }); err != nil {
		return fmt.Errorf("enter the network namespace: %w", err)
	}
	return nil
}

// dial connects from inside the namespace. The host in addr must be an IP address.
func (n *netns) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	host, _, err := net.SplitHostPort(addr)
	if err == nil && net.ParseIP(host) == nil {
		err = fmt.Errorf("%q is not an IP address", host)
	}
	if err != nil {
		return nil, fmt.Errorf("dial into the sandbox: %w", err)
	}
	err = onOwnThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial into the sandbox: %w", err)
	}
	return conn, nil
}

func (n *netns) Close() {
	if n.listener != nil {
		n.listener.Close()
	}
	if n.lookups.udp != nil {
		n.lookups.udp.Close()
	}
	if n.lookups.tcp != nil {
		n.lookups.tcp.Close()
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.diag != nil {
		n.diag.Close()
		n.diag = nil
	}
	if n.file != nil {
		_ = failpoint.Do(failpoint.CloseNetNS, n.file.Close)
	}
}
