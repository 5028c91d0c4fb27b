package telemetry

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// hubTest is a hub whose inside is the loopback of the test.
type hubTest struct {
	*Hub
	t     *testing.T
	clock *testClock
	port  int          // that is dialled in fact, whatever is asked for
	dials atomic.Int32 // made
}

func newHubTest(t *testing.T, addr net.Addr) *hubTest {
	h := &hubTest{t: t, clock: newTestClock()}
	if addr != nil {
		h.port = addr.(*net.TCPAddr).Port
	}
	h.Hub = NewHub(h.clock, func(ctx context.Context, port int) (net.Conn, error) {
		h.dials.Add(1)
		if h.port == 0 {
			h.port = port
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", h.port))
	}, true)
	t.Cleanup(h.Reset)
	h.Open()
	return h
}

const wants = `{"schemaVersion":"2022-12-13","types":["platform","function","extension"],"buffering":{"timeoutMs":25},"destination":`

func (h *hubTest) subscribe(name, body string) error {
	h.t.Helper()
	sub := subscription(h.t, TelemetryAPI, body)
	conn, err := h.Connect(h.t.Context(), sub)
	if err != nil {
		return err
	}
	_, err = h.Subscribe(name, sub, conn)
	return err
}

func (h *hubTest) say(text string) {
	h.Add(&Record{Time: time.Now(), Source: FromFunction, Text: text})
}

// listener is an HTTP subscriber. answer says what to do with the n-th request.
type listener struct {
	*httptest.Server
	got  chan []string // records of each good request
	seen chan *http.Request
	n    atomic.Int32
}

func newListener(t *testing.T, answer func(n int, w http.ResponseWriter)) *listener {
	l := &listener{got: make(chan []string, 1000), seen: make(chan *http.Request, 1000)}
	l.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(l.n.Add(1))
		l.seen <- r
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		var events []struct{ Record any }
		if err := json.Unmarshal(body, &events); err != nil {
			t.Errorf("body %q: %v", body, err)
		}
		records := []string{}
		for _, e := range events {
			records = append(records, fmt.Sprint(e.Record))
		}
		if answer != nil {
			answer(n, w)
		}
		l.got <- records
	}))
	t.Cleanup(l.Close)
	return l
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing comes")
		panic("unreachable")
	}
}

const toHTTP = wants + `{"protocol":"HTTP","URI":"http://sandbox.localdomain:4323/logs?a=b"}}`

// TL-15, TL-20, TL-23: what came before is replayed in order, by POST to the path and
// host given, over one connection to loopback.
func TestHTTPDelivery(t *testing.T) {
	l := newListener(t, nil)
	h := newHubTest(t, l.Listener.Addr())
	h.say("before 1")
	h.say(`{"before":2}`)
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	h.say("after")
	if got := receive(t, l.got); !slices.Equal(got, []string{"before 1", "map[before:2]", "after"}) {
		t.Errorf("%q", got)
	}
	r := receive(t, l.seen)
	if r.Method != "POST" || r.URL.String() != "/logs?a=b" || r.Host != "sandbox.localdomain:4323" || r.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s of %s, %s", r.Method, r.URL, r.Host, r.Header)
	}
	for i := range 5 {
		h.say(fmt.Sprint(i))
		h.Flush()
		receive(t, l.got)
	}
	if n := h.dials.Load(); n != 1 {
		t.Errorf("%d connections, want 1 (keep-alive)", n)
	}
}

