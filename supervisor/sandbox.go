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

// errLost is the cause of requests that fail because a PID 1 is gone.
var errLost = errors.New("the init handler of a domain is gone")

var errClosed = errors.New("the sandbox is closed")

// DomainConfig configures a domain (SUP-02).
type DomainConfig struct {
	UID, GID uint32 // of its processes, inside the domain; zero means 993 and 990 (ENV-28)
}

// Sandbox is a sandbox that runs processes. All methods are safe for concurrent use.
// Errors are of type *Error. The owner must Close it.
type Sandbox struct {
	id  string
	box Box

	life      context.Context // ends with Close; requests to the box end with it
	endLife   context.CancelFunc
	receivers sync.WaitGroup
	freezer   turn
	closer    sync.Mutex

	mu        sync.Mutex
	domains   map[string]*domain // by name; the map itself never changes
	frozen    bool               // or about to be, or perhaps half
	throttled bool
	oom       bool // the kernel has killed for lack of memory
	closing   bool
	closed    bool
	feed      feed
	lost      chan struct{}
	cause     error // why lost is closed
}

// domainNames are the domains a sandbox can have, in lock order (SUP-01).
var domainNames = []string{isolation.RuntimeDomain, isolation.ExtensionDomain}

// New returns the sandbox id on box, which it owns from now on. Its domains are
// neither configured nor started.
func New(id string, box Box) *Sandbox {
	s := &Sandbox{
		id:      id,
		box:     box,
		freezer: newTurn(),
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

// Configure sets up a domain. It may be repeated until the domain is started, and
// after that is refused as InvalidState.
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
		return fail(Failure, fmt.Errorf("uid %d gid %d: ids inside a sandbox are below %d", c.UID, c.GID, isolation.IDCount))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.conn != nil || !d.turn.tryTake() {
		return fail(InvalidState, errors.New("the domain is started, or about to be"))
	}
	defer d.turn.leave()
	d.config = &c
	return nil
}

// Start makes a domain, without processes (SUP-03). A domain that is started already
// is left as it is.
func (s *Sandbox) Start(ctx context.Context, domain string) error {
	d, fail, err := s.domain("start", domain)
	if err != nil {
		return err
	}
	if err := d.turn.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer d.turn.leave()
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

// startable says why d cannot be started.
func (s *Sandbox) startable(d *domain) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.config == nil {
		return errors.New("the domain is not configured")
	}
	return s.usable()
}

// usable says why nothing can run now. The caller holds s.mu.
func (s *Sandbox) usable() error {
	if s.frozen && s.alive() == nil {
		return errors.New("the sandbox is frozen")
	}
	return s.alive()
}

// alive says why nothing will ever run again. The caller holds s.mu.
func (s *Sandbox) alive() error {
	switch {
	case s.closing:
		return errClosed
	case s.cause != nil:
		return fmt.Errorf("the sandbox is lost: %w", s.cause)
	}
	return nil
}

// adopt makes conn the connection of d. The caller holds s.mu.
func (s *Sandbox) adopt(d *domain, conn *wire.Conn) {
	d.conn, d.gone = conn, make(chan struct{})
	s.receivers.Add(1)
	go s.receive(d, conn)
}

// Freeze stops every process of the sandbox; they have stopped when it returns
// (SUP-10). It waits for requests under way. On a frozen sandbox it does nothing.
// After an error the state is unknown and Thaw brings back a known one.
func (s *Sandbox) Freeze(ctx context.Context) error {
	fail := s.failer("freeze")
	leave, err := s.takeDomains(ctx)
	if err != nil {
		return fail(Failure, err)
	}
	defer leave()
	if err := s.freezer.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer s.freezer.leave()

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

// Thaw lets a frozen sandbox run again, always with its CPU quota on (SUP-11). On a
// sandbox that is not frozen it does nothing, and leaves the quota as it is.
func (s *Sandbox) Thaw(ctx context.Context) error {
	return s.thaw(ctx, s.failer("thaw"))
}

func (s *Sandbox) thaw(ctx context.Context, fail failer) error {
	if err := s.freezer.take(ctx); err != nil {
		return fail(Failure, err)
	}
	defer s.freezer.leave()
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

// Throttle turns the CPU quota on or off. A new sandbox has none (docs/decisions/0036).
// ctx ends the wait for a freeze or thaw that goes on.
func (s *Sandbox) Throttle(ctx context.Context, on bool) error {
	fail := s.failer("throttle")
	ctx, cancel := s.whileAlive(ctx)
	defer cancel()
	err := s.freezer.take(ctx)
	if err == nil {
		defer s.freezer.leave()
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

// throttle changes the quota if it is not so already. The caller has the freezer's
// turn.
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

// MemoryPeak returns the most memory that the sandbox ever had, page cache included,
// in bytes.
func (s *Sandbox) MemoryPeak() (uint64, error) {
	peak, err := s.box.MemoryPeak()
	if err != nil {
		return 0, s.failer("memory peak")(Failure, err)
	}
	return peak, nil
}

// Usage returns what the sandbox has used so far. If it shows that the kernel has
// killed a process for lack of memory, the whole sandbox ends.
func (s *Sandbox) Usage() (isolation.Usage, error) {
	usage, err := s.box.Usage()
	if err != nil {
		return usage, s.failer("usage")(Failure, err)
	}
	s.noteOOM(usage.OOMKills)
	return usage, nil
}

// Events returns the stream of terminations, for observers: it is bounded, and says
// so when it has dropped some. It ends with Close. All callers share one stream.
func (s *Sandbox) Events() <-chan Event { return s.feed.events }

// Lost is closed when the sandbox has become unusable although Close was not called:
// it was out of memory, or an init handler has failed. Every process has its exit
// then, and what is left to do is Close.
func (s *Sandbox) Lost() <-chan struct{} { return s.lost }

// Listener returns the socket of the Runtime API inside the sandbox (SUP-19). It is
// closed by Close.
func (s *Sandbox) Listener() net.Listener { return s.box.Listener() }

// Domain says which domain made a connection that Listener has accepted.
func (s *Sandbox) Domain(ctx context.Context, conn net.Conn) (string, error) {
	domain, err := s.box.Domain(ctx, conn)
	if err != nil {
		return "", s.failer("domain of a connection")(Failure, err)
	}
	return domain, nil
}

// Dial connects to a TCP address as seen from inside the sandbox.
func (s *Sandbox) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := s.box.Dial(ctx, network, addr)
	if err != nil {
		return nil, s.failer("dial")(Failure, err)
	}
	return conn, nil
}

// Close kills every process, waits for their end, and removes the sandbox (SUP-14).
// Requests under way fail. After an error remains are quarantined (see Box.Close),
// and Close may be tried again; after a success it does nothing. Even if ctx has
// ended everything is killed. Calls at the same time wait for one another.
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
		s.hangUp()
	}
	// Whoever is still in a call of the box is about to leave it, unless the box
	// hangs; then what remains is for box.Close to say.
	if leave, err := s.takeDomains(ctx); err == nil {
		defer leave()
	}
	if err := s.box.Close(ctx); err != nil {
		return s.failer("close")(Failure, errors.Join(err, killErr))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// hangUp ends the connections, and with them every process handle and the feed.
func (s *Sandbox) hangUp() {
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

// takeDomains takes the turns of all domains.
func (s *Sandbox) takeDomains(ctx context.Context) (leave func(), err error) {
	var taken []turn
	leave = func() {
		for _, t := range taken {
			t.leave()
		}
	}
	for _, name := range domainNames {
		t := s.domains[name].turn
		if err := t.take(ctx); err != nil {
			leave()
			return nil, err
		}
		taken = append(taken, t)
	}
	return leave, nil
}

// whileAlive returns a context that ends with ctx and with the sandbox.
func (s *Sandbox) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// A failer makes the errors of one request.
type failer func(kind ErrorKind, cause error) error

func (s *Sandbox) failer(op string) failer {
	return func(kind ErrorKind, cause error) error {
		return &Error{Kind: kind, Op: op, Sandbox: s.id, Err: cause}
	}
}

// domain finds a domain for a request, and the request's failer.
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
