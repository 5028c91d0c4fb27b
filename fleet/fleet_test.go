package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/sandboxd/sandboxd/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A fake is a sandbox whose function takes work to answer and then tail to Done.
type fake struct {
	id         string
	work, tail time.Duration
	invoke     func(*fake) error // replaces a success; nil error is one
	closeErr   error
	stuck      bool // never ready
	many       bool // takes several invocations at once

	mu     sync.Mutex
	ran    []string // ids of the invocations that a process has seen
	busy   bool
	closed bool
	ended  chan struct{}
	ready  chan struct{}
}

func (s *fake) ID() string             { return s.id }
func (s *fake) Ready() <-chan struct{} { return s.ready }
func (s *fake) Ended() <-chan struct{} { return s.ended }
func (s *fake) State() rapid.State {
	select {
	case <-s.ended:
		return rapid.Dead
	default:
		return rapid.Idle
	}
}

func (s *fake) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	if s.State() == rapid.Dead {
		return nil, rapid.ErrDead
	}
	s.mu.Lock()
	if s.busy && !s.many {
		s.mu.Unlock()
		return nil, rapid.ErrBusy
	}
	s.busy = true
	s.mu.Unlock()
	if s.invoke != nil {
		if err := s.invoke(s); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.ran = append(s.ran, inv.ID)
	s.mu.Unlock()
	select {
	case <-time.After(s.work):
	case <-s.ended:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done := make(chan struct{})
	time.AfterFunc(s.tail, func() {
		s.mu.Lock()
		s.busy = false
		s.mu.Unlock()
		close(done)
	})
	return &rapid.Result{Payload: []byte(s.id), Done: done}, nil
}

func (s *fake) Close(context.Context) error {
	s.mu.Lock()
	if s.closed {
		panic("sandbox closed twice")
	}
	s.closed = true
	s.mu.Unlock()
	time.Sleep(100 * time.Millisecond)
	return s.closeErr
}

// history is what the sandbox did so far.
func (s *fake) history() (ran []string, closed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.ran), s.closed
}

// A rig is a fleet of fakes named a, b, c, … in the order of their making.
type rig struct {
	*Fleet
	t     *testing.T
	mu    sync.Mutex
	boxes []*fake
	fail  error // of New
	setup func(*fake)
	errs  []error
}

func newRig(t *testing.T, cfg Config, setup func(*fake)) *rig {
	r := &rig{t: t, setup: setup}
	cfg.New = func(ctx context.Context) (Sandbox, error) {
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.fail != nil {
			return nil, r.fail
		}
		s := &fake{id: string(rune('a' + len(r.boxes))), work: time.Second, tail: time.Millisecond, ended: make(chan struct{}), ready: make(chan struct{})}
		if r.setup != nil {
			r.setup(s)
		}
		r.boxes = append(r.boxes, s)
		return s, nil
	}
	cfg.NewProvisioned = func(ctx context.Context) (Sandbox, error) {
		s, err := cfg.New(ctx)
		if err == nil && !s.(*fake).stuck {
			time.AfterFunc(time.Second, func() { close(s.(*fake).ready) })
		}
		return s, err
	}
	cfg.OnError = func(err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.errs = append(r.errs, err)
	}
	r.Fleet = New(cfg)
	return r
}

// shutdown ends the fleet and checks that every sandbox was closed.
func (r *rig) shutdown() {
	r.t.Helper()
	if err := r.Shutdown(context.Background()); err != nil {
		r.t.Errorf("Shutdown: %v", err)
	}
	r.allClosed()
}

func (r *rig) allClosed() {
	r.t.Helper()
	for _, b := range r.boxes {
		if _, closed := b.history(); !closed {
			r.t.Errorf("sandbox %s was not closed", b.id)
		}
	}
	if n := len(r.Stats()); n != 0 {
		r.t.Errorf("%d sandboxes are left in Stats", n)
	}
}

