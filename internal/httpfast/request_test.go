package httpfast

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

const next = "GET /2018-06-01/runtime/invocation/next HTTP/1.1"

// answerHead is what aws-lambda-go sends before the body of an answer.
const answerHead = "POST /2018-06-01/runtime/invocation/id/response HTTP/1.1\r\nHost: 127.0.0.1:9001\r\n" +
	"User-Agent: aws-lambda-go/go1.26.8\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n" +
	"Trailer: Lambda-Runtime-Function-Error-Type,Lambda-Runtime-Function-Error-Body\r\nAccept-Encoding: gzip\r\n\r\n"

// fuzzed takes all that a server could want.
var fuzzed = &Server{Wants: func(string, string) bool { return true },
	Trailers: []string{"Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"}}

// FuzzRequest: RT-05. What is taken for a hot request is what net/http would make of
// the same bytes: head, body and trailers, and where the next request begins.
func FuzzRequest(f *testing.F) {
	post := "POST /2018-06-01/runtime/invocation/id/error HTTP/1.1\r\nHost: x\r\n"
	for _, s := range []string{
		next + "\r\nHost: 127.0.0.1:9001\r\nUser-Agent: x\r\n\r\n",
		next + "\r\nHost: x\r\nhost: y\r\n\r\n",
		next + "\r\nHost: x\r\n folded\r\n\r\n",
		next + "\r\n\r\n",
		post + "Content-Length: 2\r\n\r\n{}GET / HTTP/1.1",
		post + "Content-Length: 002\r\nContent-Length: 2\r\n\r\n{}",
		post + "Content-Length: 9\r\nConnection: close\r\n\r\nshort",
		post + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		post + "lambda-runtime-function-xray-error-cause:\r\nContent-Length: 0\r\n\r\n",
		post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		answerHead + "2\r\n{}\r\n0\r\n\r\nGET",
		answerHead + "1;x=y\r\n1\r\n0\r\nLambda-Runtime-Function-Error-Type: t\r\nX: y\r\n\r\n",
		answerHead + "0\r\nX: " + strings.Repeat("y", 3500) + "\r\n\r\n",
		answerHead + "fffffffffffffffff\r\n",
		"POST /2015-03-31/functions/a_b-1/invocations HTTP/1.1\r\nHost: [::1]:9000\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
		"POST //a/../b?c HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /./a//.. HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
		post + "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\n\r\n",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, wide bool) {
		b = b[:min(len(b), 4096)]
		ours, head := fuzzed.request(b)
		if ours == nil {
			return
		}
		in := bufio.NewReader(bytes.NewReader(b))
		theirs, err := http.ReadRequest(in)
		if err != nil {
			t.Fatalf("net/http refuses it: %v", err)
		}
		if theirs.Close || in.Buffered() != len(b)-head {
			t.Errorf("close %v, %d bytes after the head, want %d", theirs.Close, len(b)-head, in.Buffered())
		}
		type view struct {
			method, uri, path, query, proto, host string
			header, trailer                       http.Header
			length                                int64
			coding                                []string
		}
		see := func(r *http.Request) view {
			if len(r.Trailer) == 0 {
				r.Trailer = nil
			}
			return view{r.Method, r.RequestURI, r.URL.Path, r.URL.RawQuery, r.Proto, r.Host, r.Header, r.Trailer, r.ContentLength, r.TransferEncoding}
		}
		if o, h := see(ours), see(theirs); !reflect.DeepEqual(o, h) {
			t.Fatalf("\n%+v, want\n%+v", o, h)
		}
		from := &prefixed{b[head:], closedConn{}}
		body := &Body{Request: ours, from: from}
		body.open(&readers)
		if wide {
			body.Widen()
		}
		defer body.release()
		got, gotErr := io.ReadAll(body)
		want, wantErr := io.ReadAll(theirs.Body)
		if (gotErr == nil) != (wantErr == nil) {
			t.Fatalf("body ends with %v, want %v", gotErr, wantErr)
		}
		if wantErr != nil {
			return
		}
		if rest := body.in.Buffered() + len(from.there); !bytes.Equal(got, want) || rest != in.Buffered() {
			t.Errorf("body %q and %d bytes after it, want %q and %d", got, rest, want, in.Buffered())
		}
		if o, h := see(ours).trailer, see(theirs).trailer; !reflect.DeepEqual(o, h) {
			t.Errorf("trailer %v, want %v", o, h)
		}
	})
}

// closedConn has nothing to read.
type closedConn struct{ net.Conn }

func (closedConn) Read([]byte) (int, error) { return 0, io.EOF }
