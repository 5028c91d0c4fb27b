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
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/cgroup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// removalTime is how long the removal of a sandbox may take.
const removalTime = 10 * time.Second

// requestsPerSandbox is how many requests about one sandbox may wait for their answers:
// two starts, a close, a kill, and the connections to its telemetry subscribers.
const requestsPerSandbox = 64

// inFlight is how many requests of a client may wait for their answers, if so many
// sandboxes may live. Who has twice as many is no client of ours.
func inFlight(sandboxes int) int { return (sandboxes + 1) * requestsPerSandbox }

// Hosted is a sandbox as the supervisor's process has it. *runc.Sandbox of package
// isolation/runc is one, but that who gives it must see to what its Close leaves.
type Hosted interface {
	supervisor.Box
	ID() string
	CgroupPath() string
	PIDs() map[string]int // of the init handlers, by domain
	Files() []cgroup.File // what it is frozen and measured with; a start may add to the end

	// Lookups are the sockets at which it asks for names, nil if it has none.
	Lookups() (udp net.PacketConn, tcp net.Listener)
	// Allow opens services, by their numbers, at addresses that were found for a name. It
	// keeps closed what must be.
	Allow(ctx context.Context, services []int, addrs []netip.Addr, valid time.Duration) error
	Traffic() (isolation.Traffic, error)
}

// Config is what a Server needs.
type Config struct {
	// Create makes a sandbox of the revision of that number, which the worker chooses: it
	// returns message.ErrUnknownRevision if it knows none of that number. The Close of the
	// sandbox releases all that belongs to it, and is called once: what it cannot remove is
	// Create's.
	Create func(ctx context.Context, revision uint64) (Hosted, error)
	// Renew returns the credentials as they are now, as the worker understands them.
	Renew func(context.Context) ([]string, error)
	// Upstream connects to the name server of the host at that place of the list, counted
	// from 0, by "udp" or "tcp". Nil if no sandbox may look up names.
	Upstream func(ctx context.Context, network string, server int) (net.Conn, error)
	// OnError gets the errors of sandboxes that could not be removed when the worker was gone.
	OnError func(error)
	// Traced says that the worker wants to know the steps of what it has made.
	Traced bool
	// Sandboxes is the most that may live at once, those included that are being removed.
	Sandboxes int
	// Remains returns how many sandboxes are left that could not be removed, which count
	// among them. It is called often. May be nil.
	Remains func() int
	// UID is the worker's user: only what belongs to it may be given away.
	UID uint32
}

// Server is the supervisor's end.
type Server struct {
	cfg  Config
	conn *conn

	life    context.Context // of all requests
	end     context.CancelFunc
	check   func() error   // see Require; nil once it has been made
	working sync.WaitGroup // requests
	dials   chan struct{}  // full when no more connections may be made at once

	mu       sync.Mutex
	last     uint32                        // number of a sandbox
	creating int                           // sandboxes that are being made
	boxes    map[uint32]*box               // by number
	requests map[uint32]context.CancelFunc // those without an answer, by id
	busy     int                           // those whose answer is not sent
	unsent   error                         // why an answer was not: the line is closed then
}

// NewServer makes the supervisor's end of f, which it closes in any case. The caller
// must call Serve or Close.
func NewServer(f *os.File, cfg Config) (*Server, error) {
	c, err := newConn(f, requestSize)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, conn: c, boxes: map[uint32]*box{}, requests: map[uint32]context.CancelFunc{}, dials: make(chan struct{}, maxDials)}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Serve does what the worker asks until its end of the line is closed, which is no
// error, or it breaks the protocol. It calls gone then, and removes every sandbox that
// is left; OnError is told of those that stay.
func (s *Server) Serve(gone func()) error {
	err := s.read()
	gone()
	s.end()
	s.conn.Close()
	var killing sync.WaitGroup
	for _, b := range s.all() {
		killing.Go(func() { _ = b.Kill(context.Background()) }) // its Close reports what stays
	}
	rest(&killing, removalTime)
	rest(&s.working, 2*removalTime)
	var closing sync.WaitGroup // not working, on which an earlier Wait may have given up
	for n, b := range s.all() {
		closing.Go(func() {
			if err := s.close(n, b); err != nil && s.cfg.OnError != nil {
				s.cfg.OnError(err)
			}
		})
	}
	rest(&closing, 3*removalTime)
	return err
}

