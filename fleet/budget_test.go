package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

const mb = 1 << 20

// idleNow fails unless the budget counts nothing and nobody waits.
func (b *Budget) idleNow(t *testing.T) {
	t.Helper()
	if b.used != 0 || b.bytes != 0 || b.leaving != 0 || len(b.fleets) != 0 || len(b.queue) != 0 || b.waiting.Load() != 0 {
		t.Errorf("after everything is closed: %d sandboxes of %d bytes, %d leaving, %d fleets, %d in the queue (%d)",
			b.used, b.bytes, b.leaving, len(b.fleets), len(b.queue), b.waiting.Load())
	}
}

// The longest idle sandbox of another function makes room, and nobody waits until it is gone.
func TestBudgetClosesTheLongestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(2, 0)
		one, two, three := newRig(t, Config{Max: 9, Budget: b}, nil), newRig(t, Config{Max: 9, Budget: b}, nil), newRig(t, Config{Max: 9, Budget: b}, nil)
		one.want(one.start(t.Context(), "1"), "a")
		time.Sleep(time.Second)
		two.want(two.start(t.Context(), "2"), "a")
		time.Sleep(time.Second)
		within(t, time.Second+50*time.Millisecond, func() { three.want(three.start(t.Context(), "3"), "a") })
		time.Sleep(time.Second)
		if _, closed := one.boxes[0].history(); !closed {
			t.Error("the longest idle sandbox stays")
		}
		if _, closed := two.boxes[0].history(); closed {
			t.Error("the sandbox that was used last was closed")
		}
		for _, r := range []*rig{one, two, three} {
			r.shutdown()
		}
		b.idleNow(t)
	})
}

// While all sandboxes run invocations, a request of another function gets ErrNoRoom at once.
func TestBudgetRefusesWhenAllAreBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(2, 0)
		one, two := newRig(t, Config{Max: 9, Budget: b}, nil), newRig(t, Config{Max: 9, Budget: b}, nil)
		first, second := one.start(t.Context(), "1"), one.start(t.Context(), "2")
		synctest.Wait()
		within(t, 0, func() { two.want(two.start(t.Context(), "3"), "! "+ErrNoRoom.Error()) })
		within(t, 0, func() { one.want(one.start(t.Context(), "4"), "! "+ErrNoRoom.Error()) })
		<-first
		<-second
		one.shutdown()
		two.shutdown()
		b.idleNow(t)
	})
}

// A request waits for a sandbox of another function that has answered and is about to be idle
// (LC-41). As many wait as there are such sandboxes; the next one is refused at once.
func TestBudgetWaitsForASandboxAboutToBeIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1, 0)
		one := newRig(t, Config{Max: 9, Budget: b}, func(s *fake) { s.tail = time.Second })
		two, three := newRig(t, Config{Max: 9, Budget: b}, nil), newRig(t, Config{Max: 9, Budget: b}, nil)
		one.want(one.start(t.Context(), "1"), "a") // it is Done a second later
		begin := time.Now()
		second := two.start(t.Context(), "2")
		synctest.Wait()
		within(t, 0, func() { three.want(three.start(t.Context(), "3"), "! "+ErrNoRoom.Error()) })
		two.want(second, "a")
		if took := time.Since(begin); took != 2*time.Second+50*time.Millisecond {
			t.Errorf("took %v, want the tail, the creation and the work", took)
		}
		for _, r := range []*rig{one, two, three} {
			r.shutdown()
		}
		b.idleNow(t)
	})
}

// The sandbox for which a request waits dies, or gets another invocation of its own function:
// the request gets its room, or is refused, but does not wait for ever.
func TestBudgetWaitEnds(t *testing.T) {
	for _, dies := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			b := NewBudget(1, 0)
			one := newRig(t, Config{Max: 9, Budget: b}, func(s *fake) { s.tail = 10 * time.Millisecond })
			two := newRig(t, Config{Max: 9, Budget: b}, nil)
			one.want(one.start(t.Context(), "1"), "a")
			own := one.start(t.Context(), "own") // waits in the queue of its fleet, which comes first
			second := two.start(t.Context(), "2")
			synctest.Wait()
			if dies {
				close(one.boxes[0].ended)
				two.want(second, "a")                 // it has room while the dead one is removed
				one.want(own, "! "+ErrNoRoom.Error()) // then this one has none
			} else {
				two.want(second, "! "+ErrNoRoom.Error())
				one.want(own, "a")
			}
			one.shutdown()
			two.shutdown()
			b.idleNow(t)
		})
	}
}