// start runs one invocation in the background; the channel gives the sandbox that
// answered or "! error".
func (r *rig) start(ctx context.Context, id string) <-chan string {
	got := make(chan string, 1)
	go func() {
		res, err := r.Invoke(ctx, &rapid.Invocation{ID: id})
		if err != nil {
			got <- "! " + err.Error()
			return
		}
		got <- string(res.Payload)
	}()
	return got
}

func (r *rig) want(got <-chan string, want string) {
	r.t.Helper()
	if g := <-got; g != want {
		r.t.Errorf("got %q, want %q", g, want)
	}
}

func within(t *testing.T, want time.Duration, f func()) {
	t.Helper()
	begin := time.Now()
	f()
	if took := time.Since(begin); took != want {
		t.Errorf("took %v, want %v", took, want)
	}
}

func TestUsesTheWarmestSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 3}, nil)
		one, two := r.start(t.Context(), "1"), r.start(t.Context(), "2")
		first, second := <-one, <-two
		if first == second {
			t.Fatalf("two invocations at once ran in sandbox %s", first)
		}
		time.Sleep(time.Second)
		warm := <-r.start(t.Context(), "3")
		time.Sleep(time.Second)
		for range 5 {
			within(t, time.Second, func() { r.want(r.start(t.Context(), "n"), warm) })
			time.Sleep(time.Second)
		}
		if len(r.boxes) != 2 {
			t.Errorf("%d sandboxes were made, want 2", len(r.boxes))
		}
		var counts []uint64
		for _, s := range r.Stats() {
			counts = append(counts, s.Invocations)
			if s.Idle < 900*time.Millisecond || s.State != rapid.Idle.String() {
				t.Errorf("stat %+v: want it idle since its last Done", s)
			}
		}
		slices.Sort(counts)
		if !slices.Equal(counts, []uint64{1, 7}) {
			t.Errorf("invocations by sandbox: %v, want 1 and 7", counts)
		}
		r.shutdown()
	})
}

// A client that sends one request after the other must stay on one sandbox although
// its next request comes before Done (LC-41).
func TestSequentialClientStaysWarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 10}, func(s *fake) { s.tail = 3 * time.Millisecond })
		for range 20 {
			r.want(r.start(t.Context(), "x"), "a")
		}
		r.shutdown()
	})
}

// With room, nobody waits long for a slow extension of another invocation.
func TestSlowTailGetsANewSandboxIfThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 2}, func(s *fake) { s.tail = 500 * time.Millisecond })
		r.want(r.start(t.Context(), "1"), "a")
		within(t, patience+50*time.Millisecond+time.Second, func() { r.want(r.start(t.Context(), "2"), "b") })
		r.shutdown()
	})
}

// ACC-10: at the limit, the second invocation waits for the first one's extensions.
func TestSlowTailIsWaitedForAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, func(s *fake) { s.tail = 500 * time.Millisecond })
		r.want(r.start(t.Context(), "1"), "a")
		second := r.start(t.Context(), "2")
		synctest.Wait()
		if _, err := r.Reserve(t.Context(), ""); !errors.Is(err, ErrTooMany) {
			t.Errorf("a third request: %v, want ErrTooMany: only one may wait", err)
		}
		within(t, 1500*time.Millisecond, func() { r.want(second, "a") })
		r.shutdown()
	})
}

// INV-23: above the limit the answer is no, at once, and below it never.
func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const limit = 4
		r := newRig(t, Config{Max: limit}, nil)
		var ran []<-chan string
		for i := range limit {
			ran = append(ran, r.start(t.Context(), fmt.Sprint(i)))
		}
		synctest.Wait()
		within(t, 0, func() {
			for range 100 {
				if _, err := r.Reserve(t.Context(), ""); !errors.Is(err, ErrTooMany) {
					t.Fatalf("above the limit: %v, want ErrTooMany", err)
				}
			}
		})
		used := map[string]bool{}
		for _, c := range ran {
			used[<-c] = true
		}
		if len(used) != limit {
			t.Errorf("%d invocations at once used the sandboxes %v", limit, used)
		}
		time.Sleep(time.Second)
		r.Fleet.mu.Lock()
		warmest := r.idle[limit-1].sandbox.ID()
		r.Fleet.mu.Unlock()
		r.want(r.start(t.Context(), "again"), warmest)
		r.shutdown()
	})
}

