package privsep

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
	"github.com/sandboxd/sandboxd/isolation/wire"
	"github.com/sandboxd/sandboxd/supervisor"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ supervisor.Box = (*Box)(nil)

// fakeHosted is a sandbox without a kernel. What is asked of it is in calls.
type fakeHosted struct {
	supervisor.Box // panics for what only the worker does
	host           *fakeHost
	listener       net.Listener
	files          []cgroup.File
	init           *os.File
	udp            net.PacketConn
	tcp            net.Listener
	late           func() // ends a step of its making
}

// fakeHost makes fakeHosted and notes what is asked of them.
type fakeHost struct {
	t    *testing.T
	gate chan struct{} // if set, making one waits for it or its context
	hung chan struct{} // if set, making one waits for it, whatever its context says

	egress, traced bool

	mu       sync.Mutex
	calls    []string
	live     int
	closeErr error
	pipeErr  error // of GivePipes
}

func (h *fakeHost) note(call string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, call)
}

func (h *fakeHost) count(call string) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, c := range h.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (h *fakeHost) create(ctx context.Context, revision uint64) (Hosted, error) {
	if revision != 1 {
		return nil, fmt.Errorf("revision %d: %w", revision, message.ErrUnknownRevision)
	}
	h.mu.Lock()
	gate := h.gate
	h.mu.Unlock()
	if h.hung != nil {
		<-h.hung
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &fakeHosted{host: h, listener: l}
	if h.egress {
		if f.udp, err = net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
			f.tcp, err = net.Listen("tcp", "127.0.0.1:0")
		}
		if err != nil {
			return nil, err
		}
	}
	create, end := tracing.Step(ctx, "create")
	_, f.late = tracing.Step(create, "late")
	end()
	for role, text := range map[cgroup.Role]string{cgroup.Freeze: "0", cgroup.Events: "frozen 1\n", cgroup.Memory: "4096\n"} {
		f.add(role, text)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.live++
	return f, nil
}

func (f *fakeHosted) add(role cgroup.Role, text string) {
	file, err := os.CreateTemp(f.host.t.TempDir(), "")
	if err == nil {
		_, err = file.WriteString(text)
	}
	if err != nil {
		f.host.t.Error(err)
	}
	f.files = append(f.files, cgroup.File{Role: role, File: file})
}

func (f *fakeHosted) ID() string                 { return "fn-1" }
func (f *fakeHosted) CgroupPath() string         { return "/sandboxd/1/fn-1" }
func (f *fakeHosted) PIDs() map[string]int       { return map[string]int{isolation.RuntimeDomain: 42} }
func (f *fakeHosted) Files() []cgroup.File       { return f.files }
func (f *fakeHosted) Listener() net.Listener     { return f.listener }
func (f *fakeHosted) Kill(context.Context) error { f.host.note("Kill"); return nil }

func (f *fakeHosted) Start(ctx context.Context, domain string) (*wire.Conn, error) {
	f.host.note("Start " + domain)
	_, end := tracing.Step(ctx, "start")
	defer end()
	f.late()
	local, remote, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	f.init = remote
	f.add(cgroup.OOMEvents, "oom_kill 3\n")
	return local, nil
}

func (f *fakeHosted) SetThrottled(_ context.Context, on bool) error {
	f.host.note(map[bool]string{true: "throttle", false: "unthrottle"}[on])
	return nil
}

func (f *fakeHosted) GivePipes(_ context.Context, pipes ...*os.File) error {
	f.host.note("GivePipes")
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if f.host.pipeErr != nil {
		return f.host.pipeErr
	}
	return nil
}

func (f *fakeHosted) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func (f *fakeHosted) Lookups() (net.PacketConn, net.Listener) { return f.udp, f.tcp }

func (f *fakeHosted) Allow(_ context.Context, services []int, addrs []netip.Addr, valid time.Duration) error {
	f.host.note(fmt.Sprint("Allow ", services, " ", addrs[0], " ", valid))
	return nil
}

func (f *fakeHosted) Traffic() (t isolation.Traffic, err error) {
	t.AllowedBytes = 7
	return t, nil
}

func (f *fakeHosted) Domain(_ context.Context, conn net.Conn) (string, error) {
	return "made by " + conn.RemoteAddr().String(), nil
}

func (f *fakeHosted) Close(context.Context) error {
	f.host.note("Close")
	f.host.mu.Lock()
	defer f.host.mu.Unlock()
	if err := f.host.closeErr; err != nil {
		return err
	}
	for _, file := range f.files {
		file.Close()
	}
	if f.init != nil {
		f.init.Close()
	}
	f.listener.Close()
	f.host.live--
	return nil
}

// serve starts a server for h and returns the other end of its line. At the end of the
// test nothing may be left; want is in the error that the server then ends with.
func serve(t *testing.T, h *fakeHost, sandboxes int, want string) *os.File {
	t.Helper()
	h.t = t
	place, err := net.Listen("tcp", "127.0.0.1:0") // of a name server
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { place.Close() })
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, Config{
		Create: h.create,
		Credentials: func(_ context.Context, revision uint64) ([]string, error) {
			return []string{fmt.Sprintf("of revision %d", revision)}, nil
		},
		Renew: func(context.Context) ([]string, error) { return []string{"a", "b", "c"}, nil },
		Upstream: func(ctx context.Context, network string, server int) (net.Conn, error) {
			h.note(fmt.Sprintf("server %d by %s", server, network))
			return new(net.Dialer).DialContext(ctx, network, place.Addr().String())
		},
		Traced: h.traced, Sandboxes: sandboxes, UID: uint32(os.Getuid()),
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	t.Cleanup(func() {
		line.Close()
		select {
		case err := <-served:
			if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
				t.Errorf("Serve: %v, want %q", err, want)
			}
		case <-time.After(10 * time.Second):
			t.Error("the server does not end")
		}
		if h.live != 0 || s.Count() != 0 {
			t.Errorf("%d sandboxes are left, %d for the server", h.live, s.Count())
		}
	})
	return line
}

