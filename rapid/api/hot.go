package api

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A runtime asks two things all day long: for the next event, and that its answer be
// taken. For these net/http makes goroutines, contexts and deadlines that cost more
// than the answers. So a connection serves them by itself, in the Read with which
// net/http waits for the next request, as long as nothing else is asked: what begins
// with anything but a hot request whose head has come in one piece is handed on, and so
// is all that follows on that connection.

// hotRead is the least room for a hot request's head, and what is read ahead of a body;
// so long a trailer may be. It is net/http's size.
const hotRead = 4 << 10

// strayBytes is how many bytes of line ends are skipped behind the body of a POST, which
// old clients sent there; as in net/http.
const strayBytes = 4

// serveHot serves hot requests until there is something else to read: its first n
// bytes are in p.
func (c *conn) serveHot(p []byte) (n int, err error) {
	for stray := 0; ; {
		if n == 0 {
			if n, err = c.Conn.Read(p); n == 0 || err != nil {
				return n, err
			}
		}
		for ; stray > 0 && n > 0 && (p[0] == '\r' || p[0] == '\n'); stray-- {
			n = copy(p, p[1:n])
		}
		if n == 0 {
			continue
		}
		c.phase.Store(int32(begun))
		r, head := hotRequest(p[:n])
		if r == nil {
			return n, nil
		}
		if n, err = c.serveOne(r.WithContext(c.ctx), p, p[head:n]); err != nil {
			return 0, io.EOF // to net/http it was never there
		}
		if stray = 0; r.Method == http.MethodPost {
			stray = strayBytes
		}
		c.guard.changed(c, http.StateIdle)
	}
}

// serveOne serves r, of whose body the first bytes are there, and moves what follows it
// to the beginning of p. After an error the connection is of no use.
func (c *conn) serveOne(r *http.Request, p, there []byte) (int, error) {
	c.handle()
	in := &hotBody{Request: r, in: hotReaders.Get().(*bufio.Reader)}
	defer in.release()
	from := &prefixed{there, c.Conn}
	in.in.Reset(from)
	in.open()
	r.Body = in
	w := &hotWriter{c: c, body: in, header: http.Header{}}
	c.guard.handler.ServeHTTP(w, r)
	if err := w.end(); err != nil {
		return 0, err
	}
	rest, _ := in.in.Peek(in.in.Buffered()) // of the next request, or none
	n := copy(p, rest)
	return n + copy(p[n:], from.there), nil // it lies further back in p than what the reader had before it
}

var hotReaders = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, hotRead) }}

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

// hotBody is the body of a hot request.
type hotBody struct {
	*http.Request
	in    *bufio.Reader
	body  io.Reader
	left  int64 // of a Content-Length
	ended error // io.EOF at its end, or what went wrong
}

func (b *hotBody) open() {
	if b.TransferEncoding != nil {
		b.body = httputil.NewChunkedReader(b.in)
	} else if b.left = b.ContentLength; b.left == 0 {
		b.ended = io.EOF
	}
}

func (b *hotBody) release() {
	b.in.Reset(nil)
	hotReaders.Put(b.in)
}

