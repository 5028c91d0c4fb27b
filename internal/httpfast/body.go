package httpfast

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httputil"
	"net/textproto"
	"sync"
)

// wideRead is what is read ahead of a body that Widen was called of.
const wideRead = 64 << 10

// Body is the body of a hot request. Chunks and trailers are read by the standard library.
type Body struct {
	*http.Request
	from  *prefixed
	pool  *sync.Pool // that in is of
	in    *bufio.Reader
	body  io.Reader
	left  int64 // of a Content-Length
	ended error // io.EOF at its end, or what went wrong
}

// open begins to read, with a reader of a pool.
func (b *Body) open(pool *sync.Pool) {
	b.pool, b.in = pool, pool.Get().(*bufio.Reader)
	b.in.Reset(b.from)
	if b.TransferEncoding != nil {
		b.body = httputil.NewChunkedReader(b.in)
	} else if b.left = b.ContentLength; b.left == 0 {
		b.ended = io.EOF
	}
}

func (b *Body) release() {
	b.in.Reset(nil)
	b.pool.Put(b.in)
}

// Widen has the body read in large pieces, for one that is long. It must be called before
// the first Read.
func (b *Body) Widen() {
	b.release()
	b.open(&wideReaders)
}

// Read implements io.Reader.
func (b *Body) Read(p []byte) (n int, err error) {
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
// it is not longer than MinRead.
func (b *Body) trailer() error {
	for n := 2; ; n = b.in.Buffered() + 1 {
		if n > MinRead {
			return errTrailer
		}
		if _, err := b.in.Peek(n); err != nil {
			return errTrailer
		}
		there, _ := b.in.Peek(min(b.in.Buffered(), MinRead))
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

var errTrailer = errors.New("trailer of a body is malformed or too long")

// Close implements io.Closer.
func (b *Body) Close() error { return nil }

var (
	crlf    = []byte("\r\n")
	headEnd = []byte("\r\n\r\n")
)
