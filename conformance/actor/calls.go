package actor

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/conformance/script"
)

// call makes one request to the API and notes its answer.
func call(ctx context.Context, a *Actor, s script.Step, e *script.Entry) {
	body, length := repeat(a.Expand(s.Data), s.N), max(s.N, int64(len(a.Expand(s.Data))))
	if len(s.Chunks) > 0 {
		body, length = a.chunked(ctx, s.Chunks), -1
	}
	req, err := http.NewRequestWithContext(ctx, s.Method, "http://"+a.API+a.Expand(s.Path), body)
	if err != nil {
		e.Fail(err)
		return
	}
	req.ContentLength = length
	if length == 0 {
		req.Body = http.NoBody
	}
	for k, v := range s.Headers {
		req.Header[http.CanonicalHeaderKey(k)] = []string{a.Expand(v)}
	}
	if len(s.Trailers) > 0 {
		req.Trailer = http.Header{}
		for k, v := range s.Trailers {
			req.Trailer.Set(k, v)
		}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		e.Fail(err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	e.Fail(err)
	e.Status, e.Headers, e.Text, e.N = resp.StatusCode, flat(resp.Header), clip(string(text)), int64(len(text))
	if id := e.Headers[requestHeader]; id != "" { // an event for whoever asks
		a.set("id", id)
	}
}

// chunked is a body that is written bit by bit. It ends early when the request does.
func (a *Actor) chunked(ctx context.Context, chunks []script.Chunk) io.Reader {
	r, w := io.Pipe()
	go func() {
		for _, c := range chunks {
			select {
			case <-time.After(time.Duration(c.AfterMS) * time.Millisecond):
			case <-ctx.Done():
				w.CloseWithError(ctx.Err())
				return
			}
			if _, err := io.Copy(w, repeat(a.Expand(c.Data), c.N)); err != nil {
				w.CloseWithError(err)
				return
			}
		}
		w.Close()
	}()
	return r
}

// raw sends bytes on a connection of its own and notes what comes back, until the end
// of it or for MS.
func raw(ctx context.Context, a *Actor, s script.Step, e *script.Entry) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.API)
	if err != nil {
		e.Fail(err)
		return
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, a.Expand(s.Data)); err != nil {
		e.Fail(err)
		return
	}
	if s.N > 0 {
		if _, err := io.Copy(conn, repeat("", s.N)); err != nil {
			e.Fail(err)
			return
		}
	}
	if s.Method == "end" {
		e.Fail(conn.(*net.TCPConn).CloseWrite())
	}
	if err := conn.SetReadDeadline(time.Now().Add(ms(s))); err != nil {
		e.Fail(err)
		return
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		e.Fail(err)
		return
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	e.Fail(err)
	e.Status, e.Headers, e.Text = resp.StatusCode, flat(resp.Header), clip(string(text))
}

const (
	extensionBase = "/2020-01-01/extension/"
	nameHeader    = "Lambda-Extension-Name"
	idHeader      = "Lambda-Extension-Identifier"
	requestHeader = "Lambda-Runtime-Aws-Request-Id"
)

// register makes an extension known to the API and keeps its identifier.
func register(ctx context.Context, a *Actor, s script.Step, e *script.Entry) {
	who := s.Path
	if who == "" {
		who = a.Who
	}
	body := s.Data
	if body == "" {
		body = `{"events":["INVOKE","SHUTDOWN"]}`
	}
	headers := map[string]string{nameHeader: who}
	for k, v := range s.Headers {
		headers[k] = v
	}
	call(ctx, a, script.Step{Method: http.MethodPost, Path: extensionBase + "register", Data: body, Headers: headers}, e)
	if id := e.Headers[idHeader]; id != "" {
		a.set("ext", id)
	}
}

// serve takes events. Each leaves an entry of its own, named by its type; that of
// SHUTDOWN is printed too.
func serve(ctx context.Context, a *Actor, s script.Step, e *script.Entry) {
	for s.N == 0 || e.N < s.N {
		got := script.Entry{Name: "event", Began: time.Now().UnixMicro()}
		call(ctx, a, script.Step{Method: http.MethodGet, Path: extensionBase + "event/next", Headers: map[string]string{idHeader: "{ext}"}}, &got)
		event, err := got.Event()
		if got.Status != http.StatusOK || err != nil {
			a.Note(got)
			e.Error, e.Status, e.Text = "event/next: "+got.Error, got.Status, got.Text
			return
		}
		e.N++
		got.Name = event.EventType
		if event.EventType == "SHUTDOWN" {
			a.Announce(got)
			a.Do(s.Last)
			return
		}
		a.Note(got)
		a.set("id", event.RequestID)
		a.Do(s.Steps)
	}
}

// listen takes telemetry on a port of the loopback interface. Each event leaves an
// entry named like the step, whose N is the number of its batch. Each batch that comes over
// HTTP is answered after MS, with the status in Data if there is one. The entries are never
// printed: what is printed is telemetry too.
func listen(_ context.Context, a *Actor, s script.Step, e *script.Entry) {
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.FormatInt(s.N, 10)))
	if err != nil {
		e.Fail(err)
		return
	}
	label := name(s)
	e.Name = label + " listens"
	if s.Method == "tcp" {
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go a.takeLines(label, conn)
			}
		}()
		return
	}
	sink := &sink{a: a, name: label, status: http.StatusOK, pause: ms(s)}
	if s.Data != "" {
		sink.status, err = strconv.Atoi(s.Data)
		e.Fail(err)
	}
	go http.Serve(l, sink) // as long as the process lives
}

// takeLines notes newline-delimited events.
func (a *Actor) takeLines(label string, conn net.Conn) {
	defer conn.Close()
	sc := bufio.NewScanner(conn)
	sc.Buffer(nil, 4<<20)
	for sc.Scan() {
		a.record(script.Entry{Name: label, Play: "telemetry", Text: clip(sc.Text()), N: 1}, false)
	}
	if err := sc.Err(); err != nil {
		a.record(script.Entry{Name: label, Play: "telemetry", Error: err.Error()}, false)
	}
}

// sink is an HTTP subscriber. Its requests come one after the other.
type sink struct {
	a       *Actor
	name    string
	status  int
	pause   time.Duration
	batches int64
}

func (k *sink) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.batches++
	body, err := io.ReadAll(r.Body)
	var events []json.RawMessage
	if err == nil {
		err = json.Unmarshal(body, &events)
	}
	time.Sleep(k.pause)
	head := map[string]string{"method": r.Method, "path": r.URL.Path, "type": r.Header.Get("Content-Type")}
	if err != nil {
		k.a.record(script.Entry{Name: k.name, Play: "telemetry", Headers: head, Error: err.Error(), Text: clip(string(body))}, false)
	}
	for _, event := range events {
		k.a.record(script.Entry{Name: k.name, Play: "telemetry", Headers: head, Text: clip(string(event)), N: k.batches}, false)
	}
	w.WriteHeader(k.status)
}
