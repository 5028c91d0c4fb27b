package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/wire"
)

// errLost is the cause if a request fails because an init handler has exited.
var errLost = errors.New("the init handler of a domain has exited")

var errClosed = errors.New("the sandbox is closed")

// DomainConfig configures a domain (SUP-02).
type DomainConfig struct {
	UID, GID uint32 // ids of its processes inside the domain; zero means 993 and 990 (ENV-28)
}

// Sandbox runs processes in the domains of one sandbox. All methods are safe for concurrent
// use. All errors are of type *Error. The owner must Close it. Use New.
type Sandbox struct {
	id  string
	box Box

	life      context.Context // ends when Close is called, and cancels calls of the box
	endLife   context.CancelFunc
	receivers sync.WaitGroup
	freezer   token      // serializes freezing, thawing and throttling
	closer    sync.Mutex // serializes Close

	mu        sync.Mutex
	domains   map[string]*domain // by name; the map itself never changes
	frozen    bool               // also during Freeze, and after one that failed
	throttled bool
	oom       bool // the kernel has killed a process for lack of memory
	closing   bool
	closed    bool
	feed      feed
	lost      chan struct{}
	cause     error // why lost is closed
}

// domainNames lists the domains that a sandbox can have, in lock order (SUP-01).
var domainNames = []string{isolation.RuntimeDomain, isolation.ExtensionDomain}

// New returns a Sandbox for box, which it owns from now on. id is for errors. The domains
// are neither configured nor started.
func New(id string, box Box) *Sandbox {
	s := &Sandbox{
		id:      id,
		box:     box,
		freezer: newToken(),
		domains: make(map[string]*domain),
		feed:    newFeed(),
		lost:    make(chan struct{}),
	}
	s.life, s.endLife = context.WithCancel(context.Background())
	for _, name := range domainNames {
		s.domains[name] = newDomain(name)
	}
	return s
}

