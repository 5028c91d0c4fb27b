package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func name(text string) dnsmessage.Name { return dnsmessage.MustNewName(text) }

// query is a packed query of one question.
func query(t *testing.T, text string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{Header: dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name(text), Type: kind, Class: dnsmessage.ClassINET}}}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// server is a name server that knows an alias and its addresses. It first answers with
// what is not the answer, as one would who guesses.
type server struct {
	addr  netip.AddrPort
	mu    sync.Mutex
	asked []dnsmessage.Question
}

func newServer(t *testing.T) *server {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{addr: l.Addr().(*net.TCPAddr).AddrPort()}
	udp, err := net.ListenPacket("udp", s.addr.String())
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); udp.Close(); serving.Wait() })
	serving.Go(func() {
		for buf := make([]byte, 4096); ; {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			good := s.answer(buf[:n])
			for _, at := range []int{1, 13} { // another id, another question
				bad := slices.Clone(good)
				bad[at] ^= 1
				udp.WriteTo(bad, from)
			}
			udp.WriteTo([]byte("garbage"), from)
			udp.WriteTo(good, from)
		}
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if q, err := readMessage(c, 4096); err == nil {
				writeMessage(c, s.answer(q))
			}
			c.Close()
		}
	})
	return s
}

func (s *server) answer(packed []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(packed) != nil || len(m.Questions) != 1 || len(m.Additionals) != 0 {
		return packed
	}
	s.mu.Lock()
	s.asked = append(s.asked, m.Questions[0])
	s.mu.Unlock()
	m.Response = true
	h := func(n string, kind dnsmessage.Type, ttl uint32) dnsmessage.ResourceHeader {
		return dnsmessage.ResourceHeader{Name: name(n), Type: kind, Class: dnsmessage.ClassINET, TTL: ttl}
	}
	if m.Questions[0].Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{
			{Header: h("one.example.", dnsmessage.TypeCNAME, 10), Body: &dnsmessage.CNAMEResource{CNAME: name("other.example.")}},
			{Header: h("other.example.", dnsmessage.TypeA, 90), Body: &dnsmessage.AResource{A: [4]byte{11, 1, 1, 1}}},
			{Header: h("other.example.", dnsmessage.TypeA, 60), Body: &dnsmessage.AResource{A: [4]byte{11, 1, 1, 2}}},
		}
	} else {
		m.Answers = []dnsmessage.Resource{{Header: h("one.example.", dnsmessage.TypeAAAA, 60), Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr("2a00::1").As16()}}}
	}
	b, _ := m.Pack()
	return b
}

// fixture is a resolver that serves on the loopback and allows names below example.
type fixture struct {
	*Resolver
	addr    string
	mu      sync.Mutex
	opened  []string
	refuses error // of Open
}

// taken returns what was opened since it was called last, and lets Open fail from now on
// if there is an error.
func (f *fixture) taken(refuses error) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	opened := f.opened
	f.opened, f.refuses = nil, refuses
	return opened
}

func serve(t *testing.T, servers ...netip.AddrPort) *fixture {
	t.Helper()
	return serveOn(t, func(p net.PacketConn, l net.Listener) (net.PacketConn, net.Listener) { return p, l }, servers...)
}

