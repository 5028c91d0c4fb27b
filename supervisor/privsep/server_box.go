package privsep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/internal/descriptor"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/tracing"
)

// box is the supervisor's state of one sandbox that the worker has.
type box struct {
	Hosted
	revision uint64 // its number

	life   context.Context // ends when a request to close the sandbox arrives
	end    context.CancelFunc
	dials  chan struct{}     // semaphore of connection attempts into the sandbox
	steps  *tracing.Recorder // nil without tracing
	closed bool              // guarded by Server.mu

	token chan struct{} // capacity 1; holding it serializes requests; see Server.take
	sent  int           // how many of its files the worker has; guarded by token
}

// Limits of connection attempts into sandboxes. Each holds a thread until the listener
// inside accepts it.
const (
	maxDials    = 128             // concurrent attempts
	maxBoxDials = 2               // concurrent attempts into one sandbox
	dialTime    = 5 * time.Second // for one attempt, including the wait for its turn
)

// numbers returns the positions of the bits that are set.
func numbers(set uint64) (list []int) {
	for ; set != 0; set &= set - 1 {
		list = append(list, bits.TrailingZeros64(set))
	}
	return list
}

// domain returns the domain whose process created the connection f, which the worker has
// accepted.
func (b *box) domain(ctx context.Context, f *os.File) ([]string, error) {
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("not a connection: %w", err)
	}
	defer conn.Close()
	domain, err := b.Domain(ctx, conn)
	return []string{domain}, err
}

// upstream returns a socket that is connected to a name server. arg is that of opUpstream.
func (s *Server) upstream(ctx context.Context, arg uint32) ([]*os.File, error) {
	if s.cfg.Upstream == nil {
		return nil, errors.New("no network of this daemon allows name lookups")
	}
	network := "udp"
	if arg&streamed != 0 {
		network = "tcp"
	}
	conn, err := s.cfg.Upstream(ctx, network, int(arg&^streamed))
	if err != nil {
		return nil, err
	}
	return socketsOf(conn)
}

// connect returns a connection to the control process.
func (s *Server) connect(ctx context.Context) ([]*os.File, error) {
	if s.cfg.Connect == nil {
		return nil, message.ErrNoControl
	}
	f, err := s.cfg.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return []*os.File{f}, nil
}

// socketsOf returns duplicates of the sockets in the list, and closes the originals, so that
// this process no longer polls them.
func socketsOf(list ...io.Closer) (files []*os.File, err error) {
	for _, s := range list {
		if socket, ok := s.(interface{ File() (*os.File, error) }); !ok {
			err = errors.Join(err, fmt.Errorf("%T is not a socket", s))
		} else if f, e := socket.File(); e != nil {
			err = errors.Join(err, e)
		} else {
			files = append(files, f)
		}
		s.Close()
	}
	if err != nil {
		closeAll(files)
		return nil, err
	}
	return files, nil
}

// create creates a sandbox of the revision with that number.
func (s *Server) create(ctx context.Context, revision uint64) (reply, []*os.File, error) {
	b := &box{revision: revision, token: make(chan struct{}, 1), dials: make(chan struct{}, maxBoxDials)}
	b.token <- struct{}{} // until the answer is complete: a worker could guess the number
	if s.cfg.Traced {
		b.steps = new(tracing.Recorder)
	}
	hosted, err := s.cfg.Create(b.recorded(ctx), revision)
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
	<-b.token
	if err != nil {
		closeAll(give)
		return reply{}, nil, errors.Join(err, s.close(n, b))
	}
	return reply{n: n, text: []string{b.ID(), b.CgroupPath(), roles, steps, strconv.Itoa(sockets)}}, give, nil
}

// take waits for the token of b, which the caller must give back by receiving from b.token.
// It fails if b is closed.
func (s *Server) take(ctx context.Context, b *box) error {
	ctx, cancel := b.whileAlive(ctx)
	defer cancel()
	select {
	case b.token <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.closed {
		<-b.token
		return errors.New("the sandbox is closed")
	}
	return nil
}

// sockets returns the sockets on which the worker serves the sandbox: the listener of the
// Runtime API and, with network egress, those for name lookups, UDP first.
func (b *box) sockets() ([]*os.File, error) {
	if udp, tcp := b.Lookups(); udp != nil {
		return socketsOf(b.Listener(), udp, tcp)
	}
	return socketsOf(b.Listener())
}

// recorded returns a context that records spans, if tracing is on.
func (b *box) recorded(ctx context.Context) context.Context {
	if b.steps == nil {
		return ctx
	}
	return b.steps.Context(ctx)
}

// newSteps returns the spans that have ended since the last call, in the form that the
// worker reads.
func (b *box) newSteps() (string, error) {
	if b.steps == nil {
		return "", nil
	}
	text, err := json.Marshal(b.steps.Take())
	return string(text), err
}

// newFiles returns duplicates of the files that the worker does not have yet, and their
// roles. The caller holds the token.
func (b *box) newFiles() (files []*os.File, roles string, err error) {
	all := b.Files()
	for _, f := range all[b.sent:] {
		err := descriptor.Use(f.File, func(fd int) error {
			second, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
			if err == nil {
				files = append(files, os.NewFile(uintptr(second), f.Name()))
			}
			return os.NewSyscallError("fcntl", err)
		})
		if err != nil {
			closeAll(files)
			return nil, "", err
		}
		roles += string(rune(f.Role))
	}
	b.sent = len(all)
	return files, roles, nil
}

// start creates a domain. The caller holds the token.
func (b *box) start(ctx context.Context, domain string) (reply, []*os.File, error) {
	ctx, cancel := b.whileAlive(ctx)
	defer cancel()
	conn, err := b.Start(b.recorded(ctx), domain)
	if err != nil {
		return reply{}, nil, err
	}
	defer conn.Close() // the worker gets a duplicate
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

// dial connects to a port on the sandbox's loopback address.
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
	return socketsOf(conn)
}

// pipeFS is the file system type of unnamed pipes (PIPEFS_MAGIC in linux/magic.h).
const pipeFS = 0x50495045

// mayGive returns an error if one of the files is not a pipe that the worker created. The
// worker may change the owner of such pipes only.
func (s *Server) mayGive(files []*os.File) error {
	for _, f := range files {
		var st unix.Stat_t
		var fs unix.Statfs_t
		err := descriptor.Use(f, func(fd int) error { return errors.Join(unix.Fstat(fd, &st), unix.Fstatfs(fd, &fs)) })
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO || fs.Type != pipeFS || st.Uid != s.cfg.UID {
			return errors.New("the file is not a pipe of the worker")
		}
	}
	return nil
}

// close removes a sandbox. If another request holds the token for too long, because the
// start of a domain hangs for example, close continues without the token: Close kills the
// processes all the same.
func (s *Server) close(number uint32, b *box) error {
	s.mu.Lock()
	closed := b.closed
	b.closed = true
	s.mu.Unlock()
	if closed {
		return fmt.Errorf("sandbox %d: %w", number, message.ErrUnknownSandbox)
	}
	b.end()
	timer := time.NewTimer(removalTime)
	defer timer.Stop()
	select {
	case b.token <- struct{}{}:
		defer func() { <-b.token }()
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
