package pool

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// workshop makes numbers and knows which it got back.
type workshop struct {
	mu        sync.Mutex
	made      int
	discarded []int
	fail      error
	ceiling   int
	short     bool
	took      time.Duration
	errors    int
}

func (w *workshop) config(floor int) Config[string, int] {
	return Config[string, int]{
		Make: func(ctx context.Context, _ string) (int, error) {
			if !sleep(ctx, w.took) {
				return 0, ctx.Err()
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if w.fail != nil {
				return 0, w.fail
			}
			w.made++
			return w.made, nil
		},
		Discard:  func(n int) { w.mu.Lock(); w.discarded = append(w.discarded, n); w.mu.Unlock() },
		Floor:    floor,
		Ceiling:  func() int { w.mu.Lock(); defer w.mu.Unlock(); return w.ceiling },
		Pressure: func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.short },
		OnError:  func(error) { w.mu.Lock(); w.errors++; w.mu.Unlock() },
	}
}

func TestPoolHoldsTheFloorAndRefills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 10, took: 30 * time.Millisecond}
		p := New(w.config(2))
		p.Use("a")
		defer p.Close(context.Background())
		if _, finish, ok := p.Take("a"); ok {
			t.Error("an empty pool gave something")
		} else {
			finish()
		}
		time.Sleep(time.Second)
		if n := p.Ready("a"); n != 2 {
			t.Fatalf("%d ready, want the floor of 2", n)
		}
		got, finish, ok := p.Take("a")
		if !ok || got != 2 {
			t.Errorf("took %d, %v; want the newest, 2", got, ok)
		}
		finish()
		finish()
		synctest.Wait()
		if n := p.Ready("a"); n != 1 {
			t.Errorf("%d ready right after: the refill did not leave the taker in peace", n)
		}
		time.Sleep(time.Second)
		if n := p.Ready("a"); n != 2 {
			t.Errorf("%d ready after a second, want 2", n)
		}
	})
}

// While somebody works with what it took, nothing is made, and what is being made is the last.
func TestPoolLeavesTakersInPeace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 10, took: 30 * time.Millisecond}
		p := New(w.config(2))
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(time.Second)
		want := func(ready int, when string) {
			t.Helper()
			synctest.Wait()
			if n := p.Ready("a"); n != ready {
				t.Errorf("%d ready %s, want %d", n, when, ready)
			}
		}
		_, one, _ := p.Take("a")
		_, two, _ := p.Take("a")
		time.Sleep(patience / 4)
		want(0, "while both takers work")
		one()
		time.Sleep(respite + w.took - 1)
		want(0, "while one still works")
		two()
		time.Sleep(respite + w.took - 1)
		want(0, "before the first can be done")
		_, three, ok := p.Take("a") // of which there is none: it makes its own
		if ok {
			t.Error("an empty pool gave something")
		}
		time.Sleep(time.Nanosecond)
		want(1, "when what was begun is done")
		time.Sleep(patience / 4)
		want(1, "while the third taker works")
		three()
		time.Sleep(respite + w.took)
		want(2, "when all is calm")
	})
}

// Takers that never finish hold up what is made, and do not stop it.
func TestPoolFillsInSpiteOfTakers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 10, took: 30 * time.Millisecond}
		p := New(w.config(2))
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(time.Second)
		for range 2 {
			if _, _, ok := p.Take("a"); !ok {
				t.Fatal("the pool is empty")
			}
		}
		for made := range 2 {
			time.Sleep(patience + w.took - 1)
			synctest.Wait()
			if n := p.Ready("a"); n != made {
				t.Errorf("%d ready before patience is over, want %d", n, made)
			}
			time.Sleep(time.Nanosecond)
			synctest.Wait()
			if n := p.Ready("a"); n != made+1 {
				t.Errorf("%d ready after patience, want %d", n, made+1)
			}
		}
	})
}

