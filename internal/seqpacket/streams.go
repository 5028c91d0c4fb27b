package seqpacket

import (
	"net"
	"os"
	"sync"
)

// backlog is how many connections of Streams wait to be accepted.
const backlog = 64

// Streams is a listener of connections that were received as files. Its methods are safe for
// concurrent use. Use [NewStreams].
type Streams struct {
	conns chan net.Conn // closed by Close

	mu     sync.Mutex // held while a connection is put into conns
	closed bool
}

// NewStreams returns a listener without connections.
func NewStreams() *Streams { return &Streams{conns: make(chan net.Conn, backlog)} }

// Add adds the connection f, which it closes. A connection that is none, or one too many, is
// dropped: who is at its other end reads its end, and may ask for another one.
func (s *Streams) Add(f *os.File) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.conns) == cap(s.conns) {
		c.Close()
		return
	}
	s.conns <- c
}

// Accept waits for a connection. Its error is net.ErrClosed after Close.
func (s *Streams) Accept() (net.Conn, error) {
	if c, ok := <-s.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

// Close closes the connections that nobody has accepted, and drops those that Add gets from
// then on. Its error is nil.
func (s *Streams) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.conns)
	for c := range s.conns {
		c.Close()
	}
	return nil
}

// Addr returns an address without a meaning.
func (s *Streams) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "@stream"} }
