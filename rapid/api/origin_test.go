package api

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Strict mode: whoever takes long to say where a connection comes from delays that
// connection, and no other.
func TestSlowOriginDelaysItsConnectionAlone(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	w := newWorld(t, setup{origin: func(ctx context.Context, _ net.Conn) error {
		if first.CompareAndSwap(false, true) {
			close(asked)
			select {
			case <-answer:
			case <-ctx.Done():
			}
		}
		return nil
	}})
	w.running()
	slow := w.wire(t)
	slow.send(wireNext)
	<-asked
	for range 3 {
		if r := w.do(http.MethodGet, "/2018-06-01/ping", ""); r.status != http.StatusOK {
			t.Errorf("another connection meanwhile: %d %s", r.status, r.body)
		}
		w.client.CloseIdleConnections()
	}
	if st := w.s.State(); st.String() != "Initializing" {
		t.Errorf("the call of next was served before its origin was known: %v", st)
	}
	close(answer)
	res := w.invoke("id")
	if e := slow.get(); e.status != http.StatusOK || e.body != `{"x":1}` {
		t.Errorf("when it is known: %+v", e)
	}
	slow.send(hotAnswerHead + "2\r\n{}\r\n0\r\n\r\n")
	if r := <-res; string(r.Payload) != "{}" {
		t.Errorf("%+v", r)
	}
}

// A connection whose origin nobody can say in time is not the runtime's, even if the answer
// never comes.
func TestOriginIsNotWaitedForLong(t *testing.T) {
	release := make(chan struct{})
	limits := DefaultLimits()
	limits.OriginTime = 20 * time.Millisecond
	w := newWorld(t, setup{limits: limits, origin: func(context.Context, net.Conn) error {
		<-release // it does not listen
		return nil
	}})
	t.Cleanup(func() { close(release) })
	w.running()
	for range maxOrigins + 1 { // one more than may be asked about: it has its limit too
		r := w.do(http.MethodGet, nextPath, "")
		if r.status != http.StatusForbidden || r.errorType() != "Runtime.Forbidden" || !strings.Contains(r.body, errOriginTime.Error()) {
			t.Errorf("%d %s; want 403, Runtime.Forbidden and why", r.status, r.body)
		}
		if r := w.do(http.MethodGet, "/2018-06-01/ping", ""); r.status != http.StatusOK {
			t.Errorf("ping: %d %s", r.status, r.body)
		}
		w.client.CloseIdleConnections()
	}
}

// Many connections do not ask the supervisor many questions at once.
func TestFewOriginsAtOnce(t *testing.T) {
	var now, most atomic.Int64
	release := make(chan struct{})
	w := newWorld(t, setup{origin: func(ctx context.Context, _ net.Conn) error {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		select {
		case <-release:
		case <-ctx.Done():
		}
		return nil
	}})
	w.running()
	const many = 5 * maxOrigins
	var conns []*wire
	for range many {
		c := w.wire(t)
		c.send(wirePing)
		conns = append(conns, c)
	}
	w.until(func() bool { return now.Load() == maxOrigins })
	close(release)
	for i, c := range conns {
		if r := c.get(); r.body != "pong" {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if n := most.Load(); n != maxOrigins {
		t.Errorf("%d questions at once, want %d", n, maxOrigins)
	}
}

// A connection that is closed while its origin is asked for is gone at once, and takes its
// question with it: it makes room for others.
func TestClosedWhileAsked(t *testing.T) {
	asked, cancelled := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	w := newWorld(t, setup{limits: Limits{Connections: 1, HeaderTime: time.Minute, OriginTime: time.Minute}, origin: func(ctx context.Context, _ net.Conn) error {
		if first.CompareAndSwap(false, true) {
			close(asked)
			<-ctx.Done()
			close(cancelled)
		}
		return ctx.Err()
	}})
	w.running()
	w.wire(t)
	<-asked
	if r := w.do(http.MethodGet, "/2018-06-01/ping", ""); r.status != http.StatusOK { // it closes the first
		t.Errorf("%d %s", r.status, r.body)
	}
	<-cancelled
}