// TL-18: 2xx and 3xx are good, a redirection is not followed; 4xx and 5xx are tried
// again; long and endless answers do no harm.
func TestHTTPAnswers(t *testing.T) {
	l := newListener(t, func(n int, w http.ResponseWriter) {
		switch n {
		case 1:
			w.Header().Set("Location", "http://192.0.2.1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case 2:
			w.WriteHeader(http.StatusInternalServerError)
		case 4:
			_, _ = w.Write(make([]byte, 10*answerBytes))
		}
	})
	h := newHubTest(t, l.Listener.Addr())
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	for i, text := range []string{"redirected", "refused", "long"} {
		h.say(text)
		h.Flush()
		if got := receive(t, l.got); got[0] != text {
			t.Errorf("%d: %q", i, got)
		}
		if text == "refused" {
			if got := receive(t, l.got); got[0] != text {
				t.Errorf("the second try is %q", got)
			}
		}
	}
	h.say("last")
	h.Flush()
	if got := receive(t, l.got); got[0] != "last" {
		t.Errorf("%q", got)
	}
}

// A redirect is not followed, wherever it leads (SEC-55). A client of
// net/http as it is by default follows the same one.
func TestRedirectIsNotFollowed(t *testing.T) {
	elsewhere := make(chan struct{}, 10)
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere <- struct{}{} }))
	defer other.Close()
	l := newListener(t, func(_ int, w http.ResponseWriter) {
		w.Header().Set("Location", other.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	h := newHubTest(t, l.Listener.Addr())
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"one", "two"} { // with the second the first is over
		h.say(text)
		h.Flush()
		if got := receive(t, l.got); got[0] != text {
			t.Errorf("%q, want %s", got, text)
		}
	}
	if len(elsewhere) > 0 {
		t.Error("the redirect was followed")
	}
	resp, err := http.Post(l.URL, "application/json", strings.NewReader("[]"))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if len(elsewhere) != 1 {
		t.Error("control: not even net/http follows it")
	}
}

// TL-13: an HTTP listener may come up later.
func TestHTTPListenerComesLater(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr()
	_ = free.Close()
	h := newHubTest(t, addr)
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	h.say("early")
	h.Flush()
	for h.dials.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	late, err := net.Listen("tcp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(t, nil)
	_ = l.Listener.Close()
	server := &http.Server{Handler: l.Config.Handler}
	go func() { _ = server.Serve(late) }()
	defer func() { _ = server.Close() }()
	if got := receive(t, l.got); got[0] != "early" {
		t.Errorf("%q", got)
	}
}

// TL-13, TL-16: TCP connects at once, and gets a line for each event.
func TestTCPDelivery(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := newHubTest(t, l.Addr())
	if err := h.subscribe("e", wants+`{"protocol":"TCP","port":4323}}`); err != nil {
		t.Fatal(err)
	}
	for i, sent := 0, []string{"one", "two\nlines", "three"}; i < 2; i++ { // twice: the connection is made again
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(c)
		for _, text := range sent {
			h.say(text)
		}
		h.Flush()
		for _, want := range sent {
			if !lines.Scan() {
				t.Fatalf("no line for %q: %v", want, lines.Err())
			}
			var e struct{ Record string }
			if err := json.Unmarshal(lines.Bytes(), &e); err != nil || e.Record != want {
				t.Errorf("%s: %v", lines.Bytes(), err)
			}
		}
		if i == 0 { // a reset, so that the next write fails
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
			for h.dials.Load() == 1 {
				h.say("lost or found")
				h.Flush()
				time.Sleep(time.Millisecond)
			}
			sent = nil
		} else {
			_ = c.Close()
		}
	}
	_ = l.Close()
	other := newHubTest(t, l.Addr())
	if err := other.subscribe("e", wants+`{"protocol":"TCP","port":4323}}`); err == nil || !strings.Contains(err.Error(), "sandbox:4323") {
		t.Errorf("with nobody there: %v (TL-13)", err)
	}
}

// A write that ended in the middle of an event begins with it again elsewhere.
func TestTCPBeginsWithAWholeEvent(t *testing.T) {
	near, far := net.Pipe()
	again, read := net.Pipe()
	s := &tcpSender{conn: near, dial: func(context.Context, int) (net.Conn, error) { return again, nil }}
	var wait sync.WaitGroup
	wait.Go(func() {
		_, _ = io.ReadFull(far, make([]byte, 9)) // "first\nsec"
		_ = far.Close()
	})
	b := &batch{body: []byte("first\nsecond\n")}
	if err := s.send(t.Context(), b); err == nil {
		t.Fatal("no error")
	}
	wait.Go(func() {
		got := make([]byte, 7)
		if _, err := io.ReadFull(read, got); err != nil || string(got) != "second\n" {
			t.Errorf("%q, %v", got, err)
		}
	})
	if err := s.send(t.Context(), b); err != nil {
		t.Error(err)
	}
	wait.Wait()
	s.close()
}

// TL-18: subscribers that never answer, never read, or are not there slow nobody, and
// their subscriptions end at once.
func TestDeadSubscribersSlowNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts by backlog only
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	h := newHubTest(t, l.Addr())
	for name, to := range map[string]string{"http": `{"protocol":"HTTP","URI":"http://sandbox:1/"}}`, "tcp": `{"protocol":"TCP","port":1}}`} {
		if err := h.subscribe(name, wants+to); err != nil {
			t.Fatal(err)
		}
	}
	line := strings.Repeat("x", 1000)
	begin := time.Now()
	for range 10000 { // much more than socket buffers and ours hold
		h.say(line)
	}
	if took := time.Since(begin); took > requestTime { // -race is slow, one answer that is waited for slower
		t.Errorf("10,000 lines took %v", took)
	}
	for _, s := range h.subs {
		s.mu.Lock()
		if s.size > leastWaiting || s.dropped.Records == 0 {
			t.Errorf("%s: %d bytes wait, %d records dropped", s.name, s.size, s.dropped.Records)
		}
		s.mu.Unlock()
	}
	begin = time.Now()
	h.Reset()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Reset took %v", took)
	}
}

