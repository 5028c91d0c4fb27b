//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// space is a network namespace that a test made. The nil space is the machine's own.
type space struct {
	t    *testing.T
	file *os.File
	dir  string // has the resolv.conf that programs in the space see
}

// newSpace makes a network namespace with its loopback up.
func newSpace(t *testing.T) *space {
	t.Helper()
	s := &space{t: t, dir: t.TempDir()}
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

// in runs f on a thread of its own in the space.
func (s *space) in(f func() error) error {
	if s == nil {
		return f()
	}
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

// path names the space for other programs, as long as the test runs.
func (s *space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// command is a program that runs in the space.
func (s *space) command(name string, args ...string) *exec.Cmd {
	if s == nil {
		return exec.Command(name, args...)
	}
	const enter = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	return exec.Command("nsenter", append([]string{"--net=" + s.path(), "unshare", "--mount", "--propagation=private", "--",
		"sh", "-c", enter, filepath.Join(s.dir, "resolv.conf"), name}, args...)...)
}

// client makes requests from within the space.
func (s *space) client() *http.Client {
	if s == nil {
		return http.DefaultClient
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = s.in(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
		return conn, err
	}}}
}

// ip runs commands of ip(8) in the space, one a line.
func (s *space) ip(lines string) {
	s.t.Helper()
	for line := range strings.Lines(lines) {
		s.output("ip", strings.Fields(line)...)
	}
}

// output is what a program prints that runs in the space.
func (s *space) output(name string, args ...string) string {
	s.t.Helper()
	var out []byte
	err := s.in(func() (err error) { out, err = exec.Command(name, args...).CombinedOutput(); return err })
	if err != nil {
		s.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// set writes a setting of the space's network.
func (s *space) set(name, value string) {
	s.t.Helper()
	if err := s.in(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		s.t.Fatal(err)
	}
}

// servePort is where the servers of a space answer.
const servePort = "7000"

// serve answers "pong" to whoever connects to servePort of any address of the space.
func (s *space) serve() {
	s.t.Helper()
	var l net.Listener
	if err := s.in(func() (err error) { l, err = net.Listen("tcp", ":"+servePort); return err }); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "pong") // who asked may be gone
			c.Close()
		}
	}()
}

// serveNames answers lookups of any name with addr.
func (s *space) serveNames(at, addr string) {
	s.t.Helper()
	var pc net.PacketConn
	if err := s.in(func() (err error) { pc, err = net.ListenPacket("udp4", at); return err }); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { pc.Close() })
	go func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.RecursionAvailable = true, true
			if q.Type == dnsmessage.TypeA {
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60},
					Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(addr).To4())},
				}}
			}
			if packed, err := m.Pack(); err == nil {
				_, _ = pc.WriteTo(packed, from)
			}
		}
	}()
}

// Addresses of newInternet.
const (
	hostUplink4, hostUplink6 = "11.0.0.2", "2a00::2"
	public4, public6         = "11.1.1.1", "2a00:1::1"
	named4                   = "11.1.2.1" // of every name
)

// closedAddresses are some that only rules which name them open.
var closedAddresses = []string{"10.9.9.9", "172.16.9.9", "192.168.9.9", "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fc00:9::9"}

// newInternet makes a space that plays the host, and behind it one that has all of these
// addresses and answers there. The machine's own network is not touched.
func newInternet(t *testing.T) *space {
	t.Helper()
	host, inet := newSpace(t), newSpace(t)
	for _, s := range []*space{host, inet} {
		s.set("ipv6/conf/default/accept_dad", "0") // addresses are usable at once
	}
	host.ip("link add up0 type veth peer name eth0 netns " + inet.path())
	host.ip("addr add " + hostUplink4 + "/24 dev up0\naddr add " + hostUplink6 + "/64 dev up0 nodad\nlink set up0 up")
	inet.ip("addr add 11.0.0.1/24 dev eth0\naddr add 2a00::1/64 dev eth0 nodad\nlink set eth0 up")
	for _, a := range append([]string{public4, public6, named4}, closedAddresses...) {
		bits := "32"
		if strings.Contains(a, ":") {
			bits = "128"
		}
		inet.ip("addr add " + a + "/" + bits + " dev lo")
	}
	host.ip("route add default via 11.0.0.1\n-6 route add default via 2a00::1")
	host.set("ipv4/icmp_ratelimit", "0") // every refusal is told, so that nobody waits for one
	host.set("ipv6/icmp/ratelimit", "0")
	host.set("ipv4/conf/up0/forwarding", "1")
	host.set("ipv6/conf/all/forwarding", "1")
	inet.serve()
	host.serve()
	inet.serveNames("11.0.0.1:53", named4)
	writeFile(t, filepath.Join(host.dir, "resolv.conf"), []byte("nameserver 11.0.0.1\n"), 0o644)
	return host
}
