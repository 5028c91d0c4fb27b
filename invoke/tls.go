package invoke

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// tlsConn is a connection with TLS. Its Close does not wait for the peer, so that the server can
// close any connection at any time.
type tlsConn struct {
	*tls.Conn
	socket *tlsSocket
}

// newTLSConn returns the server's side of c. patience bounds each write that nobody has set a
// deadline for.
func newTLSConn(c net.Conn, cfg *tls.Config, patience time.Duration) *tlsConn {
	s := &tlsSocket{Conn: c, patience: patience}
	return &tlsConn{tls.Server(s, cfg), s}
}

// plainHTTP is the answer to a client that does not use TLS.
const plainHTTP = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" +
	"This address serves HTTPS: use https:// in the URL.\n"

// handshake performs the handshake before the deadline limit, which bounds reading and writing.
// It leaves the connection without a write deadline.
func (c *tlsConn) handshake(limit time.Time) error {
	_ = c.SetDeadline(limit) // if it fails, the handshake fails too
	err := c.Handshake()
	if bad, ok := errors.AsType[tls.RecordHeaderError](err); ok && bad.Conn != nil && isHTTP(bad.RecordHeader) {
		_, _ = io.WriteString(bad.Conn, plainHTTP) // fails only if the client has gone
	}
	_ = c.SetWriteDeadline(time.Time{})
	return err
}

// isHTTP reports whether the first bytes of a connection are those of a request without TLS.
func isHTTP(head [5]byte) bool {
	switch string(head[:]) {
	case "GET /", "HEAD ", "POST ", "PUT /", "OPTIO", "DELET", "PATCH":
		return true
	}
	return false
}

// maxRecord is how much one record of TLS holds.
const maxRecord = 16 << 10

var records = sync.Pool{New: func() any { b := make([]byte, 0, maxRecord); return &b }}

// WriteBuffers writes parts, together in one record if they fit. Otherwise each would have a
// record and a system call of its own.
func (c *tlsConn) WriteBuffers(parts net.Buffers) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if size > maxRecord {
		_, err := parts.WriteTo(c.Conn)
		return err
	}
	b := records.Get().(*[]byte)
	defer records.Put(b)
	joined := (*b)[:0]
	for _, p := range parts {
		joined = append(joined, p...)
	}
	_, err := c.Write(joined)
	return err
}

// Close closes the connection. A client that waits for more is told that there is none, if that
// is possible at once.
func (c *tlsConn) Close() error {
	c.socket.closing.Store(true)
	_ = c.socket.Conn.SetWriteDeadline(time.Unix(1, 0)) // ends a write that the peer holds up
	return c.Conn.Close()
}

// hungUp implements [hungUp]. The peer's last words are encrypted, so that it has gone is known by
// the state of the socket alone: whatever it sends before does not end the wait.
func (c *tlsConn) hungUp() (gone bool) {
	raw, err := c.socket.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return true
	}
	_ = raw.Read(func(fd uintptr) bool { // called again whenever something arrives
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Ppoll(poll, &unix.Timespec{}, nil)
		gone = err == nil && n > 0
		return gone
	})
	return gone
}

// tlsSocket is what a tlsConn reads and writes. TLS writes by itself at times, such as to answer
// a peer that changes its keys: such a write is bounded too.
type tlsSocket struct {
	net.Conn // *net.TCPConn
	patience time.Duration
	limited  atomic.Bool // a write deadline is set
	closing  atomic.Bool // nothing waits for the peer any more
}

// Write implements net.Conn.
func (s *tlsSocket) Write(p []byte) (int, error) {
	if s.closing.Load() {
		return s.writeNow(p)
	}
	if !s.limited.Load() {
		_ = s.Conn.SetWriteDeadline(time.Now().Add(s.patience)) // if it fails, Write fails too
		if s.closing.Load() {                                   // Close must have the last word
			_ = s.Conn.SetWriteDeadline(time.Unix(1, 0))
		}
	}
	return s.Conn.Write(p)
}

// writeNow writes what the kernel takes without waiting.
func (s *tlsSocket) writeNow(p []byte) (n int, err error) {
	raw, err := s.Conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return 0, err
	}
	failed := raw.Control(func(fd uintptr) { n, err = unix.Write(int(fd), p) })
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// SetDeadline implements net.Conn.
func (s *tlsSocket) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

// SetWriteDeadline implements net.Conn. It has no effect on a connection that is being closed.
func (s *tlsSocket) SetWriteDeadline(t time.Time) error {
	if s.closing.Load() {
		return net.ErrClosed
	}
	s.limited.Store(!t.IsZero())
	err := s.Conn.SetWriteDeadline(t)
	if s.closing.Load() {
		return s.Conn.SetWriteDeadline(time.Unix(1, 0))
	}
	return err
}

// TLSConfig returns the configuration for a server with that certificate, for Config.TLS.
func TLSConfig(certificate tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
}

// scheme returns the scheme of the server's URLs.
func (s *Server) scheme() string {
	if s.cfg.TLS != nil {
		return "https"
	}
	return "http"
}
