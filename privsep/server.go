package privsep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/group"
	"github.com/sandboxd/sandboxd/supervisor"
	"github.com/sandboxd/sandboxd/tracing"
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
	Files() []group.File  // what it is frozen and measured with; a start may add to the end

	// Lookups are the sockets at which it asks for names, nil if it has none.
	Lookups() (udp net.PacketConn, tcp net.Listener)
	// Allow opens services, by their numbers, at addresses that were found for a name. It
	// keeps closed what must be.
	Allow(services []int, addrs []netip.Addr, valid time.Duration) error
	Traffic() (isolation.Traffic, error)
}

// Config is what a Server needs.
type Config struct {
	// Create makes a sandbox. Its Close releases all that belongs to it, and is called
	// once: what it cannot remove is Create's.
	Create func(context.Context) (Hosted, error)
	// Renew returns the credentials as they are now, as the worker understands them.
	Renew func() ([]string, error)
	// Upstream connects to the name server of the host at that place of the list, counted
	// from 0, by "udp" or "tcp". Nil if no sandbox may look up names.
	Upstream func(ctx context.Context, network string, server int) (net.Conn, error)
	// OnError is told of sandboxes that could not be removed when the worker was gone.
	OnError func(error)
	// Held tells by id since when sandboxes are there that could not be removed.
	Held func() map[string]time.Time
	// Traced says that the worker wants to know the steps of what it has made.
	Traced bool
	// Sandboxes is the most that may live at once, those included that are being removed.
	Sandboxes int
	// UID is the worker's user: only what belongs to it may be given away.
	UID uint32
}

// Server is the supervisor's end.
type Server struct {
	cfg  Config
	conn *conn

	life    context.Context // of all requests
	end     context.CancelFunc
	working sync.WaitGroup // requests
	dials   chan struct{}  // full when no more connections may be made at once

	mu       sync.Mutex
	last     uint32                        // number of a sandbox
	creating int                           // sandboxes that are being made
	boxes    map[uint32]*box               // by number
	requests map[uint32]context.CancelFunc // those without an answer, by id
	busy     int                           // those whose answer is not sent
}

// box is a sandbox of the worker's.
type box struct {
	Hosted
	life   context.Context // ends when it is to be closed
	end    context.CancelFunc
	dials  chan struct{}     // full when no more connections may be made at once
	steps  *tracing.Recorder // nil if nobody wants to know them
	closed bool              // guarded by Server.mu

	turn chan struct{} // full while somebody does what must not be done twice at once
	sent int           // how many of its files the worker has; of who has the turn
}

// What connecting into sandboxes may take: each connection holds a thread until whoever
// listens inside has taken it.
const (
	maxDials    = 128 // at once
	maxBoxDials = 2   // at once, in one sandbox
	dialTime    = 5 * time.Second
)

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
	s.mu.Lock()
	for _, b := range s.boxes {
		_ = b.Kill() // its Close tells
	}
	s.mu.Unlock()
	s.rest(2 * removalTime)
	s.mu.Lock()
	for n, b := range s.boxes {
		s.working.Go(func() {
			if err := s.close(n, b); err != nil && s.cfg.OnError != nil {
				s.cfg.OnError(err)
			}
		})
	}
	s.mu.Unlock()
	s.rest(3 * removalTime)
	return err
}

// rest waits until no request is worked on any more, but not for ever: one may hang in
// the kernel.
func (s *Server) rest(patience time.Duration) {
	done := make(chan struct{})
	go func() { s.working.Wait(); close(done) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
}

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

// Count is how many sandboxes the worker has, those being made included.
func (s *Server) Count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count()
}

// count is Count for who holds s.mu.
func (s *Server) count() int { return s.creating + len(s.boxes) }

