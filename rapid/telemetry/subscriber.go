package telemetry

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// Back-off of a delivery that has failed (TL-18).
const (
	firstPause = 100 * time.Millisecond
	lastPause  = time.Second
)

// leastWaiting is the minimum buffer size of a subscriber in bytes. Otherwise it is twice its
// maxBytes.
const leastWaiting = 1 << 20

// A sender delivers batches to one subscriber. Only one goroutine uses it.
type sender interface {
	// send delivers b. If it fails, it is called again with the same batch.
	send(ctx context.Context, b *batch) error
	close()
}

// batch is the body of one delivery: a JSON array for HTTP, which seal completes, and lines
// for TCP.
type batch struct {
	body   []byte
	items  int
	began  time.Duration // arrival of its first event, in thawed time
	closed bool          // it takes no more events, and can be sent
}

// subscriber is the buffer and the goroutine of one subscription.
type subscriber struct {
	name  string
	clock Clock
	via   sender

	cancel context.CancelFunc // ends the goroutine
	wake   chan struct{}      // capacity 1: makes the goroutine check waiting

	mu      sync.Mutex
	sub     *Subscription // only the hub changes it, and may read it without mu
	waiting []*batch      // oldest first; only the last can be open
	size    int           // bytes of waiting
	dropped LogsDropped
}

// newSubscriber returns a subscriber, and the function for its goroutine.
func newSubscriber(name string, sub *Subscription, clock Clock, via sender) (s *subscriber, run func()) {
	ctx, cancel := context.WithCancel(context.Background())
	s = &subscriber{name: name, sub: sub, clock: clock, via: via, cancel: cancel, wake: make(chan struct{}, 1)}
	return s, func() { s.run(ctx) }
}

// add adds a record to the open batch. It never waits: if the buffer is full, it drops the
// oldest batch (TL-19).
func (s *subscriber) add(r *Record, objects bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	event, ok := s.sub.event(r, objects)
	if !ok {
		return
	}
	b := s.last()
	if b == nil || len(b.body)+len(event) > s.sub.MaxBytes {
		if b != nil {
			b.closed = true
		}
		b = &batch{began: s.clock.Now()}
		s.waiting = append(s.waiting, b)
		s.signal()
	}
	before := len(b.body)
	b.append(event, s.sub.Protocol)
	s.size += len(b.body) - before
	if b.items >= s.sub.MaxItems || len(b.body) >= s.sub.MaxBytes {
		b.closed = true
		s.signal()
	}
	for s.size > max(2*s.sub.MaxBytes, leastWaiting) && len(s.waiting) > 1 {
		old := s.pop()
		s.dropped.Records += int64(old.items)
		s.dropped.Bytes += int64(len(old.body))
	}
}

func (b *batch) append(event []byte, protocol string) {
	switch {
	case protocol == "TCP":
		b.body = append(append(b.body, event...), '\n') // TL-16
	case b.items == 0:
		b.body = append(append(b.body, '['), event...) // TL-15
	default:
		b.body = append(append(b.body, ','), event...)
	}
	b.items++
}

// seal completes the body.
func (b *batch) seal(protocol string) {
	if b.closed = true; protocol != "TCP" {
		b.body = append(b.body, ']')
	}
}

// last returns the open batch, or nil if there is none. The caller holds mu.
func (s *subscriber) last() *batch {
	if n := len(s.waiting); n > 0 && !s.waiting[n-1].closed {
		return s.waiting[n-1]
	}
	return nil
}

// pop removes and returns the oldest batch. The caller holds mu.
func (s *subscriber) pop() *batch {
	b := s.waiting[0]
	s.waiting[0] = nil
	s.waiting = s.waiting[1:]
	s.size -= len(b.body)
	return b
}

// change replaces the subscription by another one with the same destination, and reports
// whether it differs.
func (s *subscriber) change(sub *Subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	differs := !reflect.DeepEqual(s.sub, sub)
	s.sub = sub
	s.signal() // its batches may be due earlier
	return differs
}

// flush closes the open batch.
func (s *subscriber) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.last(); b != nil {
		b.closed = true
		s.signal()
	}
}

func (s *subscriber) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run delivers batch after batch until the subscription ends.
func (s *subscriber) run(ctx context.Context) {
	defer s.via.close()
	for b := s.take(ctx); b != nil; b = s.take(ctx) {
		// Ignore the error: only the subscriber could use it, and it cannot be reached. The
		// delivery is repeated (TL-18), and records that are dropped meanwhile are counted
		// (TL-19).
		for pause := firstPause; s.via.send(ctx, b) != nil; pause = min(2*pause, lastPause) {
			if !sleep(ctx, s.clock, pause) {
				return
			}
		}
	}
}

// take waits until a batch is due and the sandbox is not frozen (TL-22). It returns nil when
// ctx has ended.
func (s *subscriber) take(ctx context.Context) *batch {
	for {
		select {
		case <-s.clock.Running():
		case <-ctx.Done():
			return nil
		}
		b, in := s.due()
		if b != nil {
			return b
		}
		timer := time.NewTimer(in)
		select {
		case <-s.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// due returns the batch to send now, or, if there is none, the time until the open batch is
// due.
func (s *subscriber) due() (*batch, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped.Records > 0 {
		d := s.dropped
		s.dropped = LogsDropped{}
		d.Reason = slowReader
		if e, ok := s.sub.event(&Record{Time: time.Now(), Source: FromPlatform, Platform: &d}, false); ok {
			b := &batch{}
			b.append(e, s.sub.Protocol)
			b.seal(s.sub.Protocol)
			return b, 0
		}
	}
	if len(s.waiting) == 0 {
		return nil, time.Hour
	}
	b := s.waiting[0]
	if left := b.began + s.sub.Timeout - s.clock.Now(); !b.closed && left > 0 {
		return nil, left
	}
	b = s.pop()
	b.seal(s.sub.Protocol)
	return b, 0
}

// sleep waits for d of thawed time. It returns false if ctx ends before.
func sleep(ctx context.Context, clock Clock, d time.Duration) bool {
	for end := clock.Now() + d; ; {
		select {
		case <-clock.Running():
		case <-ctx.Done():
			return false
		}
		left := end - clock.Now()
		if left <= 0 {
			return true
		}
		timer := time.NewTimer(left)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return false
		}
	}
}

// limit returns a context that ends after d of thawed time. The caller must call cancel.
func limit(ctx context.Context, clock Clock, d time.Duration) (limited context.Context, cancel func()) {
	limited, end := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		if sleep(limited, clock, d) {
			end()
		}
	}()
	return limited, func() { end(); <-watched }
}