// Configure sets the configuration of a domain. It may be called again until the domain is
// started; after that the error is InvalidState.
func (s *Sandbox) Configure(domain string, c DomainConfig) error {
	d, fail, err := s.domain("configure", domain)
	if err != nil {
		return err
	}
	if c.UID == 0 {
		c.UID = isolation.UserID
	}
	if c.GID == 0 {
		c.GID = isolation.GroupID
	}
	if c.UID >= isolation.IDCount || c.GID >= isolation.IDCount {
		return fail(Failure, fmt.Errorf("uid %d, gid %d: ids inside a sandbox must be below %d", c.UID, c.GID, isolation.IDCount))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.conn != nil || !d.token.tryTake() {
		return fail(InvalidState, errors.New("the domain is started or starting"))
	}
	defer d.token.release()
	d.config = &c
	return nil
}

// Start creates a domain without processes (SUP-03). It has no effect if the domain is
// started.
func (s *Sandbox) Start(ctx context.Context, domain string) error {
	d, fail, err := s.domain("start", domain)
	if err != nil {
		return err
	}
	if err := d.token.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer d.token.release()
	if err := s.startable(d); err != nil {
		return fail(InvalidState, err)
	}
	s.mu.Lock()
	started := d.conn != nil
	s.mu.Unlock()
	if started {
		return nil
	}
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	conn, err := s.box.Start(ctx, domain)
	if err != nil {
		return fail(Failure, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing { // Close has not seen the connection
		_ = conn.Close()
		return fail(InvalidState, errClosed)
	}
	s.adopt(d, conn)
	return nil
}

// startable returns an error if d cannot be started now.
func (s *Sandbox) startable(d *domain) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.config == nil {
		return errors.New("the domain is not configured")
	}
	return s.usable()
}

// usable returns an error if no process can run now. The caller holds s.mu.
func (s *Sandbox) usable() error {
	if s.frozen && s.alive() == nil {
		return errors.New("the sandbox is frozen")
	}
	return s.alive()
}

// alive returns an error if no process can ever run again. The caller holds s.mu.
func (s *Sandbox) alive() error {
	switch {
	case s.closing:
		return errClosed
	case s.cause != nil:
		return fmt.Errorf("the sandbox is lost: %w", s.cause)
	}
	return nil
}

// adopt makes conn the connection of d and starts to receive. The caller holds s.mu.
func (s *Sandbox) adopt(d *domain, conn *wire.Conn) {
	d.conn, d.gone = conn, make(chan struct{})
	s.receivers.Add(1)
	go s.receive(d, conn)
}

// Freeze stops every process of the sandbox and returns when all have stopped (SUP-10). It
// waits for requests in progress. On a frozen sandbox it has no effect. After an error the
// sandbox may be frozen or not; Thaw restores a known state.
func (s *Sandbox) Freeze(ctx context.Context) error {
	fail := s.failer("freeze")
	release, err := s.takeDomains(ctx)
	if err != nil {
		return fail(Failure, err)
	}
	defer release()
	if err := s.freezer.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer s.freezer.release()

	s.mu.Lock()
	frozen, err := s.frozen, s.alive()
	s.frozen = frozen || err == nil
	s.mu.Unlock()
	if err != nil {
		return fail(InvalidState, err)
	}
	if frozen {
		return nil
	}

	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	if err := s.box.Freeze(ctx); err != nil {
		return fail(Failure, err)
	}
	return nil
}

// Thaw lets a frozen sandbox run again, with its CPU quota on (SUP-11). On a sandbox that is
// not frozen it has no effect, and does not change the quota.
func (s *Sandbox) Thaw(ctx context.Context) error {
	return s.thaw(ctx, s.failer("thaw"))
}

func (s *Sandbox) thaw(ctx context.Context, fail failer) error {
	if err := s.freezer.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer s.freezer.release()
	s.mu.Lock()
	frozen := s.frozen
	s.mu.Unlock()
	if !frozen {
		return nil
	}
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	if err := s.throttle(ctx, true); err != nil {
		return fail(Failure, err)
	}
	if err := s.box.Thaw(ctx); err != nil {
		return fail(Failure, err)
	}
	s.mu.Lock()
	s.frozen = false
	s.mu.Unlock()
	return nil
}

// Throttle turns the CPU quota on or off. It is off in a new sandbox (docs/decisions/0036).
// If ctx ends while Throttle waits for a freeze or thaw in progress, Throttle fails.
func (s *Sandbox) Throttle(ctx context.Context, on bool) error {
	fail := s.failer("throttle")
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	err := s.freezer.take(ctx)
	if err == nil {
		defer s.freezer.release()
	}
	switch {
	case s.life.Err() != nil:
		return fail(InvalidState, errClosed)
	case err != nil:
		return fail(Failure, err)
	}
	if err := s.throttle(ctx, on); err != nil {
		return fail(Failure, err)
	}
	return nil
}

// throttle turns the quota on or off, unless it is in that state. The caller holds the
// token of the freezer.
func (s *Sandbox) throttle(ctx context.Context, on bool) error {
	s.mu.Lock()
	same := s.throttled == on
	s.mu.Unlock()
	if same {
		return nil
	}
	if err := s.box.SetThrottled(ctx, on); err != nil {
		return err
	}
	s.mu.Lock()
	s.throttled = on
	s.mu.Unlock()
	return nil
}

// MemoryPeak returns the peak memory of the sandbox in bytes, page cache included.
func (s *Sandbox) MemoryPeak() (uint64, error) {
	peak, err := s.box.MemoryPeak()
	if err != nil {
		return 0, s.failer("memory peak")(Failure, err)
	}
	return peak, nil
}

// MemoryUsed returns the most memory in bytes that the sandbox's processes had so far,
// without page cache. Calls while they work make it more exact (docs/decisions/0044).
func (s *Sandbox) MemoryUsed() (uint64, error) {
	used, err := s.box.MemoryUsed()
	if err != nil {
		return 0, s.failer("memory in use")(Failure, err)
	}
	return used, nil
}

// Usage returns what the sandbox has used so far. If the kernel has killed a process for
// lack of memory, Usage kills the whole sandbox.
func (s *Sandbox) Usage() (isolation.Usage, error) {
	usage, err := s.box.Usage()
	if err != nil {
		return usage, s.failer("usage")(Failure, err)
	}
	s.noteOOM(usage.OOMKills)
	return usage, nil
}

// OutOfMemory reports whether the kernel has killed a process of the sandbox for lack of
// memory. It is up to date when the exit of a process is reported, and when the channel of
// Lost is closed.
func (s *Sandbox) OutOfMemory() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.oom
}

// Events returns the stream of exits for observers. It is bounded: if an observer is too
// slow, events are dropped, and an event with Lost says so. Close ends the stream. All
// callers share one stream.
func (s *Sandbox) Events() <-chan Event { return s.feed.events }

// Lost returns a channel that is closed when the sandbox has become unusable before Close
// was called, because it ran out of memory or an init handler failed. By then every process
// has its exit, and the caller can only Close the sandbox.
func (s *Sandbox) Lost() <-chan struct{} { return s.lost }

// Listener returns the socket of the Runtime API inside the sandbox (SUP-19). Close closes
// it.
func (s *Sandbox) Listener() net.Listener { return s.box.Listener() }

// Domain returns the domain whose process created conn, a connection accepted by Listener.
func (s *Sandbox) Domain(ctx context.Context, conn net.Conn) (string, error) {
	domain, err := s.box.Domain(ctx, conn)
	if err != nil {
		return "", s.failer("domain of a connection")(Failure, err)
	}
	return domain, nil
}

// Dial connects to a TCP address from inside the sandbox.
func (s *Sandbox) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := s.box.Dial(ctx, network, addr)
	if err != nil {
		return nil, s.failer("dial")(Failure, err)
	}
	return conn, nil
}