// read takes requests until it must not go on.
func (s *Server) read() error {
	for {
		b, files, err := s.conn.receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("privsep: receive from the worker: %w", err)
		}
		r, err := decodeRequest(b, len(files))
		if err != nil {
			closeAll(files)
		} else {
			err = s.begin(r, files)
		}
		if err != nil {
			return fmt.Errorf("privsep: the worker breaks the protocol: %w", err)
		}
	}
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
		refused = fmt.Errorf("privsep: there is no sandbox %d", r.sandbox)
	case r.op == opCreate && s.count() >= s.cfg.Sandboxes:
		refused = fmt.Errorf("privsep: there are %d sandboxes already", s.cfg.Sandboxes)
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
			a = reply{err: text[:min(len(text), maxReply/2)]}
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
		a, give, err = s.create(ctx)
	case opRenew:
		a.text, err = s.cfg.Renew()
	case opStart:
		if err = s.take(ctx, b); err == nil {
			a, give, err = b.start(ctx, domains[r.arg])
			<-b.turn
		}
	case opThrottle:
		if err = s.take(ctx, b); err == nil {
			err = b.SetThrottled(r.arg == 1)
			<-b.turn
		}
	case opKill:
		err = b.Kill()
	case opGivePipes:
		if err = s.mayGive(files); err == nil {
			err = b.GivePipes(files...)
		}
	case opDial:
		give, err = s.dial(ctx, b, r.arg)
	case opDomain:
		a.text, err = b.domain(files[0])
	case opAllow:
		err = b.Allow(numbers(r.services), []netip.Addr{r.addr}, time.Duration(r.arg)*time.Second)
	case opTraffic:
		var t isolation.Traffic
		if t, err = b.Traffic(); err == nil {
			a.text, err = inJSON(t)
		}
	case opUpstream:
		give, err = s.upstream(ctx, r.arg)
	case opHeld:
		a.text, err = inJSON(s.cfg.Held())
	case opClose:
		err = s.close(r.sandbox, b)
	}
	return a, give, err
}

// inJSON is an answer of one text.
func inJSON(v any) ([]string, error) {
	b, err := json.Marshal(v)
	return []string{string(b)}, err
}

// numbers are those of the bits that are set.
func numbers(set uint64) (list []int) {
	for ; set != 0; set &= set - 1 {
		list = append(list, bits.TrailingZeros64(set))
	}
	return list
}

// domain says which domain made a connection, which the worker has accepted.
func (b *box) domain(f *os.File) ([]string, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("privsep: not a connection: %w", err)
	}
	defer conn.Close()
	domain, err := b.Domain(conn)
	return []string{domain}, err
}

// upstream makes a socket to a name server.
func (s *Server) upstream(ctx context.Context, arg uint32) ([]*os.File, error) {
	if s.cfg.Upstream == nil {
		return nil, errors.New("privsep: no sandbox may look up names")
	}
	network := "udp"
	if arg&streamed != 0 {
		network = "tcp"
	}
	conn, err := s.cfg.Upstream(ctx, network, int(arg&^streamed))
	if err != nil {
		return nil, err
	}
	f, err := fileOf(conn)
	if err != nil {
		return nil, err
	}
	return []*os.File{f}, nil
}

// fileOf takes the socket from s, which it closes: this process is not woken for it any
// more.
func fileOf(s io.Closer) (*os.File, error) {
	defer s.Close()
	socket, ok := s.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("privsep: %T is no socket", s)
	}
	return socket.File()
}

// create makes a sandbox.
func (s *Server) create(ctx context.Context) (reply, []*os.File, error) {
	b := &box{turn: make(chan struct{}, 1), dials: make(chan struct{}, maxBoxDials)}
	b.turn <- struct{}{} // until the worker can know of it
	if s.cfg.Traced {
		b.steps = new(tracing.Recorder)
	}
	hosted, err := s.cfg.Create(b.recorded(ctx))
	s.mu.Lock()
	s.creating--
	if err != nil {
		s.mu.Unlock()
		return reply{}, nil, err
	}
	b.Hosted = hosted
	b.life, b.end = context.WithCancel(s.life)
	s.last++
	n := s.last
	s.boxes[n] = b
	s.mu.Unlock()

	give, err := b.sockets()
	sockets := len(give)
	var files []*os.File
	var roles, steps string
	if err == nil {
		files, roles, err = b.newFiles()
		give = append(give, files...)
	}
	if err == nil {
		steps, err = b.newSteps()
	}
	<-b.turn
	if err != nil {
		closeAll(give)
		return reply{}, nil, errors.Join(err, s.close(n, b))
	}
	return reply{n: n, text: []string{b.ID(), b.CgroupPath(), roles, steps, strconv.Itoa(sockets)}}, give, nil
}