// Read implements io.Reader.
func (b *hotBody) Read(p []byte) (n int, err error) {
	switch {
	case b.ended != nil:
		return 0, b.ended
	case b.body != nil:
		n, err = b.body.Read(p)
		if err == io.EOF {
			err = b.trailer()
		}
	default:
		n, err = b.in.Read(p[:min(int64(len(p)), b.left)])
		b.left -= int64(n)
		switch {
		case b.left == 0:
			err = io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
	}
	b.ended = err
	return n, err
}

// trailer reads what follows the last chunk: io.EOF if it is well-formed. As in net/http
// it is not longer than the reader's buffer.
func (b *hotBody) trailer() error {
	for n := 2; ; n = b.in.Buffered() + 1 {
		if _, err := b.in.Peek(n); err != nil {
			return errTrailer
		}
		there, _ := b.in.Peek(b.in.Buffered())
		if bytes.HasPrefix(there, crlf) {
			_, _ = b.in.Discard(len(crlf))
			return io.EOF
		}
		if bytes.Contains(there, headEnd) {
			break
		}
	}
	h, err := textproto.NewReader(b.in).ReadMIMEHeader()
	if err != nil {
		return errTrailer
	}
	if b.Trailer == nil { // none was announced
		b.Trailer = make(http.Header, len(h))
	}
	for name, values := range h {
		b.Trailer[name] = values
	}
	return io.EOF
}

var errTrailer = errors.New("api: trailer of a body is malformed or too long")

// Close implements io.Closer.
func (b *hotBody) Close() error { return nil }

// hotWriter is the http.ResponseWriter of a hot request. What is written is held back
// until its head is complete, so that both are one system call.
type hotWriter struct {
	c      *conn
	body   *hotBody
	header http.Header
	status int
	held   []byte
	sent   bool // the head is
	last   bool // no other request can follow
	err    error
}

// Limits of net/http for what it does with a body that the handler has not read.
const (
	maxUnread = 256 << 10
	goodbye   = 500 * time.Millisecond
)

// maxHeld is how much of an answer is copied to go out together with its head.
const maxHeld = 16 << 10

// Header implements http.ResponseWriter.
func (w *hotWriter) Header() http.Header { return w.header }

// WriteHeader implements http.ResponseWriter.
func (w *hotWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

// Write implements http.ResponseWriter. Bytes that are more than Content-Length are not
// checked: the handlers are ours.
func (w *hotWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if !w.sent && (len(p) <= maxHeld || w.header["Content-Length"] == nil) {
		w.held = append(w.held, p...)
		return len(p), nil
	}
	w.flush()
	if w.err == nil {
		_, w.err = w.c.Conn.Write(p)
	}
	return len(p), w.err
}

// FlushError sends what is there, unless its length is not known yet. Together with
// http.ResponseController it is Flush.
func (w *hotWriter) FlushError() error {
	if w.header["Content-Length"] != nil {
		w.flush()
	}
	return w.err
}

// flush sends the head and what is held back. Before, the request is read to its end,
// for a client that does not read before it has sent all; if it is too long,
// the connection ends after the answer.
func (w *hotWriter) flush() {
	if w.sent {
		return
	}
	w.sent = true
	w.WriteHeader(http.StatusOK)
	if w.body.ended == nil && w.body.left < maxUnread {
		_, _ = io.CopyN(io.Discard, w.body, maxUnread+1) // ended tells
	}
	if w.last = w.body.ended != io.EOF; w.last {
		w.header["Connection"] = []string{"close"}
	}
	out := hotBuffers.Get().(*bytes.Buffer)
	defer hotBuffers.Put(out)
	out.Reset()
	b := append(out.AvailableBuffer(), "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(w.status), 10)
	b = append(append(b, ' '), http.StatusText(w.status)...)
	b = append(b, "\r\nDate: "...)
	b = append(time.Now().UTC().AppendFormat(b, http.TimeFormat), "\r\n"...)
	out.Write(b)
	_ = w.header.Write(out) // a buffer takes all
	out.WriteString("\r\n")
	out.Write(w.held)
	_, w.err = w.c.Conn.Write(out.Bytes())
}

var hotBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }}

// end completes the answer. An error means that the connection is of no use any more.
func (w *hotWriter) end() error {
	if !w.sent && w.header["Content-Length"] == nil {
		w.header["Content-Length"] = []string{strconv.Itoa(len(w.held))}
	}
	w.flush()
	switch {
	case w.c.ctx.Err() != nil: // the handler has closed it
		return net.ErrClosed
	case w.err != nil:
		return w.err
	case w.last:
		_ = w.c.CloseWrite()
		_ = w.c.Conn.SetReadDeadline(time.Now().Add(goodbye))
		_, _ = io.Copy(io.Discard, w.c.Conn) // so that our answer is not lost in a reset
		return io.EOF
	}
	return nil
}

var (
	crlf    = []byte("\r\n")
	headEnd = []byte("\r\n\r\n")
)

const (
	hotNext   = "GET " + runtimeBase + "runtime/invocation/next HTTP/1.1"
	hotAnswer = "POST " + runtimeBase + "runtime/invocation/"
)

// hotRequest makes a request of the head at the beginning of b, and tells its length. It
// is nil, and net/http will judge, if b has no whole head or there is anything in it that
// hot requests need not have: what comes from here must be what net/http would make of
// it. The body is the caller's.
func hotRequest(b []byte) (r *http.Request, length int) {
	end := bytes.Index(b, headEnd)
	if end < 0 {
		return nil, 0
	}
	line, lines, _ := strings.Cut(string(b[:end]), "\r\n")
	target, ok := hotTarget(line)
	if !ok {
		return nil, 0
	}
	method, _, _ := strings.Cut(line, " ")
	r = &http.Request{Method: method, URL: &url.URL{Path: target}, RequestURI: target, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, 8)}
	values := make([]string, 0, 8) // of all headers, which saves allocations
	for more := lines != ""; more; {
		line, lines, more = strings.Cut(lines, "\r\n")
		name, value, ok := hotHeader(line)
		if !ok || !hotMeaning(r, name, value) {
			return nil, 0
		}
		if name == "Host" || name == "Transfer-Encoding" || name == "Trailer" {
			continue
		}
		if r.Header[name] != nil { // once is enough
			return nil, 0
		}
		values = append(values, value)
		r.Header[name] = values[len(values)-1 : len(values) : len(values)]
	}
	chunked, sized := r.TransferEncoding != nil, r.Header["Content-Length"] != nil
	switch {
	case r.Host == "", chunked && sized, r.Trailer != nil && !chunked, method == http.MethodGet && (chunked || sized):
		return nil, 0
	case chunked:
		r.ContentLength = -1
	}
	return r, end + len(headEnd)
}

