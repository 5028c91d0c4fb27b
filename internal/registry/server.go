package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/seqpacket"
)

// Pair returns the two ends of a new line, both close-on-exec.
func Pair() (supervisor, control *os.File, err error) {
	return seqpacket.Pair("control", "supervisor")
}

// Config configures a Server. The functions are called from several goroutines; their
// contexts end when the control process closes the line.
type Config struct {
	// Register registers an encoded message.Revision, which is not trusted. files are those
	// of its trees by their positions, nil for one that was not sent; the server closes them.
	// If missing has a bit set, these files are needed, and nothing is registered.
	Register func(ctx context.Context, revision []byte, files []*os.File) (program function.Program, missing uint32, err error)
	// Forget forgets the revision with that number if it has no sandbox.
	Forget func(number uint64) error
	// Connect returns a new connection to the worker, or message.ErrNoWorker.
	Connect func(context.Context) (*os.File, error)
	// DialStore returns a connection to the operator's database. It is nil if there is none.
	DialStore func(context.Context) (*os.File, error)
}

// Server is the supervisor's end of the line. Its methods are safe for concurrent use, except
// for Require and Serve, which are called once and in that order.
type Server struct {
	cfg   Config
	conn  *seqpacket.Conn
	check func() error // see Require; nil once it has succeeded

	life    context.Context // of all requests
	end     context.CancelFunc
	working sync.WaitGroup // requests in progress

	mu       sync.Mutex
	requests map[uint32]struct{} // without an answer, by id
	busy     int                 // requests whose answer has not been sent
	sendErr  error               // why an answer could not be sent; the connection is closed then
}

// NewServer returns a server on f, the supervisor's end of Pair. It closes f, also on an
// error. The caller must call Serve or Close.
func NewServer(f *os.File, cfg Config) (*Server, error) {
	c, err := seqpacket.NewConn(f, requestSize, maxFiles)
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, conn: c, requests: map[uint32]struct{}{}}
	s.life, s.end = context.WithCancel(context.Background())
	return s, nil
}

// Require makes Serve call check before the first request, and return its error.
func (s *Server) Require(check func() error) { s.check = check }

// Close closes the line. Use it instead of Serve if there is nothing to serve.
func (s *Server) Close() error {
	s.end()
	return s.conn.Close()
}

// Serve handles the requests of the control process until that closes the line, for which it
// returns nil, or violates the protocol. Then it calls gone and ends the requests in progress.
// It returns when they have ended, or after endTime: one may hang in a system call.
func (s *Server) Serve(gone func()) error {
	err := s.read()
	gone()
	s.end()
	s.conn.Close()
	ended := make(chan struct{})
	go func() { s.working.Wait(); close(ended) }()
	timer := time.NewTimer(endTime)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
	}
	return err
}

// endTime limits the wait for requests in progress when the control process has gone.
const endTime = 10 * time.Second

// Stop asks the control process to shut down. It does not wait.
func (s *Server) Stop() error { return s.push(reply{}, nil) }

// Push sends the control process a connection of the worker, which the caller still owns. It
// does not wait: the error is seqpacket.ErrFull if the process does not read.
func (s *Server) Push(stream *os.File) error {
	return s.push(reply{missing: isStream}, []*os.File{stream})
}

func (s *Server) push(r reply, files []*os.File) error {
	b, err := r.encode()
	if err != nil {
		return err
	}
	return s.conn.Push(b, files)
}

// read receives requests until the connection ends or the control process violates the
// protocol.
func (s *Server) read() error {
	for {
		b, files, err := s.conn.Receive()
		switch {
		case errors.Is(err, io.EOF):
			return s.endCause()
		case err != nil:
			return fmt.Errorf("receive from the control process: %w", err)
		}
		if s.check != nil {
			if err := s.check(); err != nil {
				seqpacket.CloseAll(files)
				return fmt.Errorf("check the control process: %w", err)
			}
			s.check = nil
		}
		r, err := decodeRequest(b, len(files))
		if err == nil {
			err = s.begin(r, files)
		}
		if err != nil {
			seqpacket.CloseAll(files)
			return fmt.Errorf("the control process violates the protocol: %w", err)
		}
	}
}

// endCause returns why the connection has ended: nil if the control process has closed it.
func (s *Server) endCause() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sendErr == nil || errors.Is(s.sendErr, unix.EPIPE) || errors.Is(s.sendErr, unix.ECONNRESET) {
		return nil
	}
	return fmt.Errorf("send an answer to the control process: %w", s.sendErr)
}

// begin starts a goroutine for a request, which closes its files. It returns an error if the
// request violates the protocol.
func (s *Server) begin(r request, files []*os.File) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, used := s.requests[r.id]; used {
		return fmt.Errorf("the request id %d is in use", r.id)
	}
	if s.busy >= 2*maxRequests { // an answer may be on its way when the client counts it as come
		return fmt.Errorf("more than %d requests at once", s.busy)
	}
	s.requests[r.id] = struct{}{}
	s.busy++
	s.working.Go(func() {
		a, give, err := s.work(r, files)
		seqpacket.CloseAll(files)
		if err != nil {
			text := err.Error()
			a = reply{err: text[:min(len(text), maxReply/2)], kinds: message.KindsOf(err)}
		}
		s.answer(r.id, a, give)
	})
	return nil
}

// work performs a request. It returns the answer and the files to send with it.
func (s *Server) work(r request, files []*os.File) (a reply, give []*os.File, err error) {
	var f *os.File
	switch r.op {
	case opRegister:
		trees := make([]*os.File, message.MaxTrees)
		for i := range trees {
			if r.value&(1<<i) != 0 {
				trees[i], files = files[0], files[1:]
			}
		}
		var program function.Program
		program, a.missing, err = s.cfg.Register(s.life, r.revision, trees)
		if a.missing == 0 {
			a.program = &program
		}
		return a, nil, err
	case opForget:
		return a, nil, s.cfg.Forget(r.value)
	case opConnect:
		f, err = s.cfg.Connect(s.life)
	case opDialStore:
		if s.cfg.DialStore == nil {
			return a, nil, errors.ErrUnsupported
		}
		f, err = s.cfg.DialStore(s.life)
	}
	if err != nil {
		return a, nil, err
	}
	return a, []*os.File{f}, nil
}

// answer sends the answer to the request id with files, which it closes.
func (s *Server) answer(id uint32, a reply, files []*os.File) {
	defer seqpacket.CloseAll(files)
	a.id = id
	b, err := a.encode()
	if err != nil {
		b, _ = reply{id: id, err: err.Error()}.encode() // small enough
		files = nil
	}
	s.mu.Lock()
	delete(s.requests, id) // before the control process can use the id again
	s.mu.Unlock()
	err = s.conn.Send(b, files)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy--
	if err == nil {
		return
	}
	// The control process has exited, or would wait for this answer for ever: close the
	// connection, so that both ends read its end.
	if s.sendErr == nil {
		s.sendErr = err
	}
	_ = s.conn.CloseWrite()
	_ = s.conn.CloseRead()
}