// take waits for b's turn, which who has it gives back. A box that is closed has none.
func (s *Server) take(ctx context.Context, b *box) error {
	ctx, cancel := b.whileAlive(ctx)
	defer cancel()
	select {
	case b.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.closed {
		<-b.turn
		return errors.New("privsep: the sandbox is closed")
	}
	return nil
}

// sockets are those at which the sandbox is served: the listener of the Runtime API, and
// with network egress those for lookups, UDP first.
func (b *box) sockets() (files []*os.File, err error) {
	list := []io.Closer{b.Listener()}
	if udp, tcp := b.Lookups(); udp != nil {
		list = append(list, udp, tcp)
	}
	for _, l := range list {
		f, err := fileOf(l)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// recorded is ctx, with which steps are recorded if somebody wants to know them.
func (b *box) recorded(ctx context.Context) context.Context {
	if b.steps == nil {
		return ctx
	}
	return b.steps.Context(ctx)
}

// newSteps are the steps that have ended since, as the worker understands them.
func (b *box) newSteps() (string, error) {
	if b.steps == nil {
		return "", nil
	}
	text, err := json.Marshal(b.steps.Take())
	return string(text), err
}

// newFiles returns copies of the files that the worker does not have yet, and their
// roles.
func (b *box) newFiles() (files []*os.File, roles string, err error) {
	all := b.Files()
	for _, f := range all[b.sent:] {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			closeAll(files)
			return nil, "", os.NewSyscallError("fcntl", err)
		}
		files = append(files, os.NewFile(uintptr(fd), f.Name()))
		roles += string(rune(f.Role))
	}
	b.sent = len(all)
	return files, roles, nil
}

// start makes a domain. The caller has the turn.
func (b *box) start(ctx context.Context, domain string) (reply, []*os.File, error) {
	ctx, cancel := b.whileAlive(ctx)
	defer cancel()
	conn, err := b.Start(b.recorded(ctx), domain)
	if err != nil {
		return reply{}, nil, err
	}
	defer conn.Close() // the worker carries on with the copy
	steps, err := b.newSteps()
	if err != nil {
		return reply{}, nil, err
	}
	control, err := conn.File()
	if err != nil {
		return reply{}, nil, err
	}
	files, roles, err := b.newFiles()
	if err != nil {
		control.Close()
		return reply{}, nil, err
	}
	return reply{n: uint32(b.PIDs()[domain]), text: []string{roles, steps}}, append([]*os.File{control}, files...), nil
}

// whileAlive returns a context that ends with ctx and with the box.
func (b *box) whileAlive(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(b.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// dial connects to a port on the sandbox's loopback.
func (s *Server) dial(ctx context.Context, b *box, port uint32) ([]*os.File, error) {
	ctx, cancel := b.whileAlive(ctx)
	defer cancel()
	ctx, cancelTime := context.WithTimeout(ctx, dialTime)
	defer cancelTime()
	for _, free := range []chan struct{}{b.dials, s.dials} {
		select {
		case free <- struct{}{}:
			defer func() { <-free }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	conn, err := b.Dial(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	f, err := fileOf(conn)
	if err != nil {
		return nil, err
	}
	return []*os.File{f}, nil
}

// pipeFS is the file system of pipes without a name (PIPEFS_MAGIC in linux/magic.h).
const pipeFS = 0x50495045

// mayGive says why the worker may not give one of the files away: it is not a pipe that
// the worker made.
func (s *Server) mayGive(files []*os.File) error {
	for _, f := range files {
		var st unix.Stat_t
		var fs unix.Statfs_t
		fd := int(f.Fd())
		if err := errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO || fs.Type != pipeFS || st.Uid != s.cfg.UID {
			return errors.New("privsep: not a pipe of the worker's own")
		}
	}
	return nil
}

// close removes a sandbox. One whose start hangs is not waited for: its processes are
// killed, which is all that can be done about it.
func (s *Server) close(number uint32, b *box) error {
	s.mu.Lock()
	again := b.closed
	b.closed = true
	s.mu.Unlock()
	if again {
		return fmt.Errorf("privsep: there is no sandbox %d", number)
	}
	b.end()
	timer := time.NewTimer(removalTime)
	defer timer.Stop()
	select {
	case b.turn <- struct{}{}:
		defer func() { <-b.turn }()
	case <-timer.C:
	}
	ctx, cancel := context.WithTimeout(context.Background(), removalTime)
	defer cancel()
	err := b.Close(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.boxes, number)
	return err
}