// serveOn is serve on what wrap makes of the sockets.
func serveOn(t *testing.T, wrap func(net.PacketConn, net.Listener) (net.PacketConn, net.Listener), servers ...netip.AddrPort) *fixture {
	t.Helper()
	f := &fixture{}
	f.Resolver = New(Config{
		Match: func(name string) []int {
			if strings.HasSuffix(name, ".example") {
				return []int{3}
			}
			return nil
		},
		Open: func(_ context.Context, services []int, addrs []netip.Addr, valid time.Duration) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			for _, a := range addrs {
				f.opened = append(f.opened, a.String()+" "+valid.String())
			}
			if !slices.Equal(services, []int{3}) {
				return errors.New("other services")
			}
			return f.refuses
		},
		Dial: func(ctx context.Context, network string, server int) (net.Conn, error) {
			if server >= len(servers) {
				return nil, errors.New("no more servers")
			}
			return new(net.Dialer).DialContext(ctx, network, servers[server].String())
		},
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	udp, err := net.ListenPacket("udp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	packets, listener := wrap(udp, l)
	go func() { done <- f.Serve(ctx, packets, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

// exchange sends a query and returns the answer.
func (f *fixture) exchange(t *testing.T, network string, query []byte) dnsmessage.Message {
	t.Helper()
	c, err := net.Dial(network, f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	var answer []byte
	if network == "tcp" {
		if err = writeMessage(c, query); err == nil {
			answer, err = readMessage(c, 1<<16)
		}
	} else if _, err = c.Write(query); err == nil {
		buf := make([]byte, 4096)
		var n int
		n, err = c.Read(buf)
		answer = buf[:n]
	}
	if err != nil {
		t.Fatal(err)
	}
	var m dnsmessage.Message
	if err := m.Unpack(answer); err != nil {
		t.Fatalf("answer %x: %v", answer, err)
	}
	if m.ID != 7 || !m.Response {
		t.Errorf("answer of id %d, response %v", m.ID, m.Response)
	}
	return m
}

// Addresses are open before the answer is there, by UDP and by TCP; the server that does
// not answer is passed over, and answers to other questions are not taken.
func TestAllowedNames(t *testing.T) {
	closed, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	closed.Close()
	s := newServer(t)
	f := serve(t, nobody, s.addr)
	for _, network := range []string{"udp", "tcp"} {
		if m := f.exchange(t, network, query(t, "One.EXAMPLE.", dnsmessage.TypeA)); m.RCode != 0 || len(m.Answers) != 3 {
			t.Errorf("%s: %v", network, m)
		}
		if m := f.exchange(t, network, query(t, "one.example.", dnsmessage.TypeAAAA)); m.RCode != 0 || len(m.Answers) != 1 {
			t.Errorf("%s: %v", network, m)
		}
		want := []string{"11.1.1.1 1m0s", "11.1.1.2 1m0s", "2a00::1 1m0s"}
		if opened := f.taken(nil); !slices.Equal(opened, want) {
			t.Errorf("%s: opened %v, want %v", network, opened, want)
		}
	}
	if answered, refused := f.Lookups(); answered != 4 || refused != 0 {
		t.Errorf("%d lookups answered, %d refused", answered, refused)
	}
	f.taken(errors.New("full"))
	if m := f.exchange(t, "udp", query(t, "one.example.", dnsmessage.TypeA)); m.RCode != dnsmessage.RCodeServerFailure {
		t.Errorf("addresses that could not be opened were told: %v", m)
	}
}

// No server hears of a name that is not allowed.
func TestRefusedQueries(t *testing.T) {
	s := newServer(t)
	f := serve(t, s.addr)
	other := query(t, "secret.of.mine.evil.net.", dnsmessage.TypeTXT)
	chaos := query(t, "one.example.", dnsmessage.TypeA)
	chaos[len(chaos)-1] = byte(dnsmessage.ClassCHAOS)
	update := query(t, "one.example.", dnsmessage.TypeA)
	update[2] |= 5 << 3 // opcode UPDATE
	for _, q := range [][]byte{other, chaos, update} {
		for _, network := range []string{"udp", "tcp"} {
			if m := f.exchange(t, network, q); m.RCode != dnsmessage.RCodeRefused || len(m.Answers) != 0 {
				t.Errorf("%s: %v", network, m)
			}
		}
	}
	two := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: make([]dnsmessage.Question, 2)}
	for i := range two.Questions {
		two.Questions[i] = dnsmessage.Question{Name: name("one.example."), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}
	}
	packed, err := two.Pack()
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range [][]byte{packed, {0, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, append(query(t, "one.example.", dnsmessage.TypeA)[:20:20], 0xff)} {
		if m := f.exchange(t, "udp", q); m.RCode != dnsmessage.RCodeFormatError {
			t.Errorf("query %x: %v", q, m)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if opened := f.taken(nil); len(s.asked) != 0 || len(opened) != 0 {
		t.Errorf("the server was asked %v, opened was %v", s.asked, opened)
	}
	if answered, refused := f.Lookups(); answered != 0 || refused != 6 {
		t.Errorf("%d lookups answered, %d refused", answered, refused)
	}
}

// Connections beyond the bound wait, and what is too long or no query ends one.
func TestConnectionsAreBounded(t *testing.T) {
	f := serve(t, newServer(t).addr)
	var held []net.Conn
	for range maxConnections {
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	// All are in service once each has answered.
	for _, c := range held {
		if err := writeMessage(c, query(t, "one.example.", dnsmessage.TypeA)); err != nil {
			t.Fatal(err)
		}
		if _, err := readMessage(c, 1<<16); err != nil {
			t.Fatal(err)
		}
	}
	late, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()
	if err := writeMessage(late, query(t, "one.example.", dnsmessage.TypeA)); err != nil {
		t.Fatal(err)
	}
	late.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := readMessage(late, 1<<16); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection beyond the bound: %v", err)
	}
	if _, err := held[0].Write(binary.BigEndian.AppendUint16(nil, maxQuery+1)); err != nil {
		t.Fatal(err)
	}
	held[0].SetReadDeadline(time.Now().Add(idleTime))
	if _, err := held[0].Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("after a message that is too long: %v", err)
	}
	late.SetReadDeadline(time.Now().Add(idleTime))
	if _, err := readMessage(late, 1<<16); err != nil {
		t.Errorf("the connection that waited: %v", err)
	}
	for _, c := range held {
		c.Close()
	}
}

func TestHostServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	for text, want := range map[string]string{
		"": "127.0.0.1:53",
		"search x\n# nameserver 9.9.9.9\nnameserver bad\nnameserver 10.0.0.2 # ours\n":        "10.0.0.2:53",
		"# " + strings.Repeat("x", 1<<17) + "\nnameserver 10.0.0.3":                           "10.0.0.3:53",
		"nameserver fe80::1%eth0\nnameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3": "[fe80::1%eth0]:53 1.1.1.1:53 2.2.2.2:53",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		servers, err := hostServers(file)
		var got []string
		for _, s := range servers {
			got = append(got, s.String())
		}
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("%.100q: %v, %v; want %s", text, got, err, want)
		}
	}
	if _, err := hostServers(file + ".missing"); err == nil {
		t.Error("no error for a file that is not there")
	}
}

// FuzzQuery: nothing that a sandbox sends makes the resolver fail or speak of another name.
func FuzzQuery(f *testing.F) {
	f.Add([]byte("\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03one\x07example\x00\x00\x01\x00\x01"))
	r := New(Config{
		Match: func(string) []int { return nil },
		Open:  func(context.Context, []int, []netip.Addr, time.Duration) error { return nil },
		Dial:  func(context.Context, string, int) (net.Conn, error) { return nil, errors.New("no servers") },
	})
	f.Fuzz(func(t *testing.T, query []byte) {
		answer := r.answer(context.Background(), "udp", query)
		if answer == nil {
			return
		}
		var p dnsmessage.Parser
		h, err := p.Start(answer)
		if err != nil || !h.Response || h.RCode == 0 || h.ID != binary.BigEndian.Uint16(query) {
			t.Errorf("%x: answer %x (%+v, %v)", query, answer, h, err)
		}
	})
}
