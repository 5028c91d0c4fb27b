package harness

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

	"github.com/google/nftables"
	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// WantNothingOnNetwork checks that no interface, route or table of a daemon is in the space.
func (s *Space) WantNothingOnNetwork(instance string) {
	s.t.Helper()
	for _, args := range [][]string{{"link"}, {"route"}, {"-6", "route"}} {
		if out := s.output("ip", args...); strings.Contains(out, "sb"+instance) {
			s.t.Errorf("ip %v shows what is left:\n%s", args, out)
		}
	}
	for _, name := range s.Tables() {
		if strings.Contains(name, instance) {
			s.t.Errorf("the table %s is left", name)
		}
	}
}

// Tables are the names of the tables of the space's packet filter.
func (s *Space) Tables() []string {
	s.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(s.file.Fd())))
	if err != nil {
		s.t.Fatal(err)
	}
	list, err := c.ListTables()
	if err != nil {
		s.t.Fatal(err)
	}
	var names []string
	for _, t := range list {
		names = append(names, t.Name)
	}
	return names
}

// Space is a network namespace that a test made. The nil space is the machine's own.
type Space struct {
	t    *testing.T
	file *os.File
	dir  string // has the resolv.conf that programs in the space see
}

// newSpace makes a network namespace with its loopback up.
func newSpace(t *testing.T) *Space {
	t.Helper()
	s := &Space{t: t, dir: t.TempDir()}
	err := s.In(func() (err error) {
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

// In runs f on a thread of its own in the space.
func (s *Space) In(f func() error) error {
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
func (s *Space) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), s.file.Fd()) }

// Command is a program that runs in the space.
func (s *Space) Command(name string, args ...string) *exec.Cmd {
	if s == nil {
		return exec.Command(name, args...)
	}
	const enter = `mount --bind "$0" /etc/resolv.conf && exec "$@"`
	return exec.Command("nsenter", append([]string{"--net=" + s.path(), "unshare", "--mount", "--propagation=private", "--",
		"sh", "-c", enter, filepath.Join(s.dir, "resolv.conf"), name}, args...)...)
}

// client makes requests from within the space.
func (s *Space) client() *http.Client {
	if s == nil {
		return http.DefaultClient
	}
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = s.In(func() error { conn, err = new(net.Dialer).DialContext(ctx, network, addr); return err })
		return conn, err
	}}}
}

// ip runs commands of ip(8) in the space, one a line.
func (s *Space) ip(lines string) {
	s.t.Helper()
	for line := range strings.Lines(lines) {
		s.output("ip", strings.Fields(line)...)
	}
}

// output is what a program prints that runs in the space.
func (s *Space) output(name string, args ...string) string {
	s.t.Helper()
	var out []byte
	err := s.In(func() (err error) { out, err = exec.Command(name, args...).CombinedOutput(); return err })
	if err != nil {
		s.t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return string(out)
}

// set writes a setting of the space's network.
func (s *Space) set(name, value string) {
	s.t.Helper()
	if err := s.In(func() error { return os.WriteFile("/proc/sys/net/"+name, []byte(value), 0) }); err != nil {
		s.t.Fatal(err)
	}
}

// ServePort is where the servers of a space answer.
const ServePort = "7000"

// serve answers "pong" to whoever connects to servePort of any address of the space.
func (s *Space) serve() {
	s.t.Helper()
	var l net.Listener
	if err := s.In(func() (err error) { l, err = net.Listen("tcp", ":"+ServePort); return err }); err != nil {
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
func (s *Space) serveNames(at, addr string) {
	s.t.Helper()
	var pc net.PacketConn
	if err := s.In(func() (err error) { pc, err = net.ListenPacket("udp4", at); return err }); err != nil {
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
	HostUplink4, HostUplink6 = "11.0.0.2", "2a00::2"
	Public4, Public6         = "11.1.1.1", "2a00:1::1"
	Named4                   = "11.1.2.1" // of every name
)

// ClosedAddresses are some that only rules which name them open.
var ClosedAddresses = []string{"10.9.9.9", "172.16.9.9", "192.168.9.9", "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fc00:9::9"}

// NewInternet makes a space that plays the host, and behind it one that has all of these
// addresses and answers there. The machine's own network is not touched.
func NewInternet(t *testing.T) *Space {
	t.Helper()
	host, inet := newSpace(t), newSpace(t)
	for _, s := range []*Space{host, inet} {
		s.set("ipv6/conf/default/accept_dad", "0") // addresses are usable at once
	}
	host.ip("link add up0 type veth peer name eth0 netns " + inet.path())
	host.ip("addr add " + HostUplink4 + "/24 dev up0\naddr add " + HostUplink6 + "/64 dev up0 nodad\nlink set up0 up")
	inet.ip("addr add 11.0.0.1/24 dev eth0\naddr add 2a00::1/64 dev eth0 nodad\nlink set eth0 up")
	for _, a := range append([]string{Public4, Public6, Named4}, ClosedAddresses...) {
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
	inet.serveNames("11.0.0.1:53", Named4)
	WriteFile(t, filepath.Join(host.dir, "resolv.conf"), []byte("nameserver 11.0.0.1\n"), 0o644)
	return host
}
