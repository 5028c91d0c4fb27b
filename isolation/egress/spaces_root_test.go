//go:build integration

package egress

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a network namespace of their own, which plays the host:
// nothing of the machine's network is touched.
func TestMain(m *testing.M) {
	const inside = "EGRESS_TEST_INSIDE"
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// space is a network namespace of a test.
type space struct {
	t    *testing.T
	file *os.File
}

// in runs f on a thread of its own in the namespace.
func (s space) in(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if s.file != nil {
			if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
		}
		done <- f()
	}()
	return <-done
}

// newSpace makes a namespace with its loopback up.
func newSpace(t *testing.T) space {
	t.Helper()
	s := space{t: t}
	err := s.in(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		s.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.file.Close() })
	s.ip("link set lo up")
	return s
}

// machine is the namespace that the tests run in.
func machine(t *testing.T) space { return space{t: t} }

// ip runs commands of ip(8), one a line.
func (s space) ip(lines string) {
	s.t.Helper()
	for line := range strings.Lines(lines) {
		err := s.in(func() error {
			out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ip %s: %w: %s", strings.TrimSpace(line), err, out)
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
	}
}

// output is what ip(8) prints.
func (s space) output(args ...string) string {
	s.t.Helper()
	var out []byte
	if err := s.in(func() (err error) { out, err = exec.Command("ip", args...).CombinedOutput(); return err }); err != nil {
		s.t.Fatalf("ip %v: %v: %s", args, err, out)
	}
	return string(out)
}

// set writes a setting of the namespace.
func (s space) set(name, value string) {
	s.t.Helper()
	if err := s.in(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		s.t.Fatal(err)
	}
}

// How long an answer may take: one that is wanted, and one that is not.
const patience, silence = 10 * time.Second, 400 * time.Millisecond

// Ports that servers of the tests listen on.
const port, otherPort = 7000, 7001

// serve answers "pong" by TCP and UDP at both ports of every address of the namespace.
func (s space) serve() {
	s.t.Helper()
	for _, p := range []int{port, otherPort} {
		var l net.Listener
		var pc *net.UDPConn
		err := s.in(func() (err error) {
			if l, err = net.Listen("tcp", fmt.Sprintf(":%d", p)); err != nil {
				return err
			}
			pc, err = net.ListenUDP("udp", &net.UDPAddr{Port: p})
			return err
		})
		if err != nil {
			s.t.Fatal(err)
		}
		s.t.Cleanup(func() { l.Close(); pc.Close() })
		fromWhereAsked(s.t, pc)
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(c, "pong")
				c.Close()
			}
		}()
		go answer(pc)
	}
}

// fromWhereAsked makes a socket of all addresses tell which one was asked.
func fromWhereAsked(t *testing.T, pc *net.UDPConn) {
	t.Helper()
	raw, err := pc.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		for level, option := range map[int]int{unix.IPPROTO_IP: unix.IP_PKTINFO, unix.IPPROTO_IPV6: unix.IPV6_RECVPKTINFO} {
			if err := unix.SetsockoptInt(int(fd), level, option, 1); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// answer replies from the address that was asked.
func answer(pc *net.UDPConn) {
	buf, oob := make([]byte, 100), make([]byte, 100)
	for {
		_, n, _, from, err := pc.ReadMsgUDPAddrPort(buf, oob)
		if err != nil {
			return
		}
		pc.WriteMsgUDPAddrPort([]byte("pong"), oob[:n], from)
	}
}

// reach asks a server by TCP or UDP, and waits for an answer as long as one is wanted.
func (s space) reach(network, addr string, p int, wanted bool) error {
	limit := silence
	if wanted {
		limit = patience
	}
	return s.in(func() error {
		c, err := net.DialTimeout(network, net.JoinHostPort(addr, fmt.Sprint(p)), limit)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(limit))
		if network == "udp" {
			if _, err := c.Write([]byte("ping")); err != nil {
				return err
			}
		}
		buf := make([]byte, 4)
		if _, err := io.ReadFull(c, buf); err != nil {
			return err
		}
		if string(buf) != "pong" {
			return errors.New("answered " + string(buf))
		}
		return nil
	})
}

// wantReach and wantNot check by TCP and UDP what can be reached.
func (s space) wantReach(addrs ...string) {
	s.t.Helper()
	for _, a := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			if err := s.reach(network, a, port, true); err != nil {
				s.t.Errorf("%s is not reached by %s: %v", a, network, err)
			}
		}
	}
}

