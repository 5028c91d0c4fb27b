package telemetry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// testClock is a clock that tests freeze.
type testClock struct {
	mu      sync.Mutex
	start   time.Time
	since   time.Time // of the freeze
	running chan struct{}
}

func newTestClock() *testClock {
	c := &testClock{start: time.Now(), running: make(chan struct{})}
	close(c.running)
	return c
}

func (c *testClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.since.IsZero() {
		return c.since.Sub(c.start)
	}
	return time.Since(c.start)
}

func (c *testClock) Running() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running
}

func (c *testClock) freeze() {
	c.mu.Lock()
	c.since, c.running = time.Now(), make(chan struct{})
	c.mu.Unlock()
}

func (c *testClock) thaw() {
	c.mu.Lock()
	c.start, c.since = c.start.Add(time.Since(c.since)), time.Time{}
	close(c.running)
	c.mu.Unlock()
}

// delivery is one call of a sender.
type delivery struct {
	at     time.Duration
	events []string // what is in "record", or the type of platform records
}

// testSender keeps what is delivered; before is called first.
type testSender struct {
	clock  *testClock
	before func(n int) error
	mu     sync.Mutex
	got    []delivery
	calls  int
}

func (s *testSender) send(ctx context.Context, b *batch) error {
	s.mu.Lock()
	n := s.calls
	s.calls++
	s.mu.Unlock()
	if s.before != nil {
		if err := s.before(n); err != nil {
			return err
		}
	}
	var events []struct {
		Type   string
		Record any
	}
	if err := json.Unmarshal(b.body, &events); err != nil {
		return err
	}
	d := delivery{at: s.clock.Now()}
	for _, e := range events {
		text, ok := e.Record.(string)
		if !ok {
			text = e.Type
		}
		d.events = append(d.events, text)
	}
	s.mu.Lock()
	s.got = append(s.got, d)
	s.mu.Unlock()
	return nil
}

func (s *testSender) close() {}

func (s *testSender) take() []delivery {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.got)
}

// subscribed runs test with a subscriber that has the buffering limits given.
func subscribed(t *testing.T, limits string, before func(n int) error, test func(*subscriber, *testSender, *testClock)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		clock := newTestClock()
		via := &testSender{clock: clock, before: before}
		sub := subscription(t, TelemetryAPI, `{"schemaVersion":"2022-12-13","types":["function","platform"],"destination":{"protocol":"HTTP","URI":"http://sandbox:1"},"buffering":{`+limits+`}}`)
		s, run := newSubscriber("e", sub, clock, via)
		ended := make(chan struct{})
		go func() { run(); close(ended) }()
		test(s, via, clock)
		s.cancel()
		<-ended
	})
}

func (s *subscriber) say(text string) {
	s.add(&Record{Time: time.Now(), Source: FromFunction, Text: text}, false)
}