func TestWaiterThatLeavesGivesItsPlaceBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, func(s *fake) { s.tail = 500 * time.Millisecond })
		r.want(r.start(t.Context(), "1"), "a")
		ctx, cancel := context.WithCancel(t.Context())
		left := r.start(ctx, "2")
		synctest.Wait()
		cancel()
		r.want(left, "! wait for a sandbox: context canceled")
		r.want(r.start(t.Context(), "3"), "a")
		time.Sleep(time.Second)
		if got, _ := r.boxes[0].history(); !slices.Equal(got, []string{"1", "3"}) {
			t.Errorf("ran %v, want 1 and 3", got)
		}
		r.shutdown()
	})
}

// A lease that is granted at the very moment when its waiter leaves must not be lost,
// whichever of the two the waiter sees.
func TestGrantToAWaiterThatLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, nil)
		r.want(r.start(t.Context(), "1"), "a")
		for _, seesGrant := range []bool{true, false} {
			time.Sleep(time.Second)
			ctx, cancel := context.WithCancel(t.Context())
			w := waiter{"", make(chan grant, 1)}
			leases := make(chan *Lease)
			go func() {
				l, _ := r.wait(ctx, w) // the lease tells
				leases <- l
			}()
			time.Sleep(2 * patience)
			synctest.Wait()
			r.Fleet.mu.Lock()
			if !seesGrant {
				cancel()
			}
			w.grant <- grant{lease: r.take("", nil)}
			cancel()
			r.Fleet.mu.Unlock()
			l := <-leases
			if (l != nil) != seesGrant {
				t.Fatalf("the waiter got %v", l)
			}
			if l != nil {
				if _, err := l.Invoke(&rapid.Invocation{ID: "x"}); err != nil {
					t.Fatal(err)
				}
			}
		}
		time.Sleep(time.Second)
		r.want(r.start(t.Context(), "2"), "a")
		r.shutdown()
	})
}

// Whether a client is still there is not asked of a request that has not waited for long,
// as to watch it costs more than the wait.
func TestShortWaitDoesNotAskForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, func(s *fake) { s.tail = patience / 2 })
		r.want(r.start(t.Context(), "1"), "a")
		ctx := &asked{Context: t.Context()}
		r.want(r.start(ctx, "2"), "a")
		if ctx.asked.Load() {
			t.Error("the context's Done was asked for")
		}
		r.shutdown()
	})
}

// asked is a context that knows whether somebody waits for its end.
type asked struct {
	context.Context
	asked atomic.Bool
}

func (a *asked) Done() <-chan struct{} {
	a.asked.Store(true)
	return a.Context.Done()
}

func TestDeath(t *testing.T) {
	host := errors.New("the host is to blame")
	tests := []struct {
		name string
		max  int
		// die acts on sandbox a after its first invocation, idle or not.
		die  func(*fake)
		want []string // answers of the next invocations
		runs []string // what sandbox a's processes have seen in the end
	}{
		{"while idle", 1, func(s *fake) { close(s.ended) }, []string{"b", "b"}, []string{"1"}},
		{"seen only by the next invocation", 1, func(s *fake) {
			s.invoke = func(s *fake) error { return rapid.ErrDead }
		}, []string{"b", "b"}, []string{"1"}},
		{"being reset, with room", 2, func(s *fake) {
			s.invoke = func(s *fake) error { return rapid.ErrBusy }
		}, []string{"b", "b"}, []string{"1"}},
		{"in the middle of the next invocation", 1, func(s *fake) {
			time.AfterFunc(500*time.Millisecond, func() { close(s.ended) })
			time.Sleep(100 * time.Millisecond)
		}, []string{"a", "b"}, []string{"1", "2"}},
		{"with an error that may mean it ran", 1, func(s *fake) {
			s.invoke = func(s *fake) error { return host }
		}, []string{"! invoke sandbox a: " + host.Error(), "b"}, []string{"1"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{Max: tt.max}, nil)
				r.want(r.start(t.Context(), "1"), "a")
				time.Sleep(time.Second)
				a := r.boxes[0]
				tt.die(a)
				for i, want := range tt.want {
					r.want(r.start(t.Context(), fmt.Sprint(i+2)), want)
				}
				time.Sleep(time.Second)
				ran, closed := a.history()
				if !closed {
					t.Error("the dead sandbox was not closed")
				}
				if !slices.Equal(ran, tt.runs) {
					t.Errorf("sandbox a ran %v, want %v", ran, tt.runs)
				}
				r.shutdown()
			})
		})
	}
}