// A request whose client leaves while it waits gives its turn to the next.
func TestBudgetWaiterLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1, 0)
		one := newRig(t, Config{Max: 9, Budget: b}, func(s *fake) { s.tail = time.Second })
		two := newRig(t, Config{Max: 9, Budget: b}, nil)
		one.want(one.start(t.Context(), "1"), "a")
		ctx, cancel := context.WithCancel(t.Context())
		gone := two.start(ctx, "gone")
		synctest.Wait()
		cancel()
		if got := <-gone; !strings.Contains(got, context.Canceled.Error()) {
			t.Errorf("the request of the client that left: %s", got)
		}
		two.want(two.start(t.Context(), "2"), "a")
		one.shutdown()
		two.shutdown()
		b.idleNow(t)
	})
}

// Memory counts too: several small idle sandboxes make room for a large one, unless even all
// of them are not enough. What can never fit is an error that says so.
func TestBudgetOfMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(9, 1024*mb)
		small, large := newRig(t, Config{Max: 9, Budget: b, Memory: 256 * mb}, nil), newRig(t, Config{Max: 9, Budget: b, Memory: 768 * mb}, nil)
		huge := newRig(t, Config{Max: 9, Budget: b, Memory: 1025 * mb}, nil)
		for range 2 {
			one, two, three := small.start(t.Context(), "1"), small.start(t.Context(), "2"), small.start(t.Context(), "3")
			<-one
			<-two
			<-three
			time.Sleep(time.Second)
		}
		one, two := small.start(t.Context(), "4"), small.start(t.Context(), "5")
		synctest.Wait()
		large.want(large.start(t.Context(), "6"), "! "+ErrNoRoom.Error())
		if n := len(small.Idlers()); n != 1 {
			t.Errorf("%d sandboxes are idle, want 1: closing it would not have been enough", n)
		}
		<-one
		<-two
		time.Sleep(time.Second)
		large.want(large.start(t.Context(), "7"), "a")
		if n := len(small.Idlers()); n != 1 {
			t.Errorf("%d sandboxes are idle, want 1: two make room for the large one", n)
		}
		_, err := huge.Reserve(t.Context(), "")
		if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "1025 MB of 1024 MB") {
			t.Errorf("a sandbox that never fits: %v", err)
		}
		for _, r := range []*rig{small, large, huge} {
			r.shutdown()
		}
		b.idleNow(t)
	})
}

// Not more sandboxes are on their way out at once than the budget has: root allows twice the
// number in all.
func TestBudgetBoundsTheLeaving(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1, 0)
		var rigs []*rig
		begin := time.Now()
		for i := range 3 {
			r := newRig(t, Config{Max: 1, Budget: b}, func(s *fake) { s.work = 0 })
			rigs = append(rigs, r)
			r.want(r.start(t.Context(), fmt.Sprint(i)), "a")
			time.Sleep(time.Millisecond) // Done
		}
		// The second had to wait for nothing, and the third for the removal of the first (100 ms).
		if took := time.Since(begin); took < 150*time.Millisecond {
			t.Errorf("three functions took turns on one place in %v: two sandboxes were on their way out", took)
		}
		for _, r := range rigs {
			r.shutdown()
		}
		b.idleNow(t)
	})
}

// Sandboxes of a fleet that shuts down count until they are closed, and their room goes to
// those who wait.
func TestBudgetAfterShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(1, 0)
		old := newRig(t, Config{Max: 9, Budget: b}, func(s *fake) { s.tail = time.Second })
		next := newRig(t, Config{Max: 9, Budget: b}, nil)
		old.want(old.start(t.Context(), "1"), "a")
		waits := next.start(t.Context(), "2")
		synctest.Wait()
		old.shutdown()
		next.want(waits, "a")
		next.shutdown()
		if _, err := next.Reserve(t.Context(), ""); !errors.Is(err, ErrClosed) {
			t.Errorf("after Shutdown: %v", err)
		}
		b.idleNow(t)
	})
}

// A request that waits for room gets ErrClosed when its own fleet shuts down.
func TestBudgetWaiterOfAFleetThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := NewBudget(2, 0)
		busy := newRig(t, Config{Max: 9, Budget: b}, func(s *fake) { s.tail = time.Second })
		next := newRig(t, Config{Max: 9, Budget: b}, nil)
		one, two := busy.start(t.Context(), "1"), busy.start(t.Context(), "2")
		<-one
		<-two
		first, second := next.start(t.Context(), "3"), next.start(t.Context(), "4")
		synctest.Wait()
		within(t, 0, func() {
			next.shutdown()
			next.want(first, "! "+ErrClosed.Error())
			next.want(second, "! "+ErrClosed.Error())
		})
		busy.shutdown()
		b.idleNow(t)
	})
}