// TL-17: a batch waits for its time, counted from its first event, and no longer.
func TestBatchByTime(t *testing.T) {
	subscribed(t, `"timeoutMs":100`, nil, func(s *subscriber, via *testSender, _ *testClock) {
		time.Sleep(time.Second)
		s.say("a")
		time.Sleep(60 * time.Millisecond)
		s.say("b")
		time.Sleep(39 * time.Millisecond)
		if got := via.take(); len(got) != 0 {
			t.Errorf("delivered early: %v", got)
		}
		time.Sleep(time.Millisecond)
		via.take()
		s.say("c")
		time.Sleep(time.Second)
		want := []delivery{{1100 * time.Millisecond, []string{"a", "b"}}, {1200 * time.Millisecond, []string{"c"}}}
		if got := via.take(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
}

// TL-17: maxItems and flush send at once; order is kept.
func TestBatchByItemsAndFlush(t *testing.T) {
	subscribed(t, `"maxItems":1000,"timeoutMs":30000`, nil, func(s *subscriber, via *testSender, _ *testClock) {
		for i := range 2500 {
			s.say(fmt.Sprint(i))
		}
		var got []string
		for i, d := range via.take() {
			if len(d.events) != 1000 || d.at != 0 {
				t.Errorf("batch %d of %d events at %v", i, len(d.events), d.at)
			}
		}
		s.flush()
		s.flush() // nothing to send
		for _, d := range via.take() {
			got = append(got, d.events...)
		}
		if len(got) != 2500 || got[0] != "0" || got[2499] != "2499" || !slices.IsSortedFunc(got, func(a, b string) int {
			if len(a) != len(b) {
				return len(a) - len(b)
			}
			return strings.Compare(a, b)
		}) {
			t.Errorf("%d events, out of order or not all", len(got))
		}
		if n := len(via.take()); n != 3 {
			t.Errorf("%d batches, want 3", n)
		}
	})
}

// TL-17: maxBytes ends a batch before it is passed, but for one event that is longer.
func TestBatchByBytes(t *testing.T) {
	subscribed(t, `"maxBytes":262144,"timeoutMs":30000`, nil, func(s *subscriber, via *testSender, _ *testClock) {
		for range 3 {
			s.say(strings.Repeat("x", 100_000))
		}
		s.say(strings.Repeat("y", 300_000))
		s.flush()
		sizes := ""
		for _, d := range via.take() {
			sizes += fmt.Sprint(len(d.events), " ")
		}
		if sizes != "2 1 1 " {
			t.Errorf("batches of %sevents", sizes)
		}
	})
}

// TL-18: failed deliveries are tried again after 100 ms, doubling up to 1 s.
func TestBackOff(t *testing.T) {
	var clock *testClock
	var tries []time.Duration
	subscribed(t, `"timeoutMs":25`, func(n int) error {
		tries = append(tries, clock.Now())
		if n < 6 {
			return errors.New("refused")
		}
		return nil
	}, func(s *subscriber, via *testSender, c *testClock) {
		clock = c
		s.say("a")
		s.flush()
		time.Sleep(10 * time.Second)
		want := []time.Duration{0, 100, 300, 700, 1500, 2500, 3500}
		for i := range want {
			want[i] *= time.Millisecond
		}
		if got := via.take(); !slices.Equal(tries, want) || len(got) != 1 {
			t.Errorf("tries at %v, want %v; %d deliveries", tries, want, len(got))
		}
	})
}

// TL-18, TL-19: a dead subscriber costs bounded memory and no time; whole batches are
// dropped, oldest first, counted, and told before what is left.
func TestOverflow(t *testing.T) {
	var alive atomic.Bool
	subscribed(t, `"maxBytes":262144,"timeoutMs":25`, func(int) error {
		if !alive.Load() {
			return errors.New("refused")
		}
		return nil
	}, func(s *subscriber, via *testSender, _ *testClock) {
		const sent = 5000
		for i := range sent {
			s.say(fmt.Sprintf("%04d%s", i, strings.Repeat("x", 996)))
			s.mu.Lock()
			if s.size > leastWaiting {
				t.Fatalf("%d bytes wait", s.size)
			}
			s.mu.Unlock()
			if i == 0 {
				time.Sleep(30 * time.Millisecond) // it is on its way, so that all that is dropped is told at once
			}
		}
		alive.Store(true)
		time.Sleep(3 * time.Second)
		var got []string
		for _, d := range via.take() {
			got = append(got, d.events...)
		}
		at := slices.Index(got, "platform.logsDropped")
		if at < 0 || slices.Contains(got[at+1:], "platform.logsDropped") {
			t.Fatalf("%d events, dropped told at %d", len(got), at)
		}
		next := got[at+1]
		var first int
		fmt.Sscanf(next, "%04d", &first)
		if len(got)-1 != at+sent-first || first <= at {
			t.Errorf("%d events before the gap, the first after it is %d, %d events in all", at, first, len(got)-1)
		}
	})
}

// TL-19: bytes, records and reason of what was dropped; not for who did not ask for
// platform records.
func TestDroppedFigures(t *testing.T) {
	for _, types := range []string{`"function"`, `"function","platform"`} {
		sub := subscription(t, TelemetryAPI, `{"schemaVersion":"2022-12-13","types":[`+types+`],"destination":{"protocol":"TCP","port":1}}`)
		s, _ := newSubscriber("e", sub, newTestClock(), nil) // its goroutine does not run
		for range 2000 {
			s.say(strings.Repeat("x", 1000))
		}
		var records, size int64
		var kept int64
		for _, b := range s.waiting {
			kept += int64(b.items)
			size = int64(len(b.body)) / int64(b.items) // all events have the same size
		}
		records = 2000 - kept
		want := fmt.Sprintf(`"record":{"droppedBytes":%d,"droppedRecords":%d,"reason":"%s"}}`+"\n", records*size, records, slowReader)
		b, _ := s.due()
		if types == `"function"` {
			if strings.Contains(string(b.body), "logsDropped") {
				t.Errorf("got %s", b.body)
			}
		} else if !strings.HasSuffix(string(b.body), want) || records == 0 {
			t.Errorf("got %s, want %s", b.body, want)
		}
	}
}

// TL-22: nothing is delivered while frozen, and frozen time counts for nothing.
func TestFrozen(t *testing.T) {
	fails := 0
	subscribed(t, `"timeoutMs":100`, func(int) error {
		if fails > 0 {
			fails--
			return errors.New("refused")
		}
		return nil
	}, func(s *subscriber, via *testSender, clock *testClock) {
		s.say("a")
		time.Sleep(40 * time.Millisecond)
		clock.freeze()
		time.Sleep(time.Hour)
		s.flush()
		if got := via.take(); len(got) != 0 {
			t.Errorf("delivered while frozen: %v", got)
		}
		clock.thaw()
		if got := via.take(); len(got) != 1 || got[0].at != 40*time.Millisecond {
			t.Errorf("after the thaw: %v", got)
		}
		s.say("b") // in the middle of its time
		time.Sleep(60 * time.Millisecond)
		clock.freeze()
		time.Sleep(time.Hour)
		clock.thaw()
		time.Sleep(time.Hour)
		if got := via.take(); len(got) != 2 || got[1].at != 140*time.Millisecond {
			t.Errorf("%v, want the second after 100 ms that were not frozen", got)
		}
		before := clock.Now()
		fails = 1
		s.say("c") // in the middle of the back-off
		s.flush()
		time.Sleep(50 * time.Millisecond)
		clock.freeze()
		time.Sleep(time.Hour)
		clock.thaw()
		time.Sleep(time.Hour)
		if got := via.take(); len(got) != 3 || got[2].at-before != 100*time.Millisecond {
			t.Errorf("%v, want the third 100 ms after %v", got, before)
		}
	})
}
