package supervisor

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeBox is a Box without a kernel: a PID 1 is a goroutine that speaks wire.
type fakeBox struct {
	t   *testing.T
	ice sync.RWMutex // held for writing while frozen: nothing inside runs

	mu        sync.Mutex
	inits     map[string]*fakeInit
	uid       int      // host id of the sandbox user
	calls     []string // Freeze, Thaw, SetThrottled…, Kill, Close in order
	frozen    bool
	oomKills  uint64
	startErr  error
	freezeErr error
	killErr   error
	closeErr  error
	startGate chan struct{} // if set, Start waits for it or its context
}

func (b *fakeBox) called(call string) {
	b.calls = append(b.calls, call)
}

func (b *fakeBox) count(call string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, c := range b.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (b *fakeBox) init(domain string) *fakeInit {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.inits[domain]
}

func (b *fakeBox) Start(ctx context.Context, domain string) (*wire.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called("Start " + domain)
	if b.startErr != nil {
		return nil, b.startErr
	}
	if gate := b.startGate; gate != nil {
		b.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		b.mu.Lock()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	local, remote, err := wire.Pair()
	if err != nil {
		return nil, err
	}
	conn, err := wire.NewConn(remote)
	if err != nil {
		return nil, err
	}
	i := &fakeInit{box: b, conn: conn, live: map[uint32]bool{}, received: make(chan wire.Message, 1000), ended: make(chan struct{})}
	b.inits[domain] = i
	go i.run()
	return local, nil
}

func (b *fakeBox) GivePipes(_ context.Context, pipes ...*os.File) error {
	for _, f := range pipes {
		if err := f.Chown(b.uid, os.Getgid()); err != nil {
			return err
		}
	}
	return nil
}

func (b *fakeBox) Freeze(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called("Freeze")
	if !b.frozen {
		b.frozen = true
		b.ice.Lock()
	}
	return b.freezeErr
}

func (b *fakeBox) Thaw(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called("Thaw")
	b.melt()
	return nil
}

func (b *fakeBox) melt() {
	if b.frozen {
		b.frozen = false
		b.ice.Unlock()
	}
}

func (b *fakeBox) SetThrottled(_ context.Context, on bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called(map[bool]string{true: "throttle", false: "unthrottle"}[on])
	return nil
}

func (b *fakeBox) Kill(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called("Kill")
	if b.killErr != nil {
		return b.killErr
	}
	b.melt()
	for _, i := range b.inits {
		i.conn.Close()
	}
	return nil
}

func (b *fakeBox) MemoryPeak() (uint64, error) { return 42, nil }
func (b *fakeBox) MemoryUsed() (uint64, error) { return 41, nil }

func (b *fakeBox) Usage() (isolation.Usage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return isolation.Usage{MemoryPeakBytes: 42, OOMKills: b.oomKills}, nil
}

func (b *fakeBox) setOOMKills(n uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.oomKills = n
}

func (b *fakeBox) Listener() net.Listener { return nil }

func (b *fakeBox) Domain(_ context.Context, conn net.Conn) (string, error) {
	if conn == nil {
		return "", syscall.EBADF
	}
	return extension, nil
}

func (b *fakeBox) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, syscall.ECONNREFUSED
}

func (b *fakeBox) Close(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.called("Close")
	b.melt()
	for _, i := range b.inits {
		i.conn.Close()
		<-i.ended
	}
	return b.closeErr
}

// fakeInit is a PID 1. What a process does follows from its path: /sleep lives,
// /true and /false end at once, /missing, /denied and /baddir do not start, and
// /slow is not answered until the test does, and the end of /unreported is not said.
type fakeInit struct {
	box      *fakeBox
	conn     *wire.Conn
	live     map[uint32]bool   // of the goroutine
	received chan wire.Message // every request, after it was handled
	ended    chan struct{}
}

func (i *fakeInit) run() {
	defer close(i.ended)
	defer i.conn.Close()
	for {
		m, files, err := i.conn.Recv()
		if err != nil {
			return
		}
		for _, f := range files {
			f.Close()
		}
		i.box.ice.RLock()
		i.handle(m)
		i.box.ice.RUnlock()
		i.received <- m
	}
}

func (i *fakeInit) handle(m wire.Message) {
	switch m := m.(type) {
	case wire.Exec:
		i.exec(m)
	case wire.Signal:
		if i.live[m.ID] {
			delete(i.live, m.ID)
			i.send(wire.Exited{ID: m.ID, Status: uint32(m.Signal)})
		}
	case wire.KillAll:
		for id := range i.live {
			i.send(wire.Exited{ID: id, Status: uint32(syscall.SIGKILL)})
		}
		clear(i.live)
		i.send(wire.Killed{Seq: m.Seq})
	}
}

func (i *fakeInit) exec(m wire.Exec) {
	failed := func(errno syscall.Errno, stage wire.Stage) {
		i.send(wire.Started{ID: m.ID, Errno: int32(errno), Stage: stage})
	}
	switch m.Path {
	case "/missing":
		failed(syscall.ENOENT, wire.StageExec)
	case "/denied":
		failed(syscall.EACCES, wire.StageExec)
	case "/baddir":
		failed(syscall.ENOENT, wire.StageDir)
	case "/slow":
		i.live[m.ID] = true
	case "/unreported":
		i.send(wire.Started{ID: m.ID, PID: int32(m.ID)})
	case "/true", "/false":
		i.send(wire.Started{ID: m.ID, PID: int32(m.ID)})
		i.send(wire.Exited{ID: m.ID, Status: map[string]uint32{"/true": 0, "/false": 1 << 8}[m.Path]})
	default:
		i.live[m.ID] = true
		i.send(wire.Started{ID: m.ID, PID: int32(m.ID)})
	}
}

// send ignores errors: the supervisor may hang up at any time.
func (i *fakeInit) send(m wire.Message) { _ = i.conn.Send(m) }

// wait returns the first request from now on that want accepts.
func (i *fakeInit) wait(t *testing.T, want func(wire.Message) bool) wire.Message {
	t.Helper()
	late := time.After(10 * time.Second)
	for {
		select {
		case m := <-i.received:
			if want(m) {
				return m
			}
		case <-late:
			t.Fatal("the request did not come")
		}
	}
}

func isExec(m wire.Message) bool   { _, ok := m.(wire.Exec); return ok }
func isSignal(m wire.Message) bool { _, ok := m.(wire.Signal); return ok }

// fixture is a sandbox on a fake box with a file that serves as stdout and stderr.
type fixture struct {
	*Sandbox
	t    *testing.T
	box  *fakeBox
	null *os.File
}

// newFixture returns a sandbox whose domains are configured and not started.
func newFixture(t *testing.T) *fixture {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	box := &fakeBox{t: t, uid: os.Getuid(), inits: map[string]*fakeInit{}}
	f := &fixture{Sandbox: New("fn-1", box), t: t, box: box, null: null}
	t.Cleanup(func() {
		box.mu.Lock()
		box.closeErr, box.killErr = nil, nil
		box.mu.Unlock()
		if err := f.Close(context.Background()); err != nil {
			t.Errorf("close: %v", err)
		}
		null.Close()
	})
	for _, domain := range domainNames {
		if err := f.Configure(domain, DomainConfig{}); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// started returns a sandbox with its runtime domain started.
func started(t *testing.T) *fixture {
	t.Helper()
	f := newFixture(t)
	f.must(f.Start(f.ctx(), isolation.RuntimeDomain))
	return f
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

// ctx returns a context that ends a test that hangs.
func (f *fixture) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	f.t.Cleanup(cancel)
	return ctx
}

func (f *fixture) request(name, path string) ExecRequest {
	return ExecRequest{Domain: isolation.RuntimeDomain, Name: name, Path: path, Stdout: f.null, Stderr: f.null}
}

func (f *fixture) exec(name, path string) *Process {
	f.t.Helper()
	p, err := f.Exec(f.ctx(), f.request(name, path))
	f.must(err)
	return p
}

func (f *fixture) wantExit(p *Process, want Exit) {
	f.t.Helper()
	wait(f.t, p.Done())
	if got := p.Exit(); got != want {
		f.t.Errorf("%s: exit %+v, want %+v", p.Name(), got, want)
	}
}

func (f *fixture) wantLost(lost bool) {
	f.t.Helper()
	if lost {
		wait(f.t, f.Lost())
	} else if isClosed(f.Lost()) {
		f.t.Error("the sandbox is lost")
	}
}

func wait(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("waited in vain")
	}
}

func wantKind(t *testing.T, err error, kind ErrorKind) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != kind || !errors.Is(err, kind) {
		t.Errorf("%v, want an error of kind %v", err, kind)
	}
}

// cancelled returns a context that has ended.
func cancelled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func (b *fakeBox) wantCalls(want ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.calls, want) {
		b.t.Errorf("calls %q, want %q", b.calls, want)
	}
}
