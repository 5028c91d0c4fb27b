package privsep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// removalTime limits the removal of a sandbox.
const removalTime = 10 * time.Second

// requestsPerSandbox is the most requests for one sandbox that a client leaves unanswered:
// two starts, a close, a kill, and the connections to its telemetry subscribers.
const requestsPerSandbox = 64

// inFlight returns the most unanswered requests of a client for that number of sandboxes. A
// client with more than twice as many violates the protocol.
func inFlight(sandboxes int) int { return (sandboxes + 1) * requestsPerSandbox }

// Hosted is a sandbox in the supervisor's process. *runc.Sandbox of package isolation/runc
// has these methods, but its Close may leave remains: see Config.Create.
type Hosted interface {
	supervisor.Box
	ID() string
	CgroupPath() string
	PIDs() map[string]int // host process ids of the init handlers, by domain
	Files() []cgroup.File // files to freeze and to measure it; Start may append some

	// Lookups returns the sockets on which the sandbox sends name lookups, or nil without
	// network egress.
	Lookups() (udp net.PacketConn, tcp net.Listener)
	// Allow lets the sandbox connect to services, given by their numbers, at addresses that a
	// name resolved to. It refuses addresses that must never be reachable.
	Allow(ctx context.Context, services []int, addrs []netip.Addr, valid time.Duration) error
	Traffic() (isolation.Traffic, error)
}

// Config configures a Server.
type Config struct {
	// Create creates a sandbox of the revision with that number. The worker chooses the
	// number, so Create returns message.ErrUnknownRevision if it is not registered. The server
	// calls Close of the sandbox once. If that fails, the implementation of Create is
	// responsible for the remains.
	Create func(ctx context.Context, revision uint64) (Hosted, error)

	// Renew returns the operator's current credentials, in the order that the worker expects.
	Renew func(context.Context) ([]string, error)

	// Credentials returns the current credentials of the role that a revision has, in the same
	// order. It is called for revisions of sandboxes that there are, and is nil without roles.
	Credentials func(ctx context.Context, revision uint64) ([]string, error)

	// Upstream connects to a name server of the host. server is its index in the host's list,
	// network is "udp" or "tcp". It is nil if no sandbox may look up names.
	Upstream func(ctx context.Context, network string, server int) (net.Conn, error)
	// Connect returns a new connection to the control process, or message.ErrNoControl. It is
	// nil if the daemon has no such process.
	Connect func(context.Context) (*os.File, error)
	// Retire ends the revision with that number, which the worker chooses. It is nil if the
	// worker may not end revisions.
	Retire func(revision uint64) error
	// KeyPair returns a file with the endpoint's current key pair (message.KeyPair), or nil if its
	// number is the one given. It is nil if the endpoint has no TLS.
	KeyPair func(number uint64) (*os.File, error)
	// Segment opens a segment of the logs by its number, which the worker chooses. If fresh, it
	// makes or empties it. It is nil if there are none.
	Segment func(number uint64, fresh bool) (*os.File, error)
	// OnError, if not nil, receives the errors of sandboxes that could not be removed after
	// the worker had closed the connection.
	OnError func(error)
	// Traced makes the server record spans for the worker.
	Traced bool
	// Sandboxes is the most sandboxes at once, including those that are being removed.
	Sandboxes int
	// Remains returns how many sandboxes could not be removed. They take nobody's place (S-09),
	// but those beyond Sandboxes count among them, so that there are never more than twice as
	// many. The server calls it often. It may be nil.
	Remains func() int
	// UID is the user of the worker. opGivePipes accepts only pipes of this user.
	UID uint32
}

// Server is the supervisor's end of the connection. Its methods are safe for concurrent
// use, except for Require and Serve, which are called once and in that order.
type Server struct {
	cfg  Config
	conn *seqpacket.Conn

	life    context.Context // of all requests
	end     context.CancelFunc
	check   func() error   // see Require; nil once it has succeeded
	working sync.WaitGroup // requests in progress
	dials   chan struct{}  // semaphore of connection attempts into all sandboxes

	mu       sync.Mutex
	last     uint32                        // number of the latest sandbox
	creating int                           // number of sandboxes that are being created
	boxes    map[uint32]*box               // by number
	requests map[uint32]context.CancelFunc // requests without an answer, by id
	busy     int                           // number of requests whose answer has not been sent
	sendErr  error                         // why an answer could not be sent; the connection is closed then
}