// hotTarget returns the path of a hot request's line.
func hotTarget(line string) (string, bool) {
	if line == hotNext {
		return runtimeBase + "runtime/invocation/next", true
	}
	rest, ok := strings.CutPrefix(line, hotAnswer)
	if !ok {
		return "", false
	}
	rest, ok = strings.CutSuffix(rest, " HTTP/1.1")
	id, call, _ := strings.Cut(rest, "/")
	if !ok || call != "response" && call != "error" || id == "" {
		return "", false
	}
	for i := range len(id) {
		if c := id[i]; !isAlnum(c) && c != '-' {
			return "", false
		}
	}
	return line[len("POST ") : len(line)-len(" HTTP/1.1")], true
}

func isAlnum(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// hotHeader splits a header line.
func hotHeader(line string) (name, value string, ok bool) {
	name, value, ok = strings.Cut(line, ":")
	if !ok || name == "" {
		return "", "", false
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && c != '-' {
			return "", "", false
		}
	}
	for i := range len(value) {
		if c := value[i]; c < ' ' && c != '\t' || c >= 0x7f {
			return "", "", false
		}
	}
	return textproto.CanonicalMIMEHeaderKey(name), strings.Trim(value, " \t"), true
}

// hotMeaning notes what a header means for the connection; false if that is more than a
// hot request may want.
func hotMeaning(r *http.Request, name, value string) bool {
	switch name {
	case "Host":
		if r.Host != "" || value == "" {
			return false
		}
		for i := range len(value) {
			if c := value[i]; !isAlnum(c) && !strings.ContainsRune(".:-_[]", rune(c)) {
				return false
			}
		}
		r.Host = value
	case "Content-Length":
		n, err := strconv.ParseUint(value, 10, 63)
		r.ContentLength = int64(n)
		return err == nil
	case "Transfer-Encoding":
		if r.TransferEncoding != nil || value != "chunked" {
			return false
		}
		r.TransferEncoding = []string{value}
	case "Trailer":
		if r.Trailer != nil {
			return false
		}
		r.Trailer = http.Header{}
		for _, t := range strings.Split(value, ",") {
			t = textproto.CanonicalMIMEHeaderKey(strings.Trim(t, " \t"))
			if t != "Lambda-Runtime-Function-Error-Type" && t != "Lambda-Runtime-Function-Error-Body" {
				return false
			}
			r.Trailer[t] = nil
		}
	case "Connection":
		return strings.EqualFold(value, "keep-alive")
	case "Expect", "Upgrade", "Pragma", "Http2-Settings":
		return false
	}
	return true
}