// Closing does not wait for takers.
func TestPoolCloseWhileTakersWork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 1}
		p := New(w.config(1))
		p.Use("a")
		time.Sleep(time.Second)
		_, finish, _ := p.Take("a")
		synctest.Wait()
		before := time.Now()
		p.Close(context.Background())
		finish()
		if waited := time.Since(before); waited != 0 || w.made != 1 { // the bubble's clock: exact
			t.Errorf("waited for %s, made %d", waited, w.made)
		}
	})
}

func TestPoolFollowsDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 4}
		p := New(w.config(1))
		defer p.Close(context.Background())
		for range 6 { // before anything is made
			p.Take("a")
		}
		p.Use("a")
		time.Sleep(time.Second)
		if n := p.Ready("a"); n != 4 {
			t.Errorf("%d ready after 6 takes, want the ceiling of 4", n)
		}
		time.Sleep(window + 2*checkEvery)
		if n := p.Ready("a"); n != 1 {
			t.Errorf("%d ready when demand is over, want the floor of 1", n)
		}
		if !slices.Equal(w.discarded, []int{1, 2, 3}) {
			t.Errorf("discarded %v, want the three oldest", w.discarded)
		}
	})
}

func TestPoolWithoutFloorFillsWithDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 4}
		p := New(w.config(0))
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(time.Minute)
		synctest.Wait()
		if w.made != 0 {
			t.Errorf("%d made without demand", w.made)
		}
		p.Take("a")
		time.Sleep(time.Second)
		if n := p.Ready("a"); n != 1 {
			t.Errorf("%d ready after one miss, want 1", n)
		}
	})
}

func TestPoolDrainsUnderPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 4}
		p := New(w.config(3))
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(time.Second)
		w.mu.Lock()
		w.short = true
		w.mu.Unlock()
		time.Sleep(2 * checkEvery)
		if n := p.Ready("a"); n != 0 {
			t.Errorf("%d ready under pressure", n)
		}
		w.mu.Lock()
		w.short = false
		w.mu.Unlock()
		time.Sleep(2 * checkEvery)
		if n := p.Ready("a"); n != 3 {
			t.Errorf("%d ready when pressure is over, want 3", n)
		}
	})
}

func TestPoolTriesAgainLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 1, fail: errors.New("no")}
		p := New(w.config(1))
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		if w.errors != 4 {
			t.Errorf("%d tries in 10 s, want 4: after 0, 1, 3 and 7 s", w.errors)
		}
		w.fail = nil
		w.mu.Unlock()
		time.Sleep(lastRetry)
		if n := p.Ready("a"); n != 1 {
			t.Errorf("%d ready after recovery", n)
		}
	})
}

// A Make that hangs is ended and told, and the pool goes on.
func TestPoolMakeHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 1}
		cfg, hangs := w.config(1), true
		make := cfg.Make
		cfg.Make = func(ctx context.Context, shape string) (int, error) {
			if hangs {
				hangs = false
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return make(ctx, shape)
		}
		p := New(cfg)
		p.Use("a")
		defer p.Close(context.Background())
		time.Sleep(makeTime + 2*firstRetry)
		if n := p.Ready("a"); n != 1 || w.errors != 1 {
			t.Errorf("%d ready and %d errors after one Make that hung", n, w.errors)
		}
	})
}

func TestPoolCloseDiscardsAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 3}
		p := New(w.config(3))
		p.Use("a")
		time.Sleep(time.Second)
		mine, _, _ := p.Take("a")
		p.Close(context.Background())
		p.Close(context.Background())
		if _, _, ok := p.Take("a"); ok {
			t.Error("a closed pool gave something")
		}
		slices.Sort(w.discarded)
		for n := 1; n <= w.made; n++ {
			if _, there := slices.BinarySearch(w.discarded, n); there == (n == mine) {
				t.Errorf("made %d, took %d, discarded %v", w.made, mine, w.discarded)
			}
		}
	})
}