// TL-22: a request that a freeze holds up is not cut off for it.
func TestRequestSurvivesFreeze(t *testing.T) {
	inRequest, goOn := make(chan struct{}), make(chan struct{})
	l := newListener(t, func(int, http.ResponseWriter) { close(inRequest); <-goOn })
	h := newHubTest(t, l.Listener.Addr())
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	h.say("x")
	h.Flush()
	receive(t, inRequest)
	h.clock.freeze()
	ctx, cancel := limit(t.Context(), h.clock, 10*time.Millisecond) // as the request has
	defer cancel()
	time.Sleep(50 * time.Millisecond)
	if ctx.Err() != nil {
		t.Error("frozen time counts")
	}
	h.clock.thaw()
	<-ctx.Done() // thawed time does
	close(goOn)
	if got := receive(t, l.got); got[0] != "x" {
		t.Errorf("%q", got)
	}
	if n := l.n.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TL-08, TL-12, TL-14: again, otherwise, by the other API, too late.
func TestSubscribeAgain(t *testing.T) {
	one, two := newListener(t, nil), newListener(t, nil)
	h := newHubTest(t, nil)
	to := func(l *listener, types string) string {
		return fmt.Sprintf(`{"schemaVersion":"2022-12-13","types":[%s],"buffering":{"timeoutMs":25},"destination":{"protocol":"HTTP","URI":"http://sandbox:%d/"}}`,
			types, l.Listener.Addr().(*net.TCPAddr).Port)
	}
	add := func(api API, body string) (bool, error) {
		return h.Subscribe("e", subscription(t, api, body), nil)
	}
	if changed, err := add(TelemetryAPI, to(one, `"function"`)); !changed || err != nil {
		t.Errorf("first: %v, %v", changed, err)
	}
	if changed, err := add(TelemetryAPI, to(one, `"function","function"`)); changed || err != nil {
		t.Errorf("the same again: %v, %v", changed, err)
	}
	if _, err := add(LogsAPI, `{"types":["function"],"destination":{"protocol":"TCP","port":1}}`); !errors.Is(err, ErrOtherAPI) {
		t.Errorf("the other API: %v", err)
	}
	h.say("1")
	h.Flush()
	if got := receive(t, one.got); !slices.Equal(got, []string{"1"}) {
		t.Errorf("%q", got)
	}
	if changed, err := add(TelemetryAPI, to(one, `"function","extension"`)); !changed || err != nil {
		t.Errorf("more types: %v, %v", changed, err)
	}
	h.Add(&Record{Source: FromExtension, Text: "2"})
	h.Flush()
	if got := receive(t, one.got); !slices.Equal(got, []string{"2"}) {
		t.Errorf("%q, want what came before no second time", got)
	}
	h.port = two.Listener.Addr().(*net.TCPAddr).Port
	if changed, err := add(TelemetryAPI, to(two, `"function"`)); !changed || err != nil {
		t.Errorf("elsewhere: %v, %v", changed, err)
	}
	h.Close()
	if _, err := add(TelemetryAPI, to(one, `"function"`)); !errors.Is(err, ErrClosedWindow) {
		t.Errorf("too late: %v", err)
	}
	h.say("x")
	if got := receive(t, two.got); !slices.Equal(got, []string{"1", "x"}) { // TL-20: another listener
		t.Errorf("%q", got)
	}
	if n := one.n.Load(); n != 2 {
		t.Errorf("the replaced subscription got %d requests", n)
	}
}

// TL-20: what is kept for subscribers to come has a bound, and what it costs is told.
func TestReplayIsBounded(t *testing.T) {
	l := newListener(t, nil)
	h := newHubTest(t, l.Listener.Addr())
	for range 3000 {
		h.say(strings.Repeat("x", 1000))
	}
	h.Add(&Record{Source: FromPlatform, Platform: &Start{RequestID: "kept"}})
	if h.size > replayBytes+platformReserve {
		t.Errorf("%d bytes are kept", h.size)
	}
	if err := h.subscribe("e", toHTTP); err != nil {
		t.Fatal(err)
	}
	h.Flush()
	var got []string
	for len(got) == 0 || !strings.Contains(got[len(got)-1], "dropped") {
		got = append(got, receive(t, l.got)...)
	}
	if n := len(got); !strings.Contains(got[n-1], fmt.Sprintf("droppedRecords:%d ", 3000-(n-2))) || !strings.Contains(got[n-2], "kept") {
		t.Errorf("%d events, the last %q", n, got[n-2:])
	}
}

// A nil hub is one without subscribers.
func TestNilHub(*testing.T) {
	var h *Hub
	h.Open()
	h.Add(&Record{})
	h.Flush()
	h.SendAtOnce()
	h.Reset()
}
