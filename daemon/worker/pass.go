package worker

import (
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/lambda/sigv4"
)

// Time limits of requests that are passed on. An upload may take long, but must go on.
const (
	passReadTime  = time.Minute      // for the next bytes of a body, while control wants them
	passWriteTime = 30 * time.Second // for a client to take what it is sent
	passWaitTime  = 5 * time.Minute  // for the head of the answer, after the request is sent
)

// passer passes requests that are no invocations to the control process, which answers them.
// What a signature covers arrives there as the client sent it: method, target, Host, the values
// of headers, and the body. A request for which that is impossible is refused. Bodies are
// streamed both ways.
type passer struct {
	parse func(*http.Request) (*sigv4.Signature, error)
	proxy *httputil.ReverseProxy
}

// newPasser returns a passer that refuses what parse refuses, such as that of an authorizer.
// onError receives errors that the client does not get.
func newPasser(l line, parse func(*http.Request) (*sigv4.Signature, error), onError func(error)) *passer {
	transport := newTransport(l, passConns)
	transport.ExpectContinueTimeout = passWaitTime // control asks for the body when it wants it
	transport.ResponseHeaderTimeout = passWaitTime
	return &passer{parse, &httputil.ReverseProxy{
		Rewrite:       rewrite,
		Transport:     transport,
		FlushInterval: -1, // what has come goes on at once
		BufferPool:    &copyBuffers{sync.Pool{New: func() any { return new(copyBuffer) }}},
		ErrorLog:      log.New(io.Discard, "", 0), // the client learns that its connection ends
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() != nil { // the client has gone
				panic(http.ErrAbortHandler)
			}
			w.Header().Set("Connection", "close") // the rest of the body may be on its way
			if unread, ok := errors.AsType[*bodyError](err); ok {
				unread.fault().Write(w)
				return
			}
			if !errors.Is(err, message.ErrNoControl) {
				onError(fmt.Errorf("pass a request on to the control process: %w", err))
			}
			errControl.Write(w)
		},
	}}
}

// close closes the connections that are not in use.
func (p *passer) close() { p.proxy.Transport.(*http.Transport).CloseIdleConnections() }

// ServeHTTP passes one request on.
func (p *passer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := checkPassed(r); err != nil {
		err.Write(w)
		return
	}
	s, err := p.parse(r)
	if fault, ok := errors.AsType[*invoke.Fault](err); ok {
		fault.Write(w)
		return
	}
	for name := range r.Header {
		if strings.HasPrefix(name, message.HeaderPrefix) {
			delete(r.Header, name)
		}
	}
	if s == nil && !isCode(r) {
		r.Header.Set(message.UnsignedHeader, "1")
	}
	delete(r.Header, "Upgrade") // no operation has another protocol
	conn := http.NewResponseController(w)
	if r.Body != nil && r.ContentLength != 0 {
		over := make(chan struct{})
		defer close(over)
		body := &passedBody{ReadCloser: r.Body, conn: conn, left: r.ContentLength, over: over}
		r = r.WithContext(r.Context()) // net/http must find the body that it knows: it may expect 100 Continue
		r.Body = body
	} else {
		_ = conn.SetReadDeadline(time.Time{})
	}
	p.proxy.ServeHTTP(&passedAnswer{w, conn}, r)
}

// isCode reports whether a request is for a URL that control has made for it.
func isCode(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, message.CodePath) }

// checkPassed refuses a request that net/http would not pass on as it is.
func checkPassed(r *http.Request) *invoke.Fault {
	bad := func(text string) *invoke.Fault {
		return &invoke.Fault{Status: http.StatusBadRequest, Type: "InvalidRequestContentException", Message: text}
	}
	lengths := r.Header["Content-Length"]
	switch {
	case !strings.HasPrefix(r.RequestURI, "/") || strings.HasPrefix(r.RequestURI, "//"):
		return &invoke.Fault{Status: http.StatusNotFound, Type: "UnknownOperationException", Message: "No operation of the Lambda API has this path."}
	case !isPlainHost(r.Host):
		return bad("The header Host must be a name or an address, with or without a port.")
	case len(lengths) > 1 || len(lengths) == 1 && lengths[0] != strconv.FormatInt(r.ContentLength, 10):
		return bad("The header Content-Length must be one decimal number without leading zeros.")
	case len(r.Header["User-Agent"]) > 1:
		return bad("The request has several headers User-Agent. Send one.")
	}
	return nil
}

