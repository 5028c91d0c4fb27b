package httpfast

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// peer is a connection whose hot requests a test sees begin and end.
type peer struct {
	net.Conn
	refuse bool
	last   bool
	events string // B for Begin, I for Idle
}

func (p *peer) Under() net.Conn { return p.Conn }
func (p *peer) Begin() context.Context {
	p.events += "B"
	if p.refuse {
		return nil
	}
	return context.Background()
}
func (p *peer) Idle()      { p.events += "I" }
func (p *peer) Last() bool { return p.last }

// serve sends what the client says and returns all answers, what Serve leaves to net/http,
// and its error.
func serve(t *testing.T, p *peer, h http.HandlerFunc, said string) (answers, rest string, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if p.Conn, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	got := make(chan string)
	go func() {
		_, _ = io.WriteString(client, said) // the server may close earlier
		_ = client.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(client) // as much as there is
		got <- string(b)
	}()
	s := &Server{Handler: h, Wants: func(_, path string) bool { return path == "/hot" }}
	buf := make([]byte, MinRead)
	n, err := s.Serve(p, buf)
	rest = string(buf[:n])
	p.Close()
	return <-got, rest, err
}

const post = "POST /hot HTTP/1.1\r\nHost: x\r\n"

func TestServe(t *testing.T) {
	echo := func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			b = []byte("! " + err.Error())
		}
		_, _ = w.Write(b)
	}
	wide := func(w http.ResponseWriter, r *http.Request) {
		r.Body.(*Body).Widen()
		echo(w, r)
	}
	chunks := func(w http.ResponseWriter, _ *http.Request) {
		c := http.NewResponseController(w)
		for _, piece := range []string{"a", "bc"} {
			_, _ = io.WriteString(w, piece)
			_ = c.Flush()
		}
		_ = w.(*Writer).WriteChunk([]byte("d"), nil, []byte("ef"))
		_ = w.(*Writer).WriteChunk(nil) // would be the end
		_, _ = io.WriteString(w, "g")
	}
	long := strings.Repeat("x", 3*MinRead)
	for _, tt := range []struct {
		name    string
		peer    peer
		handler http.HandlerFunc
		said    string
		bodies  []string
		rest    string
		events  string
		err     error
	}{
		{name: "two, and something else", handler: echo, said: post + "Content-Length: 1\r\n\r\n1" + post + "Content-Length: 1\r\n\r\n2GET / HTTP/1.1\r\n",
			bodies: []string{"1", "2"}, rest: "GET / HTTP/1.1\r\n", events: "BIBI"},
		{name: "refused", peer: peer{refuse: true}, handler: echo, said: post + "\r\n", events: "B", err: io.EOF},
		{name: "the last", peer: peer{last: true}, handler: echo, said: post + "Content-Length: 1\r\n\r\n1" + post + "\r\n", bodies: []string{"1"}, events: "B", err: io.EOF},
		{name: "chunks", handler: chunks, said: post + "\r\n" + post + "\r\n", bodies: []string{"abcdefg", "abcdefg"}, events: "BIBI", err: io.EOF},
		{name: "a long body", handler: echo, said: post + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(long), long) + post + "\r\n", bodies: []string{long, ""}, events: "BIBI", err: io.EOF},
		{name: "a wide body", handler: wide, said: post + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(long), long) + post + "\r\n", bodies: []string{long, ""}, events: "BIBI", err: io.EOF},
		{name: "a body that is cut short", handler: echo, said: post + "Content-Length: 9\r\n\r\n1", bodies: []string{"! unexpected EOF"}, events: "B", err: io.EOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			answers, rest, err := serve(t, &tt.peer, tt.handler, tt.said)
			if rest != tt.rest || !errors.Is(err, tt.err) || tt.peer.events != tt.events {
				t.Errorf("rest %q, %v, %s; want %q, %v, %s", rest, err, tt.peer.events, tt.rest, tt.err, tt.events)
			}
			in := bufio.NewReader(strings.NewReader(answers))
			for i, want := range tt.bodies {
				r, err := http.ReadResponse(in, nil)
				if err != nil {
					t.Fatalf("answer %d: %v", i, err)
				}
				b, err := io.ReadAll(r.Body)
				if string(b) != want || err != nil {
					t.Errorf("answer %d: %.100q, %v", i, b, err)
				}
			}
			if b, _ := io.ReadAll(in); len(b) > 0 {
				t.Errorf("and then %q", b)
			}
		})
	}
}

// What was read ahead behind a wide body and finds no room ends the connection: the client
// may ask again for what has no answer.
func TestServeMoreThanItsBuffer(t *testing.T) {
	p := &peer{}
	said := post + "Content-Length: 8192\r\n\r\n" + strings.Repeat("x", 8192) + strings.Repeat(post+"\r\n", 1000)
	_, rest, err := serve(t, p, func(w http.ResponseWriter, r *http.Request) {
		r.Body.(*Body).Widen()
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	}, said)
	if rest != "" || err != io.EOF {
		t.Errorf("rest %.100q, %v", rest, err)
	}
}