// NewServer returns a server on f, the supervisor's end of Pair. It closes f, also on an
// error. The caller must call Serve or Close.
func NewServer(f *os.File, cfg Config) (*Server, error) {
	c, err := seqpacket.NewConn(f, requestSize, maxFiles)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, conn: c, boxes: map[uint32]*box{}, requests: map[uint32]context.CancelFunc{}, dials: make(chan struct{}, maxDials)}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Serve handles the requests of the worker until the worker closes the connection, for
// which it returns nil, or violates the protocol. Then it calls gone, removes all remaining
// sandboxes, and returns.
func (s *Server) Serve(gone func()) error {
	err := s.read()
	gone()
	s.end()
	s.conn.Close()
	var killing sync.WaitGroup
	for _, b := range s.all() {
		killing.Go(func() { _ = b.Kill(context.Background()) }) // Close below reports an error
	}
	waitAtMost(&killing, removalTime)
	waitAtMost(&s.working, 2*removalTime)

	var closing sync.WaitGroup // s.working cannot be reused: its Wait may still be running
	for n, b := range s.all() {
		closing.Go(func() {
			if err := s.close(n, b); err != nil && s.cfg.OnError != nil {
				s.cfg.OnError(err)
			}
		})
	}
	waitAtMost(&closing, 3*removalTime)
	return err
}

// all returns the present sandboxes by number.
func (s *Server) all() map[uint32]*box {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.boxes)
}

// waitAtMost waits for a group, but at most for patience: a goroutine may hang in a system
// call.
func waitAtMost(group *sync.WaitGroup, patience time.Duration) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// Require makes Serve call check before the first request, and return its error. Call it
// before Serve.
func (s *Server) Require(check func() error) { s.check = check }

// Close closes the connection. Use it instead of Serve if there is nothing to serve.
func (s *Server) Close() error {
	s.end()
	return s.conn.Close()
}

// Stop asks the worker to shut down in order; a second call asks it to stop at once. Stop
// blocks while the worker does not read.
func (s *Server) Stop() error {
	b, err := reply{}.encode()
	if err != nil {
		return err
	}
	return s.conn.Send(b, nil)
}

// Push sends the worker a connection of the control process, which the caller still owns. It
// does not wait: the error is seqpacket.ErrFull if the worker does not read.
func (s *Server) Push(stream *os.File) error {
	b, err := reply{n: isStream}.encode()
	if err != nil {
		return err
	}
	return s.conn.Push(b, []*os.File{stream})
}

// Sandboxes returns the sandboxes of the worker, without those that are being created.
func (s *Server) Sandboxes() []Hosted {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Hosted, 0, len(s.boxes))
	for _, b := range s.boxes {
		list = append(list, b.Hosted)
	}
	return list
}

// Count returns the number of sandboxes, including those that are being created and what
// counts of [Config].Remains.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count()
}

// count implements Count. The caller holds s.mu.
func (s *Server) count() int {
	n := s.creating + len(s.boxes)
	if s.cfg.Remains != nil {
		n += max(0, s.cfg.Remains()-s.cfg.Sandboxes)
	}
	return n
}

// read receives requests until the connection ends or the worker violates the protocol.
func (s *Server) read() error {
	for {
		b, files, err := s.conn.Receive()
		if errors.Is(err, io.EOF) {
			return s.endCause()
		}
		if err != nil {
			return fmt.Errorf("receive from the worker: %w", err)
		}
		if s.check != nil {
			if err := s.check(); err != nil {
				closeAll(files)
				return fmt.Errorf("check the worker: %w", err)
			}
			s.check = nil
		}
		r, err := decodeRequest(b, len(files))
		if err != nil {
			closeAll(files)
		} else {
			err = s.begin(r, files)
		}
		if err != nil {
			return fmt.Errorf("the worker violates the protocol: %w", err)
		}
	}
}

// endCause returns why the connection has ended: nil if the worker has closed it.
func (s *Server) endCause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sendErr == nil || errors.Is(s.sendErr, unix.EPIPE) || errors.Is(s.sendErr, unix.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("send an answer to the worker: %w", s.sendErr)
}