// isPlainHost reports whether a Host header has characters only that stay as they are.
func isPlainHost(host string) bool {
	return host != "" && !strings.ContainsFunc(host, func(c rune) bool {
		return (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && !strings.ContainsRune(".:-_[]", c)
	})
}

// rewrite makes the request to control of that of a client.
func rewrite(r *httputil.ProxyRequest) {
	// The path and the query as they came. The host is only the key of the connection pool; Host
	// is what is sent.
	r.Out.URL = &url.URL{Scheme: "http", Host: message.ControlHost, Opaque: r.In.RequestURI}
	r.Out.Host = r.In.Host
	hop := hopHeaders(r.In.Header)
	for name, values := range r.In.Header {
		if _, stays := r.Out.Header[name]; !stays && !slices.Contains(hop, name) { // X-Forwarded-For and the like
			r.Out.Header[name] = values
		}
	}
	if r.In.Header["User-Agent"] == nil {
		r.Out.Header["User-Agent"] = nil // none, not that of net/http; one without a value is lost
	}
}

// hopHeaders returns the names of the headers that are for one connection only.
func hopHeaders(h http.Header) []string {
	names := []string{"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			names = append(names, http.CanonicalHeaderKey(strings.TrimSpace(name)))
		}
	}
	return names
}

// copyBuffers is an httputil.BufferPool.
type copyBuffers struct{ pool sync.Pool }

type copyBuffer [32 << 10]byte

// Get returns a buffer.
func (b *copyBuffers) Get() []byte { return b.pool.Get().(*copyBuffer)[:] }

// Put takes a buffer of Get back.
func (b *copyBuffers) Put(p []byte) { b.pool.Put((*copyBuffer)(p)) }

// passedBody is the body of a client's request, with a time limit for each Read.
type passedBody struct {
	io.ReadCloser
	conn  *http.ResponseController
	left  int64           // of a Content-Length; negative if it is not known
	ended error           // of all further Reads
	over  <-chan struct{} // closed when the request has its answer
}

// Read reads a part of the body. Its errors are a *bodyError. Once the answer has begun,
// net/http reads what is left of the body by itself. An error would then end the connection
// to control, from which the answer comes, so Read waits until the answer is over.
func (b *passedBody) Read(p []byte) (int, error) {
	if b.ended != nil {
		return 0, b.ended
	}
	_ = b.conn.SetReadDeadline(time.Now().Add(passReadTime)) // if it fails, Read fails too
	n, err := b.ReadCloser.Read(p)
	if b.left >= 0 {
		if b.left -= int64(n); b.left <= 0 {
			err = io.EOF
		}
	}
	switch {
	case err == io.EOF:
		_ = b.conn.SetReadDeadline(time.Time{}) // net/http watches the client from here on
	case errors.Is(err, http.ErrBodyReadAfterClose):
		<-b.over
		err = &bodyError{err}
	case err != nil:
		err = &bodyError{err}
	}
	b.ended = err
	return n, err
}

// A bodyError is an error of the client's connection.
type bodyError struct{ cause error }

func (e *bodyError) Error() string { return "read the body of the request: " + e.cause.Error() }

func (e *bodyError) fault() *invoke.Fault {
	text := "The request body ends before its declared end."
	if errors.Is(e.cause, os.ErrDeadlineExceeded) {
		text = "The request body did not come in time."
	}
	return &invoke.Fault{Status: http.StatusBadRequest, Type: "InvalidRequestContentException", Message: text}
}

// passedAnswer is the answer to a client, with a time limit for each Write.
type passedAnswer struct {
	http.ResponseWriter
	conn *http.ResponseController
}

func (a *passedAnswer) Write(p []byte) (int, error) {
	_ = a.conn.SetWriteDeadline(time.Now().Add(passWriteTime)) // if it fails, Write fails too
	return a.ResponseWriter.Write(p)
}

func (a *passedAnswer) WriteHeader(status int) {
	_ = a.conn.SetWriteDeadline(time.Now().Add(passWriteTime))
	a.ResponseWriter.WriteHeader(status)
}

// Unwrap serves http.ResponseController.
func (a *passedAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