// hanging returns a pool whose Make has begun to make 7, and does not return until release is
// closed.
func (w *workshop) hanging() (p *Pool[string, int], release chan struct{}) {
	begun, release := make(chan struct{}), make(chan struct{})
	cfg := w.config(1)
	cfg.Make = func(context.Context, string) (int, error) { close(begun); <-release; return 7, nil }
	p = New(cfg)
	p.Use("a")
	<-begun
	return p, release
}

// Closing while Make is at work: what it makes in spite of that is discarded too.
func TestPoolCloseDuringMake(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 1}
		p, release := w.hanging()
		go func() { time.Sleep(time.Second); close(release) }()
		p.Close(context.Background())
		if !slices.Equal(w.discarded, []int{7}) {
			t.Errorf("discarded %v, want 7", w.discarded)
		}
	})
}

// Close returns when its context ends, even if Make hangs.
func TestPoolCloseIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &workshop{ceiling: 1}
		p, release := w.hanging()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close: %v, want that of the context", err)
		}
		close(release)
		if err := p.Close(t.Context()); err != nil || !slices.Equal(w.discarded, []int{7}) {
			t.Errorf("Close: %v, discarded %v, want 7", err, w.discarded)
		}
	})
}

// The time to close does not grow with what is kept ready as if one went after the other.
func TestPoolDiscardsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const many = 2 * discards
		w := &workshop{ceiling: many}
		cfg := w.config(many)
		discard := cfg.Discard
		cfg.Discard = func(n int) { time.Sleep(time.Second); discard(n) }
		p := New(cfg)
		p.Use("a")
		time.Sleep(time.Minute)
		if n := p.Ready("a"); n != many {
			t.Fatalf("%d are ready", n)
		}
		began := time.Now()
		if err := p.Close(t.Context()); err != nil || len(w.discarded) != many || time.Since(began) != 2*time.Second {
			t.Errorf("Close: %v, %d discarded after %v", err, len(w.discarded), time.Since(began))
		}
	})
}

// Things are held by shape: the ceiling is for all together, and those that were asked for
// last come first.
func TestPoolShapes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shapes := map[int]string{}
		w := &workshop{ceiling: 5}
		cfg := w.config(1)
		make := cfg.Make
		cfg.Make = func(ctx context.Context, shape string) (int, error) {
			n, err := make(ctx, shape)
			shapes[n] = shape
			return n, err
		}
		p := New(cfg)
		defer p.Close(context.Background())
		want := func(a, b, c int, when string) {
			t.Helper()
			if p.Ready("a") != a || p.Ready("b") != b || p.Ready("c") != c {
				t.Errorf("%s: %d, %d and %d are ready; want %d, %d and %d", when, p.Ready("a"), p.Ready("b"), p.Ready("c"), a, b, c)
			}
		}
		doneA, doneB := p.Use("a"), p.Use("b")
		time.Sleep(time.Second)
		want(1, 1, 0, "at first")
		n, finish, ok := p.Take("a")
		finish()
		if !ok || shapes[n] != "a" {
			t.Errorf("took %d of shape %q, %v; want one of shape a", n, shapes[n], ok)
		}
		if _, finish, ok := p.Take("c"); ok {
			t.Error("a thing of another shape was given")
		} else {
			finish()
		}
		time.Sleep(time.Second)
		want(1, 1, 0, "of a shape that nobody uses none is made")
		for range 4 {
			_, finish, _ := p.Take("b")
			finish()
		}
		time.Sleep(time.Second)
		want(1, 4, 0, "when b is asked for")
		w.mu.Lock()
		w.ceiling = 3
		w.mu.Unlock()
		time.Sleep(checkEvery + time.Second)
		want(0, 3, 0, "with little room")
		again := p.Use("b")
		doneB()
		time.Sleep(window + 2*checkEvery)
		want(1, 1, 0, "when demand is over, b is still used")
		again()
		again()
		doneA()
		time.Sleep(2 * checkEvery)
		want(0, 0, 0, "when nobody uses any")
		if len(p.shapes) != 0 || len(p.order) != 0 {
			t.Errorf("%d shapes are remembered", len(p.shapes))
		}
	})
}
