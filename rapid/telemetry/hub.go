package telemetry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Clock is the clock of the processes in a sandbox: it stops while they are frozen. Its
// methods are safe for concurrent use.
type Clock interface {
	Now() time.Duration
	Running() <-chan struct{} // closed if the sandbox is not frozen, or else when it is thawed
}

// Dial connects to a TCP port on loopback inside the sandbox.
type Dial func(ctx context.Context, port int) (net.Conn, error)

const (
	// replayBytes limits the records that are kept for later subscribers (TL-20).
	replayBytes = 512 << 10
	// connectTime limits the connection to the listener of a TCP subscriber (TL-13).
	connectTime = time.Second
)

// Hub delivers the records of one sandbox to its subscribers (section 3.2). Each subscriber
// has a bounded buffer and its own goroutine, so that a slow subscriber delays no one else.
// Methods are safe for concurrent use. A nil *Hub has no subscribers and keeps no records.
type Hub struct {
	clock   Clock
	dial    Dial
	objects bool // TL-25: function records may be objects

	mu      sync.Mutex
	open    bool // subscriptions are accepted, and records are kept for them
	atOnce  bool // batches are sent without waiting for more records
	replay  []Record
	size    int // of replay
	dropped LogsDropped
	subs    []*subscriber

	running sync.WaitGroup // goroutines of all subscribers, including replaced ones
}

// NewHub returns a hub without subscribers that does not accept subscriptions yet. objects
// reports whether the function logs in JSON. Reset ends the goroutines of the hub.
func NewHub(clock Clock, dial Dial, objects bool) *Hub {
	return &Hub{clock: clock, dial: dial, objects: objects}
}

// Open makes the hub accept subscriptions, and keep records for later subscribers.
func (h *Hub) Open() {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.open, h.atOnce = true, false
	h.mu.Unlock()
}

// Close makes the hub refuse subscriptions (TL-14). Existing ones continue.
func (h *Hub) Close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.open, h.replay, h.size, h.dropped = false, nil, 0, LogsDropped{}
	h.mu.Unlock()
}

// Flush sends incomplete batches to their subscribers.
func (h *Hub) Flush() { h.each((*subscriber).flush) }

// SendAtOnce sends incomplete batches, and from then until the next Open sends each record
// without waiting for others.
func (h *Hub) SendAtOnce() {
	if h == nil {
		return
	}
	h.mu.Lock()
	h.atOnce = true
	h.mu.Unlock()
	h.Flush()
}

// Reset ends every subscription, and drops what was not delivered. When it returns, no
// goroutine of a subscriber is running.
func (h *Hub) Reset() {
	if h == nil {
		return
	}
	h.Close()
	h.mu.Lock()
	subs := h.subs
	h.subs = nil
	h.mu.Unlock()
	for _, s := range subs {
		s.cancel()
	}
	h.running.Wait()
}

func (h *Hub) each(do func(*subscriber)) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		do(s)
	}
}

// Add delivers r to the subscribers. It never waits for one.
func (h *Hub) Add(r *Record) {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.subs {
		s.add(r, h.objects)
		if h.atOnce {
			s.flush()
		}
	}
	if !h.open {
		return
	}
	if n := len(r.Text) + recordOverhead; h.size+n <= replayBytes || r.Platform != nil && h.size+n <= replayBytes+platformReserve {
		h.replay = append(h.replay, *r)
		h.size += n
	} else {
		h.dropped.Records++
		h.dropped.Bytes += int64(len(r.Text))
	}
}

// Errors of Subscribe.
var (
	ErrClosedWindow = errors.New("subscription is closed already")
	ErrOtherAPI     = errors.New("the extension has subscribed with the other API already") // TL-12
)

// Connect opens the connection that a TCP subscription begins with (TL-13). For HTTP it
// returns nil. The caller must close it unless it passes it to Subscribe.
func (h *Hub) Connect(ctx context.Context, sub *Subscription) (net.Conn, error) {
	if sub.Protocol != "TCP" {
		return nil, nil
	}
	ctx, cancel := limit(ctx, h.clock, connectTime)
	defer cancel()
	conn, err := h.dial(ctx, sub.Port)
	if err != nil {
		return nil, fmt.Errorf("connection to sandbox:%d cannot be made: %w", sub.Port, err)
	}
	return conn, nil
}

// Subscribe adds or replaces the subscription of the agent name, and reports whether it
// differs from the previous one (TL-08). Only a new destination gets earlier records, so that
// no listener gets an event twice. If Subscribe succeeds, it owns conn.
func (h *Hub) Subscribe(name string, sub *Subscription, conn net.Conn) (changed bool, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open {
		return false, ErrClosedWindow
	}
	at := len(h.subs)
	for i, s := range h.subs {
		switch {
		case s.name != name:
		case s.sub.API != sub.API:
			return false, ErrOtherAPI
		case s.sub.to() == sub.to():
			if conn != nil {
				_ = conn.Close() // the first connection stays in use
			}
			return s.change(sub), nil
		default:
			at = i
			s.cancel()
		}
	}
	var via sender
	if sub.Protocol == "TCP" {
		via = &tcpSender{dial: h.dial, port: sub.Port, conn: conn}
	} else {
		via = newHTTPSender(sub, h.dial, h.clock)
	}
	s, run := newSubscriber(name, sub, h.clock, via)
	for i := range h.replay { // TL-20
		s.add(&h.replay[i], h.objects)
	}
	if h.dropped.Records > 0 {
		d := h.dropped
		d.Reason = slowReader
		s.add(&Record{Time: time.Now(), Source: FromPlatform, Platform: &d}, h.objects)
	}
	h.running.Go(run)
	if at == len(h.subs) {
		h.subs = append(h.subs, nil)
	}
	h.subs[at] = s
	return true, nil
}