// Fleets under random load never exceed the budget, every request ends, and at the end
// nothing is counted. Sandboxes die, clients leave, and fleets end meanwhile.
func TestBudgetUnderLoad(t *testing.T) {
	for seed := range uint64(30) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 13))
			limit := 1 + rnd.IntN(4)
			mortal := seed%2 == 0 // sandboxes die, and then do not count while their callers learn of it
			b := NewBudget(limit, uint64(limit)*200*mb)
			var exist, busy atomic.Int32
			var rigs []*rig
			var mu sync.Mutex // of rnd
			for i := range 5 {
				cfg := Config{Max: 1 + rnd.IntN(6), Budget: b, Memory: uint64(100+50*i) * mb, IdleTimeout: time.Duration(rnd.IntN(3)) * 40 * time.Millisecond}
				r := newRig(t, cfg, func(s *fake) {
					mu.Lock()
					defer mu.Unlock()
					s.work, s.tail = time.Duration(rnd.IntN(30))*time.Millisecond, time.Duration(rnd.IntN(10))*time.Millisecond
					if n := exist.Add(1); int(n) > 2*limit {
						t.Errorf("seed %d: %d sandboxes, at most %d may exist", seed, n, 2*limit)
					}
					ended := s.ended
					if mortal && rnd.IntN(4) == 0 {
						time.AfterFunc(time.Duration(rnd.IntN(80))*time.Millisecond, func() { close(ended) })
					}
				})
				r.Fleet.cfg.New = counted(r.Fleet.cfg.New, &exist)
				rigs = append(rigs, r)
			}
			var all sync.WaitGroup
			var served, refused atomic.Int32
			for range 20 {
				mu.Lock()
				delay, own := time.Duration(rnd.IntN(50))*time.Millisecond, rand.New(rand.NewPCG(rnd.Uint64(), seed))
				mu.Unlock()
				all.Go(func() {
					time.Sleep(delay)
					for range 15 {
						r := rigs[own.IntN(len(rigs))]
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(own.IntN(200))*time.Millisecond)
						l, err := r.Reserve(ctx, []string{"", "", "x"}[own.IntN(1+own.IntN(3))])
						if err == nil {
							if n := busy.Add(1); int(n) > limit && !mortal {
								t.Errorf("seed %d: %d invocations at once, at most %d", seed, n, limit)
							}
							_, err = l.Invoke(&rapid.Invocation{ID: "n"})
							busy.Add(-1)
						}
						cancel()
						switch {
						case err == nil:
							served.Add(1)
						case errors.Is(err, ErrNoRoom), errors.Is(err, ErrTooMany), errors.Is(err, ErrTooLarge), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrClosed):
							refused.Add(1)
						default:
							t.Errorf("seed %d: %v", seed, err)
						}
						time.Sleep(time.Duration(own.IntN(20)) * time.Millisecond)
					}
				})
			}
			all.Wait()
			if served.Load() == 0 {
				t.Errorf("seed %d: none of %d requests was served", seed, refused.Load())
			}
			for _, r := range rigs {
				r.shutdown()
			}
			b.idleNow(t)
			if n := exist.Load(); n != 0 {
				t.Errorf("seed %d: %d sandboxes are left", seed, n)
			}
		})
	}
}

// counted returns newSandbox with a count of the sandboxes that are not closed, which setup
// has raised.
func counted(newSandbox func(context.Context) (Sandbox, error), exist *atomic.Int32) func(context.Context) (Sandbox, error) {
	return func(ctx context.Context) (Sandbox, error) {
		s, err := newSandbox(ctx)
		if err != nil {
			return nil, err
		}
		return closeCounter{s, exist}, nil
	}
}

type closeCounter struct {
	Sandbox
	exist *atomic.Int32
}

func (c closeCounter) Close(ctx context.Context) error {
	defer c.exist.Add(-1)
	return c.Sandbox.Close(ctx)
}

// What the fleet does for an invocation of an idle sandbox, without and with a budget.
func BenchmarkReserve(b *testing.B) {
	for _, c := range []struct {
		name   string
		budget *Budget
	}{{"alone", nil}, {"budget", NewBudget(10, 0)}} {
		b.Run(c.name, func(b *testing.B) {
			f := New(Config{Max: 10, Budget: c.budget})
			l, err := f.Reserve(context.Background(), "")
			if err != nil {
				b.Fatal(err)
			}
			l.m.sandbox = &fake{}
			for b.Loop() {
				l.unused()
				l, err = f.Reserve(context.Background(), "")
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