// begin starts a goroutine for a request. It returns an error if the request violates the
// protocol.
func (s *Server) begin(r request, files []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.op == opCancel {
		if cancel := s.requests[r.arg]; cancel != nil { // else the answer has been sent
			cancel()
		}
		return nil
	}
	var err error
	switch {
	case r.id == 0 || s.requests[r.id] != nil:
		err = fmt.Errorf("the request id %d is in use", r.id)
	case s.busy >= 2*inFlight(s.cfg.Sandboxes):
		err = fmt.Errorf("more than %d requests at once", s.busy)
	}
	if err != nil {
		closeAll(files)
		return err
	}
	ctx, cancel := context.WithCancel(s.life)
	s.requests[r.id] = cancel
	s.busy++
	b := s.boxes[r.sandbox]
	var refused error
	switch {
	case r.sandbox != 0 && b == nil: // most likely it has just been closed
		refused = fmt.Errorf("sandbox %d: %w", r.sandbox, message.ErrUnknownSandbox)
	case r.op == opCreate && s.count() >= s.cfg.Sandboxes:
		refused = fmt.Errorf("%w: %d", message.ErrTooMany, s.cfg.Sandboxes)
	case r.op == opCreate:
		s.creating++
	case r.op == opClose:
		b.end()
	}
	s.working.Go(func() {
		defer cancel()
		var a reply
		var give []*os.File
		err := refused
		if err == nil {
			a, give, err = s.work(ctx, b, r, files)
		}
		closeAll(files)
		if err != nil {
			text := err.Error()
			a = reply{err: text[:min(len(text), maxReply/2)], kinds: message.KindsOf(err)}
		}
		s.answer(r.id, a, give)
	})
	return nil
}

// keyPair returns the file of the key pair, or none.
func (s *Server) keyPair(number uint64) ([]*os.File, error) {
	if s.cfg.KeyPair == nil {
		return nil, errors.ErrUnsupported
	}
	f, err := s.cfg.KeyPair(number)
	if f == nil {
		return nil, err
	}
	return []*os.File{f}, err
}

// answer sends the answer to the request id with files, which it closes.
func (s *Server) answer(id uint32, a reply, files []*os.File) {
	defer closeAll(files)
	a.id = id
	b, err := a.encode()
	if err != nil {
		b, _ = reply{id: id, err: err.Error()}.encode() // small enough
		files = nil
	}
	s.mu.Lock()
	delete(s.requests, id) // before the worker can use the id again
	s.mu.Unlock()
	if err := s.conn.Send(b, files); err != nil {
		// The worker has exited, or would wait for this answer for ever: close the connection,
		// so that both ends read its end.
		s.mu.Lock()
		s.sendErr = cmp.Or(s.sendErr, err)
		s.mu.Unlock()
		_ = s.conn.CloseWrite()
		_ = s.conn.CloseRead()
	}
	s.mu.Lock()
	s.busy--
	s.mu.Unlock()
}

// work performs the request r with its files. It returns the answer and the files to send
// with it, none on an error.
func (s *Server) work(ctx context.Context, b *box, r request, files []*os.File) (a reply, give []*os.File, err error) {
	switch r.op {
	case opCreate:
		a, give, err = s.create(ctx, r.value)
	case opRenew:
		a.text, err = s.cfg.Renew(ctx)
	case opCredentials:
		err = errors.ErrUnsupported
		if s.cfg.Credentials != nil {
			a.text, err = s.cfg.Credentials(ctx, b.revision)
		}
	case opStart:
		if err = s.take(ctx, b); err == nil {
			a, give, err = b.start(ctx, domains[r.arg])
			<-b.token
		}
	case opThrottle:
		if err = s.take(ctx, b); err == nil {
			err = b.SetThrottled(ctx, r.arg == 1)
			<-b.token
		}
	case opKill:
		err = b.Kill(ctx)
	case opGivePipes:
		if err = s.mayGive(files); err == nil {
			err = b.GivePipes(ctx, files...)
		}
	case opDial:
		give, err = s.dial(ctx, b, r.arg)
	case opDomain:
		a.text, err = b.domain(ctx, files[0])
	case opAllow:
		err = b.Allow(ctx, numbers(r.value), []netip.Addr{r.addr}, time.Duration(r.arg)*time.Second)
	case opUpstream:
		give, err = s.upstream(ctx, r.arg)
	case opConnect:
		give, err = s.connect(ctx)
	case opRetire:
		err = errors.ErrUnsupported
		if s.cfg.Retire != nil {
			err = s.cfg.Retire(r.value)
		}
	case opKeyPair:
		give, err = s.keyPair(r.value)
	case opSegment:
		give, err = s.segment(r)
	case opClose:
		err = s.close(r.sandbox, b)
	}
	return a, give, err
}

// segment opens a segment of the logs.
func (s *Server) segment(r request) ([]*os.File, error) {
	if s.cfg.Segment == nil {
		return nil, errors.ErrUnsupported
	}
	f, err := s.cfg.Segment(r.value, r.arg == 1)
	if err != nil {
		return nil, err
	}
	return []*os.File{f}, nil
}