// A new sandbox that dies at its first invocation is the caller's error, not a loop.
func TestStillbornSandbox(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, func(s *fake) { s.invoke = func(*fake) error { return rapid.ErrDead } })
		r.want(r.start(t.Context(), "1"), "! invoke sandbox a: "+rapid.ErrDead.Error())
		r.want(r.start(t.Context(), "2"), "! invoke sandbox b: "+rapid.ErrDead.Error())
		r.shutdown()
	})
}

func TestCreationErrorFreesThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1}, nil)
		r.fail = errors.New("no netns")
		for range 3 {
			_, err := r.Invoke(t.Context(), &rapid.Invocation{ID: "1"})
			if !errors.Is(err, r.fail) {
				t.Errorf("Invoke: %v, want the error of New", err)
			}
		}
		r.fail = nil
		r.want(r.start(t.Context(), "2"), "a")
		r.shutdown()
	})
}

func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken := errors.New("mount is busy")
		r := newRig(t, Config{Max: 1, IdleTimeout: 10 * time.Second}, func(s *fake) { s.closeErr = broken })
		r.want(r.start(t.Context(), "1"), "a")
		time.Sleep(9 * time.Second)
		r.want(r.start(t.Context(), "2"), "a") // used again in time: the clock starts anew
		time.Sleep(9 * time.Second)
		if _, closed := r.boxes[0].history(); closed {
			t.Error("closed 9 s after its last use, want 10 s")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, closed := r.boxes[0].history(); !closed || len(r.Stats()) != 0 {
			t.Error("not closed 11 s after its last use")
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.errs) != 1 || !errors.Is(r.errs[0], broken) {
			t.Errorf("OnError got %v, want the error of Close", r.errs)
		}
	})
}

// The idle sandboxes are listed, the longest idle first; those that are told are closed, unless
// they were used since.
func TestCloseIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 5}, func(s *fake) { s.work = time.Second })
		defer r.shutdown()
		if list := r.Idlers(); len(list) != 0 {
			t.Errorf("%v are idle before there is any", list)
		}
		var running []<-chan string
		for _, id := range []string{"1", "2", "3", "4"} {
			running = append(running, r.start(t.Context(), id))
			time.Sleep(time.Millisecond)
		}
		for i, answer := range running {
			r.want(answer, string(rune('a'+i)))
			time.Sleep(time.Second)
		}
		list := r.Idlers()
		var ids []string
		for _, i := range list {
			ids = append(ids, i.ID)
		}
		if want := []string{"a", "b", "c", "d"}; !slices.Equal(ids, want) {
			t.Fatalf("%q are idle, want %q", ids, want)
		}
		again := r.start(t.Context(), "5") // takes the warmest
		synctest.Wait()
		for _, i := range list {
			r.CloseIdle(i)
			r.CloseIdle(i)
		}
		r.want(again, "d")
		r.CloseIdle(list[3]) // it is idle again, for less long
		time.Sleep(time.Second)
		for i, want := range []bool{true, true, true, false} {
			if _, closed := r.boxes[i].history(); closed != want {
				t.Errorf("%s closed: %v, want %v", r.boxes[i].id, closed, want)
			}
		}
		r.want(r.start(t.Context(), "6"), "d")
	})
}