// all returns the sandboxes that there are now, by number.
func (s *Server) all() map[uint32]*box {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.boxes)
}

// rest waits for a group, but not for ever: one of its goroutines may hang in the kernel.
func rest(group *sync.WaitGroup, patience time.Duration) {
	done := make(chan struct{})
	go func() { group.Wait(); close(done) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

// Require has Serve call check once, before it answers the first request, and end with
// its error. Call it before Serve.
func (s *Server) Require(check func() error) { s.check = check }

// Close closes the line. It is for a server that does not come to serve.
func (s *Server) Close() error {
	s.end()
	return s.conn.Close()
}

// Stop asks the worker to come to an end; a second time, to do it at once. It may wait
// for as long as the worker reads nothing.
func (s *Server) Stop() error {
	b, err := reply{}.encode()
	if err != nil {
		return err
	}
	return s.conn.send(b, nil)
}

// Sandboxes returns those that the worker has, without those that are being made.
func (s *Server) Sandboxes() []Hosted {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Hosted, 0, len(s.boxes))
	for _, b := range s.boxes {
		list = append(list, b.Hosted)
	}
	return list
}

// Count returns how many sandboxes there are, those being made and those that could not be
// removed included.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count()
}

// count is Count with s.mu held.
func (s *Server) count() int {
	n := s.creating + len(s.boxes)
	if s.cfg.Remains != nil {
		n += s.cfg.Remains()
	}
	return n
}

// read takes requests until it must not go on.
func (s *Server) read() error {
	for {
		b, files, err := s.conn.receive()
		if errors.Is(err, io.EOF) {
			return s.left()
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
			return fmt.Errorf("the worker breaks the protocol: %w", err)
		}
	}
}

// left says why the line has ended, nil if the worker has left it.
func (s *Server) left() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsent == nil || errors.Is(s.unsent, unix.EPIPE) || errors.Is(s.unsent, unix.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("send an answer to the worker: %w", s.unsent)
}

// begin starts to work on a request.
func (s *Server) begin(r request, files []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.op == opCancel {
		if cancel := s.requests[r.arg]; cancel != nil { // else the answer is on its way
			cancel()
		}
		return nil
	}
	var err error
	switch {
	case r.id == 0 || s.requests[r.id] != nil:
		err = fmt.Errorf("the id %d is in use", r.id)
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
	case r.sandbox != 0 && b == nil: // one that was closed a moment ago, most likely
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
	if err := s.conn.send(b, files); err != nil {
		// It is gone, or would wait for ever: both ends read the end of the line.
		s.mu.Lock()
		s.unsent = cmp.Or(s.unsent, err)
		s.mu.Unlock()
		_ = s.conn.CloseWrite()
		_ = s.conn.CloseRead()
	}
	s.mu.Lock()
	s.busy--
	s.mu.Unlock()
}

// work does what r asks, and returns the answer with the files that go with it: none
// with an error.
func (s *Server) work(ctx context.Context, b *box, r request, files []*os.File) (a reply, give []*os.File, err error) {
	switch r.op {
	case opCreate:
		a, give, err = s.create(ctx, r.value)
	case opRenew:
		a.text, err = s.cfg.Renew(ctx)
	case opStart:
		if err = s.take(ctx, b); err == nil {
			a, give, err = b.start(ctx, domains[r.arg])
			<-b.turn
		}
	case opThrottle:
		if err = s.take(ctx, b); err == nil {
			err = b.SetThrottled(ctx, r.arg == 1)
			<-b.turn
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
	case opClose:
		err = s.close(r.sandbox, b)
	}
	return a, give, err
}