// Close kills every process, waits until all have exited, and removes the sandbox (SUP-14).
// Requests in progress fail. Close kills the processes even if ctx has ended. After an error
// the remains are quarantined (see Box.Close), and Close may be called again; after a
// success it has no effect.
func (s *Sandbox) Close(ctx context.Context) error {
	s.closer.Lock()
	defer s.closer.Unlock()
	s.mu.Lock()
	first, closed := !s.closing, s.closed
	s.closing = true
	s.mu.Unlock()
	if closed {
		return nil
	}
	var killErr error
	if first {
		s.endLife()
		killErr = s.kill()
		s.disconnect()
	}

	// Wait until the calls of the box in progress have returned. If one hangs, continue when
	// ctx ends: box.Close reports what remains.
	if release, err := s.takeDomains(ctx); err == nil {
		defer release()
	}
	if err := s.box.Close(ctx); err != nil {
		return s.failer("close")(Failure, errors.Join(err, killErr))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// disconnect closes the connections. This completes every process handle. Then it closes
// the feed.
func (s *Sandbox) disconnect() {
	s.mu.Lock()
	for _, d := range s.domains {
		if d.conn != nil {
			_ = d.conn.Close()
		}
	}
	s.mu.Unlock()
	s.receivers.Wait()
	s.mu.Lock()
	s.feed.close()
	s.mu.Unlock()
}

// takeDomains takes the tokens of all domains.
func (s *Sandbox) takeDomains(ctx context.Context) (release func(), err error) {
	var taken []token
	release = func() {
		for _, t := range taken {
			t.release()
		}
	}
	for _, name := range domainNames {
		t := s.domains[name].token
		if err := t.take(ctx); err != nil {
			release()
			return nil, err
		}
		taken = append(taken, t)
	}
	return release, nil
}

// whileAlive returns a context that ends with ctx and with the sandbox.
func (s *Sandbox) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// A failer creates the errors of one request.
type failer func(kind ErrorKind, cause error) error

func (s *Sandbox) failer(op string) failer {
	return func(kind ErrorKind, cause error) error {
		return &Error{Kind: kind, Op: op, Sandbox: s.id, Err: cause}
	}
}

// domain returns the domain with that name for the request op, and the request's failer.
func (s *Sandbox) domain(op, name string) (*domain, failer, error) {
	fail := func(kind ErrorKind, cause error) error {
		return &Error{Kind: kind, Op: op, Sandbox: s.id, Domain: name, Err: cause}
	}
	d := s.domains[name]
	if d == nil {
		return nil, nil, fail(NoSuchEntity, errors.New("no such domain"))
	}
	return d, fail, nil
}
