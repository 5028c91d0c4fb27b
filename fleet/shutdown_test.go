package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

func TestShutdownDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 3}, func(s *fake) { s.tail = 200 * time.Millisecond })
		running := r.start(t.Context(), "1")
		synctest.Wait()
		over := make(chan error)
		go func() { over <- r.Shutdown(t.Context()) }()
		synctest.Wait()
		if _, err := r.Reserve(t.Context(), ""); !errors.Is(err, ErrClosed) {
			t.Errorf("Reserve while draining: %v, want ErrClosed", err)
		}
		// made in 50 ms, works 1 s, Done 200 ms later, closed in 100 ms
		within(t, 1350*time.Millisecond, func() {
			r.want(running, "a")
			if err := <-over; err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
		r.allClosed()
		r.shutdown() // again: nothing to do
	})
}

func TestShutdownDeadlineAndErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("cgroup is busy")
		r := newRig(t, Config{Max: 3}, func(s *fake) { s.work, s.closeErr = time.Hour, broken })
		running := r.start(t.Context(), "1")
		time.Sleep(time.Second)
		making := r.start(t.Context(), "2")
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		within(t, 110*time.Millisecond, func() {
			err := r.Shutdown(ctx)
			if !errors.Is(err, broken) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Shutdown: %v, want the deadline and the error of Close", err)
			}
		})
		r.want(running, "! cut short by the shutdown: context canceled")
		r.want(making, "! the function is shut down: context canceled")
		r.allClosed()
		if err := r.Shutdown(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown again: %v, want what the first one said", err)
		}
	})
}

// Hurry is no fault when there is nothing to wait for.
func TestShutdownOfIdleInAHurry(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 { // which of two reasons to go on comes first is random
		if err := newRig(t, Config{Max: 1}, nil).Shutdown(ctx); err != nil {
			t.Fatalf("Shutdown: %v, want no error", err)
		}
	}
}

func TestShutdownWakesWaiters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, func(s *fake) { s.tail = time.Minute })
		r.want(r.start(t.Context(), "1"), "a")
		waiting := r.start(t.Context(), "2")
		synctest.Wait()
		go func() { r.want(waiting, "! "+ErrClosed.Error()) }()
		r.shutdown()
	})
}

// Many clients on few sandboxes that die now and then: every invocation is answered
// once, refused, or failed; never two in one sandbox at a time, never one twice.
func TestLedger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const clients, each, limit = 20, 50, 5
		n := 0
		r := newRig(t, Config{Max: limit, IdleTimeout: 30 * time.Millisecond}, nil)
		r.setup = func(s *fake) {
			n++
			s.work, s.tail = time.Duration(n%7)*time.Millisecond, time.Duration(n%5)*time.Millisecond
			time.AfterFunc(time.Duration(20+n*13%60)*time.Millisecond, func() { close(s.ended) })
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		outcome := map[string]int{}
		answered := map[string]bool{}
		for c := range clients {
			wg.Go(func() {
				for i := range each {
					id := fmt.Sprintf("%d/%d", c, i)
					_, err := r.Invoke(t.Context(), &rapid.Invocation{ID: id})
					mu.Lock()
					switch {
					case err == nil:
						outcome["answered"]++
						answered[id] = true
					case errors.Is(err, ErrTooMany):
						outcome["refused"]++
					default:
						outcome["failed"]++
						t.Logf("failed: %v", err)
					}
					mu.Unlock()
					time.Sleep(time.Duration(c%4) * 3 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		r.shutdown()
		seen := map[string]int{}
		for _, b := range r.boxes {
			ran, _ := b.history()
			for _, id := range ran {
				seen[id]++
			}
		}
		for id, times := range seen {
			if times != 1 || !answered[id] {
				t.Errorf("invocation %s ran %d times, answered %v", id, times, answered[id])
			}
		}
		if len(seen) != outcome["answered"] || outcome["answered"]+outcome["refused"] != clients*each {
			t.Errorf("%d ran, %v of %d", len(seen), outcome, clients*each)
		}
		if outcome["answered"] < 50 || outcome["refused"] < 50 || len(r.boxes) < 10 {
			t.Errorf("the run shows nothing: %v with %d sandboxes", outcome, len(r.boxes))
		}
	})
}

// A sandbox that was asked in vain when its time was over does not stay for ever.
func TestIdleTimeoutMeetsRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func(*fake) error { time.Sleep(2 * time.Second); return rapid.ErrUnavailable }
		r := newRig(t, Config{Max: 1, IdleTimeout: 10 * time.Second}, func(s *fake) { s.many = true })
		r.want(r.start(t.Context(), "1"), "a")
		time.Sleep(9 * time.Second)
		r.boxes[0].invoke = refuse
		if got := <-r.start(t.Context(), "2"); !strings.Contains(got, rapid.ErrUnavailable.Error()) {
			t.Errorf("got %q", got)
		}
		time.Sleep(20 * time.Second)
		if _, closed := r.boxes[0].history(); !closed {
			t.Error("not closed 20 s after its last use")
		}
		r.shutdown()
	})
}
