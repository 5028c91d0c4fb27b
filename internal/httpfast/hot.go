// Package httpfast serves what a server is asked all day long without net/http, which makes
// goroutines, contexts and deadlines for each request that cost more than the answers.
// A connection serves its hot requests by itself, in the Read with which net/http waits
// for the next request, as long as nothing else is asked: what begins with anything but a hot
// request whose head has come in one piece is handed on, and so is all that follows on
// that connection. What is taken for hot is what net/http would make of the same bytes.
package httpfast

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"sync"
)

// MinRead is the least room for a hot request's head: p of Serve must have it. It is also
// what is read ahead of a body, and so long a trailer may be. It is net/http's size.
const MinRead = 4 << 10

// strayBytes is how many bytes of line ends are skipped behind the body of a POST, which
// old clients sent there; as in net/http.
const strayBytes = 4

// Server says which requests are hot, and answers them. It must not change in use.
type Server struct {
	Handler  http.Handler
	Wants    func(method, path string) bool // of GET or POST; the path has letters, digits and -._/ only
	Trailers []string                       // those that a body may announce, as Header has them
}

// Conn is a connection as its owner sees it. All calls come from the goroutine in Serve.
type Conn interface {
	// Under is what is read and written.
	Under() net.Conn
	// Begin says that the head of a hot request is complete, and gives the context of the
	// request. If it is nil the request is not served, and the connection ends. A handler
	// that has closed the connection has ended its context.
	Begin() context.Context
	// Idle says that the request has its answer, and the next is waited for.
	Idle()
	// Last tells whether the answer that is about to go out ends the connection.
	Last() bool
}

// Serve serves hot requests until there is something else to read: its first n
// bytes are in p.
func (s *Server) Serve(c Conn, p []byte) (n int, err error) {
	for stray := 0; ; {
		if n == 0 {
			if n, err = c.Under().Read(p); n == 0 || err != nil {
				return n, err
			}
		}
		for ; stray > 0 && n > 0 && (p[0] == '\r' || p[0] == '\n'); stray-- {
			n = copy(p, p[1:n])
		}
		if n == 0 {
			continue
		}
		r, head := s.request(p[:n])
		if r == nil {
			return n, nil
		}
		ctx := c.Begin()
		if ctx == nil {
			return 0, io.EOF
		}
		if n, err = s.serveOne(c, r.WithContext(ctx), p, p[head:n]); err != nil {
			return 0, io.EOF // to net/http it was never there
		}
		if stray = 0; r.Method == http.MethodPost {
			stray = strayBytes
		}
		c.Idle()
	}
}

// serveOne serves r, of whose body the first bytes are there, and moves what follows it
// to the beginning of p. After an error the connection is of no use.
func (s *Server) serveOne(c Conn, r *http.Request, p, there []byte) (int, error) {
	from := &prefixed{there, c.Under()}
	body := &Body{Request: r, from: from}
	body.open(&readers)
	defer body.release()
	r.Body = body
	w := &Writer{c: c, conn: c.Under(), body: body, header: http.Header{}}
	s.Handler.ServeHTTP(w, r)
	if err := w.end(); err != nil {
		return 0, err
	}
	rest, _ := body.in.Peek(body.in.Buffered()) // of the next request, or none
	if len(rest)+len(from.there) > len(p) {
		return 0, bufio.ErrBufferFull // asked for so much ahead behind a wide body; may be asked again
	}
	n := copy(p, rest)
	return n + copy(p[n:], from.there), nil // it lies further back in p than what the reader had before it
}

var (
	readers     = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, MinRead) }}
	wideReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, wideRead) }}
)

// prefixed is a connection of which something has been read already.
type prefixed struct {
	there []byte
	net.Conn
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.there) > 0 {
		n := copy(b, p.there)
		p.there = p.there[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}