func client(t *testing.T, line *os.File, sandboxes int) *Client {
	t.Helper()
	c, err := NewClient(line, sandboxes)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close) // before that of serve
	return c
}

func TestBox(t *testing.T) {
	h := &fakeHost{}
	c := client(t, serve(t, h, 1, ""), 1)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if b.ID() != "fn-1" || b.CgroupPath() != "/sandboxd/1/fn-1" {
		t.Errorf("%q in %q", b.ID(), b.CgroupPath())
	}
	if _, err := c.Create(t.Context(), 1); !errors.Is(err, message.ErrTooMany) {
		t.Errorf("a second sandbox of one: %v", err)
	}
	conn, err := b.Start(t.Context(), isolation.RuntimeDomain)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Send(wire.KillAll{Seq: 1}); err != nil {
		t.Errorf("to the init handler: %v", err)
	}
	if got := b.PIDs(); got[isolation.RuntimeDomain] != 42 {
		t.Errorf("init handlers %v", got)
	}
	if _, err := b.Start(t.Context(), "other"); err == nil {
		t.Error("a domain that there is not was started")
	}
	if u, err := b.Usage(); err != nil || u.MemoryBytes != 4096 || u.OOMKills != 3 {
		t.Errorf("usage %+v, %v", u, err)
	}
	if err := errors.Join(b.Freeze(t.Context()), b.Thaw(t.Context()), b.SetThrottled(t.Context(), true), b.SetThrottled(t.Context(), false), b.Kill(t.Context())); err != nil {
		t.Error(err)
	}
	for _, call := range []string{"throttle", "unthrottle", "Kill", "Start runtime"} {
		if n := h.count(call); n != 1 {
			t.Errorf("%s: %d times", call, n)
		}
	}
	if list, err := c.Renew(t.Context()); err != nil || !slices.Equal(list, []string{"a", "b", "c"}) {
		t.Errorf("%q, %v", list, err)
	}
	if list, err := b.Credentials(t.Context()); err != nil || !slices.Equal(list, []string{"of revision 1"}) {
		t.Errorf("%q, %v", list, err)
	}

	// The listener and a connection that the supervisor dialled are one socket's two ends.
	inside, err := b.Dial(t.Context(), "tcp", b.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	outside, err := b.Listener().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if inside.LocalAddr().String() != outside.RemoteAddr().String() {
		t.Errorf("%v is not %v", inside.LocalAddr(), outside.RemoteAddr())
	}
	for _, addr := range []string{"127.0.0.2:80", "10.0.0.1:80", "127.0.0.1:0", "127.0.0.1:x", "localhost:80", ""} {
		if _, err := b.Dial(t.Context(), "tcp", addr); err == nil {
			t.Errorf("%q was dialled", addr)
		}
	}

	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Kill(t.Context()); !errors.Is(err, message.ErrUnknownSandbox) {
		t.Errorf("after Close: %v", err)
	}
	again, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatalf("its place is not free: %v", err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Only pipes that the worker made can be given away.
func TestGivePipes(t *testing.T) {
	h := &fakeHost{}
	c := client(t, serve(t, h, 1, ""), 1)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := b.GivePipes(t.Context(), r, w); err != nil {
		t.Error(err)
	}
	named := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(named, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{named, "/etc/passwd", "/dev/null"} {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := b.GivePipes(t.Context(), r, f); err == nil {
			t.Errorf("%s was given away", name)
		}
	}
	if n := h.count("GivePipes"); n != 1 {
		t.Errorf("%d were given, want 1", n)
	}
}

// What is not waited for any more ends in the supervisor's process too.
func TestCancel(t *testing.T) {
	h := &fakeHost{gate: make(chan struct{})}
	c := client(t, serve(t, h, 1, ""), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Create(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	close(h.gate)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatalf("the place is not free: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// Nobody waits longer for a supervisor that hangs than their context allows. What it makes in
// the end is not lost, and its place is not free before.
func TestLateAnswer(t *testing.T) {
	h := &fakeHost{hung: make(chan struct{})}
	c := client(t, serve(t, h, 1, ""), 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := c.Create(ctx, 1); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("%v", err)
	}
	if _, err := c.Create(t.Context(), 1); !errors.Is(err, message.ErrTooMany) {
		t.Errorf("beside one that is being made: %v", err)
	}
	close(h.hung)
	for {
		b, err := c.Create(t.Context(), 1)
		if errors.Is(err, message.ErrTooMany) {
			time.Sleep(time.Millisecond) // the late one is being closed
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if n := h.count("Close"); n != 1 {
			t.Errorf("the late one was closed %d times", n)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		return
	}
}

// S-09: what could not be removed takes nobody's place, until there is as much of it as there
// may be sandboxes: however much hangs, there are only so many.
func TestRemainsCount(t *testing.T) {
	h := &fakeHost{t: t}
	var remains atomic.Int32
	remains.Store(3)
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, Config{Create: h.create, Sandboxes: 2, Remains: func() int { return int(remains.Load()) }})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	c, err := NewClient(line, 2)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), 1); err != nil {
		t.Error(err)
	}
	if _, err := c.Create(t.Context(), 1); !errors.Is(err, message.ErrTooMany) {
		t.Errorf("%v; want that there are too many", err)
	}
	remains.Store(2)
	if _, err := c.Create(t.Context(), 1); err != nil {
		t.Error(err)
	}
	c.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A sandbox that cannot be removed takes nobody's place. What is left of it is not the
// worker's any more.
func TestQuarantine(t *testing.T) {
	h := &fakeHost{closeErr: errors.New("stuck")}
	c := client(t, serve(t, h, 1, ""), 1)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(t.Context()); err == nil || !strings.Contains(err.Error(), "stuck") {
		t.Errorf("%v", err)
	}
	if err := b.Close(t.Context()); !errors.Is(err, message.ErrUnknownSandbox) {
		t.Errorf("a second Close: %v", err)
	}
	h.mu.Lock()
	h.closeErr = nil
	h.mu.Unlock()
	next, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatalf("no other in its place: %v", err)
	}
	if err := next.Close(t.Context()); err != nil {
		t.Error(err)
	}
	h.mu.Lock()
	h.live-- // the one in quarantine
	h.mu.Unlock()
}

// Errors keep their kind on the way to the worker.
func TestErrorKinds(t *testing.T) {
	h := &fakeHost{}
	c := client(t, serve(t, h, 2, ""), 2)
	if _, err := c.Create(t.Context(), 9); !errors.Is(err, message.ErrUnknownRevision) || !strings.Contains(err.Error(), "revision 9") {
		t.Errorf("a revision that there is not: %v", err)
	}
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	for want, cause := range map[error]error{
		errors.ErrUnsupported: fmt.Errorf("no freezer: %w", errors.ErrUnsupported),
		unix.EBUSY:            &os.PathError{Op: "rmdir", Path: "/x", Err: unix.EBUSY},
		os.ErrNotExist:        &os.PathError{Op: "open", Path: "/x", Err: unix.ENOENT},
	} {
		h.mu.Lock()
		h.pipeErr = cause
		h.mu.Unlock()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := b.GivePipes(t.Context(), r, w); !errors.Is(err, want) || err.Error() != cause.Error() {
			t.Errorf("%v became %v", cause, err)
		}
		r.Close()
		w.Close()
	}
	if _, err := c.Create(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Create(t.Context(), 1); !errors.Is(err, message.ErrTooMany) {
		t.Errorf("a third sandbox of two: %v", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Kill(t.Context()); !errors.Is(err, message.ErrUnknownSandbox) {
		t.Errorf("after Close: %v", err)
	}
}

// What network egress needs: sockets for lookups, sockets to name servers, addresses.
func TestEgress(t *testing.T) {
	h := &fakeHost{egress: true}
	c := client(t, serve(t, h, 1, ""), 1)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	udp, tcp := b.Lookups()
	if udp == nil || tcp == nil || udp.LocalAddr().Network() != "udp" || tcp.Addr().Network() != "tcp" {
		t.Errorf("sockets for lookups: %v, %v", udp, tcp)
	}
	addrs := []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
	if err := b.Allow(t.Context(), []int{0, 63}, addrs, 90*time.Second); err != nil {
		t.Error(err)
	}
	for _, call := range []string{"Allow [0 63] 192.0.2.1 1m30s", "Allow [0 63] 2001:db8::1 1m30s"} {
		if h.count(call) != 1 {
			t.Errorf("%q was not asked for: %q", call, h.calls)
		}
	}
	if err := b.Allow(t.Context(), []int{64}, addrs, time.Second); err == nil {
		t.Error("a service that cannot be was allowed")
	}
	for _, network := range []string{"udp", "tcp"} {
		conn, err := c.Upstream(t.Context(), network, 2)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().Network(); got != network || h.count("server 2 by "+network) != 1 {
			t.Errorf("a socket of %s; asked for %q", got, h.calls)
		}
		conn.Close()
	}
}

// The domain of a connection is asked for with the connection itself.
func TestDomain(t *testing.T) {
	h := &fakeHost{}
	c := client(t, serve(t, h, 1, ""), 1)
	b, err := c.Create(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	peer, err := net.Dial("tcp", b.Listener().Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := b.Listener().Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if domain, err := b.Domain(t.Context(), conn); err != nil || domain != "made by "+peer.LocalAddr().String() {
		t.Errorf("%q, %v", domain, err)
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 1 { // it still is the worker's
		t.Error(err)
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := b.call(t.Context(), opDomain, 0, file); err == nil {
		t.Error("a file was taken for a connection")
	}
}

// The steps of the supervisor become parts of the worker's trace, each below its own.
func TestSteps(t *testing.T) {
	h := &fakeHost{traced: true}
	c := client(t, serve(t, h, 1, ""), 1)
	var seen tracing.Recorder
	ctx := seen.Context(t.Context())
	b, err := c.Create(ctx, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(ctx)
	conn, err := b.Start(ctx, isolation.RuntimeDomain)
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	names := map[int]string{}
	var got []string
	for _, m := range seen.Take() {
		names[m.ID] = m.Name
		got = append(got, names[m.Parent]+"/"+m.Name)
		if m.End.Before(m.Begin) {
			t.Errorf("%s ends before it begins", m.Name)
		}
	}
	if want := []string{"/create", "create/late", "/start"}; !slices.Equal(got, want) {
		t.Errorf("steps %q, want %q", got, want)
	}
}

// When the worker is gone, its sandboxes are ended.
func TestWorkerGone(t *testing.T) {
	h := &fakeHost{}
	line := serve(t, h, 3, "")
	c, err := NewClient(line, 3)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Create(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if _, err := c.Create(t.Context(), 1); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
}

// S-01: an answer that cannot be sent, here because it is too long for the socket's
// buffer, ends the server, which says why.
func TestUnsent(t *testing.T) {
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(int(ours.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 1); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, Config{Renew: func(context.Context) ([]string, error) {
		return []string{strings.Repeat("x", maxReply/2)}, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(func() {}) }()
	if _, err := client(t, line, 1).Renew(t.Context()); !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
	if err := <-served; !errors.Is(err, unix.EMSGSIZE) || !strings.Contains(err.Error(), "send an answer to the worker") {
		t.Errorf("Serve: %v", err)
	}
}

// The supervisor's end is closed: nobody waits for ever.
func TestSupervisorGone(t *testing.T) {
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(line, 1)
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan error)
	go func() { _, err := c.Create(context.Background(), 1); answered <- err }()
	buf := make([]byte, requestSize)
	if _, err := ours.Read(buf); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := <-answered; !errors.Is(err, errGone) {
		t.Errorf("%v", err)
	}
	<-c.Gone()
}

func TestStop(t *testing.T) {
	ours, line, err := Pair()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(ours, Config{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewClient(line, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Stop(); err != nil {
			t.Fatal(err)
		}
		<-c.Stops()
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	<-c.Gone()
}

// A worker that has been taken over: what breaks the protocol ends the server, with all
// sandboxes, and nothing else happens (SEC-17, SEC-60).
func TestHostileWorker(t *testing.T) {
	passwd, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer passwd.Close()
	many := slices.Repeat([]*os.File{passwd}, maxFiles+1)
	for _, c := range []struct {
		name string
		do   func(send func([]byte, ...*os.File))
		want string
	}{
		{"garbage", func(send func([]byte, ...*os.File)) { send([]byte("GET / HTTP/1.1\r\nHost: localhost:9000\r\n\r\n")) }, "operation"},
		{"short", func(send func([]byte, ...*os.File)) { send([]byte{1}) }, "1 bytes"},
		{"long", func(send func([]byte, ...*os.File)) { send(make([]byte, 100_000)) }, "too large"},
		{"files that nobody asked for", func(send func([]byte, ...*os.File)) {
			send(request{id: 2, op: opKill, sandbox: 1, arg: 0}.encode(), passwd)
		}, "1 files"},
		{"too many files", func(send func([]byte, ...*os.File)) {
			send(request{id: 2, op: opGivePipes, sandbox: 1, arg: 0}.encode(), many...)
		}, "too large"},
		{"egress of a sandbox without", func(send func([]byte, ...*os.File)) {
			send(request{id: 2, op: opKill, sandbox: 1}.encode())
			send(request{id: 3, op: opUpstream}.encode())
			send([]byte{1})
		}, "1 bytes"},
		{"the id 0", func(send func([]byte, ...*os.File)) { send(request{id: 0, op: opKill, sandbox: 1, arg: 0}.encode()) }, "id 0"},
		{"an id twice", func(send func([]byte, ...*os.File)) {
			send(request{id: 5, op: opCreate, value: 1}.encode())
			send(request{id: 5, op: opCreate, value: 1}.encode())
		}, "id 5"},
		{"a flood", func(send func([]byte, ...*os.File)) {
			for i := range uint32(4 * inFlight(3)) { // some of the answers fit into the socket
				send(request{id: i + 2, op: opCreate, value: 1}.encode())
			}
		}, "requests at once"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := &fakeHost{}
			line := serve(t, h, 3, c.want)
			conn, err := seqpacket.NewConn(line, maxReply, maxFiles)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			send := func(b []byte, files ...*os.File) {
				if err := conn.Send(b, files); err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
					t.Fatal(err)
				}
			}
			send(request{id: 1, op: opCreate, value: 1}.encode())
			if _, files, err := conn.Receive(); err != nil {
				t.Fatal(err)
			} else {
				closeAll(files)
			}
			h.mu.Lock()
			h.gate = make(chan struct{}) // no further one comes into being
			h.mu.Unlock()
			c.do(send)
			hangUp(t, conn)
		})
	}
}

// hangUp waits until the other end is closed. It reads nothing: a worker that does not
// read is what some tests are about, and one that closes first takes back what it wrote.
func hangUp(t *testing.T, c *seqpacket.Conn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			fds := []unix.PollFd{{Fd: int32(fd)}}
			for n := 0; n == 0 && err == nil; {
				if n, err = unix.Poll(fds, 10_000); err == unix.EINTR {
					err = nil
				} else if n == 0 {
					t.Error("the server does not hang up")
					return
				}
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
}
