package httpfast

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Writer is the http.ResponseWriter of a hot request. What is written is held back
// until its head is complete, so that both are one system call. It has what
// http.ResponseController asks for.
type Writer struct {
	c       Conn
	conn    net.Conn
	body    *Body
	header  http.Header
	status  int
	held    []byte
	sent    bool // the head is
	chunked bool // the length was not known then
	last    bool // no other request can follow
	err     error
}

// Limits of net/http for what it does with a body that the handler has not read.
const (
	maxUnread = 256 << 10
	goodbye   = 500 * time.Millisecond
)

// maxHeld is how much of an answer of known length is copied to go out with its head.
const maxHeld = 16 << 10

// Header implements http.ResponseWriter.
func (w *Writer) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write implements http.ResponseWriter. Without a Content-Length all is held until a
// flush or the end. Bytes that are more than Content-Length are not checked: the handlers are ours.
func (w *Writer) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	sized := w.header["Content-Length"] != nil
	if !w.sent && (len(p) <= maxHeld || !sized) {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	if w.flush(); w.chunked {
		return len(p), w.WriteChunk(p)
	}
	if w.err == nil {
		_, w.err = w.conn.Write(p)
	}
	return len(p), w.err
}

// WriteChunk sends parts as one chunk of an answer that was flushed, with one system call
// and no copy. A connection that must copy has a method WriteBuffers.
func (w *Writer) WriteChunk(parts ...[]byte) error {
	size := 0
	for _, p := range parts {
		size += len(p)
	}
	if w.err != nil || size == 0 { // an empty chunk would be the end
		return w.err
	}
	var head [20]byte
	vector := make(net.Buffers, 0, 8)
	vector = append(vector, append(strconv.AppendInt(head[:0], int64(size), 16), crlf...))
	vector = append(append(vector, parts...), crlf)
	if c, ok := w.conn.(interface{ WriteBuffers(net.Buffers) error }); ok {
		w.err = c.WriteBuffers(vector)
	} else {
		_, w.err = vector.WriteTo(w.conn)
	}
	return w.err
}

// FlushError sends what is there. An answer without a Content-Length goes on in chunks.
func (w *Writer) FlushError() error {
	w.chunked = w.chunked || !w.sent && w.header["Content-Length"] == nil
	w.flush()
	return w.err
}

// SetReadDeadline is the connection's.
func (w *Writer) SetReadDeadline(t time.Time) error { return w.conn.SetReadDeadline(t) }

// SetWriteDeadline is the connection's.
func (w *Writer) SetWriteDeadline(t time.Time) error { return w.conn.SetWriteDeadline(t) }

// flush sends the head and what is held back. Before, the request is read to its end,
// so that another can follow, and for a client that does not read before it has sent all.
// If it is too long, the connection ends after the answer; if that is to be the last, the
// request is not read.
func (w *Writer) flush() {
	if w.sent {
		return
	}
	w.sent = true
	w.WriteHeader(http.StatusOK)
	w.last = w.header["Connection"] != nil || w.c.Last()
	if !w.last && w.body.ended == nil && w.body.left < maxUnread {
		_, _ = io.CopyN(io.Discard, w.body, maxUnread+1) // ended tells
	}
	if w.last = w.last || w.body.ended != io.EOF; w.last {
		w.header["Connection"] = []string{"close"}
	}
	if w.chunked {
		w.header["Transfer-Encoding"] = []string{"chunked"}
	}
	out := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(out)
	out.Reset()
	b := append(out.AvailableBuffer(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.status), 10)
	b = append(append(b, ' '), http.StatusText(w.status)...)
	b = append(b, "\r\nDate: "...)
	b = append(time.Now().UTC().AppendFormat(b, http.TimeFormat), crlf...)
	out.Write(b)
	_ = w.header.Write(out) // a buffer takes all
	out.Write(crlf)
	if !w.chunked {
		out.Write(w.held)
	}
	if _, w.err = w.conn.Write(out.Bytes()); w.chunked {
		_ = w.WriteChunk(w.held) // err has it
	}
}

var buffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// end completes the answer. An error means that the connection is of no use any more.
func (w *Writer) end() error {
	if !w.sent && w.header["Content-Length"] == nil && w.status != http.StatusNoContent {
		w.header["Content-Length"] = []string{strconv.Itoa(len(w.held))}
	}
	w.flush()
	if w.chunked && w.err == nil {
		_, w.err = io.WriteString(w.conn, "0\r\n\r\n")
	}
	switch {
	case w.body.Context().Err() != nil: // the handler has closed it
		return net.ErrClosed
	case w.err != nil:
		return w.err
	case w.last:
		if c, ok := w.conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
		_ = w.conn.SetReadDeadline(time.Now().Add(goodbye))
		_, _ = io.Copy(io.Discard, w.conn) // so that our answer is not lost in a reset
		return io.EOF
	}
	return nil
}