func (s space) wantNot(addrs ...string) {
	s.t.Helper()
	for _, a := range addrs {
		for _, network := range []string{"tcp", "udp"} {
			if err := s.reach(network, a, port, false); err == nil {
				s.t.Errorf("%s is reached by %s", a, network)
			}
		}
	}
}

// Addresses of the tests' internet.
const (
	public4, otherPublic4 = "11.1.1.1", "11.1.2.1"
	public6, otherPublic6 = "2a00:1::1", "2a00:2::1"
	hostUplink4           = "11.0.0.2"
	hostUplink6           = "2a00::2"
)

var closedAddresses = []string{
	"10.9.9.9", "172.16.9.9", "192.168.9.9", "100.64.9.9", "100.100.100.200", "168.63.129.16", "192.0.0.192", "198.18.0.9",
	"169.254.169.254", "169.254.170.2", "169.254.169.123",
	"fd00:ec2::254", "fd20:ce::254", "fc00:9::9", "64:ff9b::a09:909", "2002:a09:909::1", "2001:db8::9",
}

// internet makes a namespace that has all of these addresses, and is the way to
// everywhere for the host. It has no way to a sandbox: only what the host sends in its
// own name is answered. The host forwards, as doctor says it must.
func internet(t *testing.T) space {
	t.Helper()
	h, net := machine(t), newSpace(t)
	h.ip("link set lo up")
	net.set("ipv4/conf/all/rp_filter", "0")
	net.set("ipv4/conf/default/rp_filter", "0")
	for _, s := range []space{h, net} { // addresses are usable at once
		s.set("ipv6/conf/default/accept_dad", "0")
	}
	h.ip(fmt.Sprintf("link add up0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), net.file.Fd()))
	t.Cleanup(func() { h.ip("link del up0") })
	h.ip("addr add " + hostUplink4 + "/24 dev up0\naddr add " + hostUplink6 + "/64 dev up0 nodad\nlink set up0 up")
	net.ip("addr add 11.0.0.1/24 dev eth0\naddr add 2a00::1/64 dev eth0 nodad\nlink set eth0 up")
	for _, a := range append([]string{public4, otherPublic4, public6, otherPublic6}, closedAddresses...) {
		bits := netip.MustParseAddr(a).BitLen()
		net.ip(fmt.Sprintf("addr add %s/%d dev lo", a, bits))
	}
	h.ip("route add default via 11.0.0.1\n-6 route add default via 2a00::1")
	h.set("ipv4/icmp_ratelimit", "0") // every refusal is told, so that nobody waits for one
	h.set("ipv6/icmp/ratelimit", "0")
	h.set("ipv4/conf/up0/forwarding", "1")
	h.set("ipv6/conf/all/forwarding", "1")
	t.Cleanup(func() { h.set("ipv6/conf/all/forwarding", "0") })
	net.serve()
	return net
}

// reachFrom asks by UDP from a port of the asker's choice.
func (s space) reachFrom(from netip.Addr, own uint16, to string) error {
	return s.in(func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, own)), &net.UDPAddr{IP: net.ParseIP(to), Port: port})
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("ping")); err != nil {
			return err
		}
		c.SetDeadline(time.Now().Add(silence))
		_, err = c.Read(make([]byte, 4))
		return err
	})
}
