//go:build integration

package runc

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/testtime"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// connect is a Perl program that connects to the Runtime API from the local port
// given, 0 for any, writes, and then does what ending says.
func connect(port int, ending string) string {
	return fmt.Sprintf(`perl -MIO::Socket::INET -e '
my $s = IO::Socket::INET->new(PeerAddr => "%s", LocalAddr => "127.0.0.1", LocalPort => %d, ReuseAddr => 1) or die "connect: $!";
syswrite $s, "x";
%s
' 2>&1`, isolation.APIAddr, port, ending)
}

const (
	stay  = `sysread $s, my $b, 1; print "answered";`
	reset = `setsockopt $s, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0); close $s; print "reset";`
	leave = `close $s; print "left";`
)

// accepted is the next connection of the sandbox's listener.
func accepted(t *testing.T, s *Sandbox) net.Conn {
	t.Helper()
	if err := s.Listener().(*net.TCPListener).SetDeadline(time.Now().Add(testtime.Limit(20 * time.Second))); err != nil {
		t.Fatal(err)
	}
	c, err := s.Listener().Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func wantDomain(t *testing.T, s *Sandbox, c net.Conn, want string) {
	t.Helper()
	if got, err := s.Domain(t.Context(), c); err != nil || got != want {
		t.Errorf("domain %q, %v; want %s", got, err, want)
	}
}

func wantNoDomain(t *testing.T, s *Sandbox, c net.Conn, why string) {
	t.Helper()
	if got, err := s.Domain(t.Context(), c); err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("domain %q, error %v; want an error with %q", got, err, why)
	}
}

func TestDomainOfAConnection(t *testing.T) {
	if err := engine.place.host.TellsDomains(); err != nil {
		t.Fatal(err)
	}
	s := create(t, hostSpec(t, isolation.RuntimeDomain, isolation.ExtensionDomain))
	pid1 := map[string]*wire.Conn{isolation.RuntimeDomain: start(t, s, isolation.RuntimeDomain), isolation.ExtensionDomain: start(t, s, isolation.ExtensionDomain)}
	for _, name := range []string{isolation.ExtensionDomain, isolation.RuntimeDomain, isolation.ExtensionDomain} {
		out := begin(t, s, pid1[name], 1, connect(0, stay))
		c := accepted(t, s)
		wantDomain(t, s, c, name)
		c.Close()
		finish(t, pid1[name], out)
	}

	t.Run("of the daemon", func(t *testing.T) {
		mine, err := s.Dial(t.Context(), "tcp", isolation.APIAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer mine.Close()
		wantNoDomain(t, s, accepted(t, s), "does not belong to a domain")
	})
	t.Run("closed by its maker", func(t *testing.T) {
		out := begin(t, s, pid1[isolation.RuntimeDomain], 1, connect(0, leave))
		finish(t, pid1[isolation.RuntimeDomain], out)
		// What the kernel keeps of the other end is a socket for some time, or less at once.
		if got, err := s.Domain(t.Context(), accepted(t, s)); got != isolation.RuntimeDomain && (err == nil || !strings.Contains(err.Error(), "other end is closed")) {
			t.Errorf("domain %q, %v; want runtime, or that it is closed", got, err)
		}
	})
	t.Run("its port taken over", func(t *testing.T) {
		// The extension's request is in our hands when the runtime has its addresses.
		out := begin(t, s, pid1[isolation.ExtensionDomain], 1, connect(40000, reset))
		finish(t, pid1[isolation.ExtensionDomain], out)
		out = begin(t, s, pid1[isolation.RuntimeDomain], 1, connect(40000, stay))
		forged := accepted(t, s)
		runtime := accepted(t, s)
		if forged.RemoteAddr().String() != runtime.RemoteAddr().String() {
			t.Fatalf("connections from %v and %v; want the same address", forged.RemoteAddr(), runtime.RemoteAddr())
		}
		wantNoDomain(t, s, forged, "reset")
		wantDomain(t, s, runtime, isolation.RuntimeDomain)
		runtime.Close()
		finish(t, pid1[isolation.RuntimeDomain], out)
	})
}

// finish reads what a process of begin prints to its end, and its exit.
func finish(t *testing.T, conn *wire.Conn, out io.Reader) {
	t.Helper()
	text, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := conn.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if exit, ok := m.(wire.Exited); !ok || exit.Status != 0 {
		t.Fatalf("the process ended as %#v: %s", m, text)
	}
}

func BenchmarkDomain(b *testing.B) {
	s, err := engine.Create(b.Context(), hostSpec(b, isolation.RuntimeDomain))
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close(b.Context())
	mine, err := s.Dial(b.Context(), "tcp", isolation.APIAddr)
	if err != nil {
		b.Fatal(err)
	}
	defer mine.Close()
	c, err := s.Listener().Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	for b.Loop() {
		if _, err := s.net.originOf(c); err != nil {
			b.Fatal(err)
		}
	}
}
