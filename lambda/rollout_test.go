package lambda

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/function"
)

var errCrash = errors.New("crash")

// A crasher lets a process do a number of steps, and then nothing more. Each transaction and each
// call of the deployer is two steps: before it has its effect, and after it.
type crasher struct {
	mu    sync.Mutex
	left  int
	crash func()
}

func (c *crasher) step() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left == 0 {
		c.crash()
		return errCrash
	}
	c.left--
	return nil
}

func (c *crasher) around(do func() error) error {
	if err := c.step(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return c.step()
}

// crashStore and crashDeployer are those of a process that ends.
type crashStore struct {
	*memStore
	c *crasher
}

func (s crashStore) View(ctx context.Context, f func(Reader) error) error {
	return s.c.around(func() error { return s.memStore.View(ctx, f) })
}

func (s crashStore) Update(ctx context.Context, f func(Tx) error) error {
	return s.c.around(func() error { return s.memStore.Update(ctx, f) })
}

type crashDeployer struct {
	*fakeDeployer
	c *crasher
}

func (d crashDeployer) Register(ctx context.Context, r Revision) error {
	return d.c.around(func() error { return d.fakeDeployer.Register(ctx, r) })
}

func (d crashDeployer) Switch(ctx context.Context, name string, number uint64, gone bool) error {
	return d.c.around(func() error { return d.fakeDeployer.Switch(ctx, name, number, gone) })
}

func (d crashDeployer) Release(ctx context.Context, id function.ID) {
	_ = d.c.around(func() error { d.fakeDeployer.Release(ctx, id); return nil })
}

// Whatever step of a change a crash comes before or after, the next process brings the change to
// its end if it was acknowledged, and never leaves a half of it.
func TestCrashes(t *testing.T) {
	changes := map[string]struct {
		send func(f *fixture) answer
		done func(f *fixture) bool
	}{
		"create": {
			func(f *fixture) answer { return f.send("POST", functions, newFunction("new")) },
			func(f *fixture) bool { return len(f.store.keys("fn/new")) == 1 },
		},
		"code": {
			func(f *fixture) answer { return f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("other")}) },
			func(f *fixture) bool { return f.get("f")["CodeSha256"] == digest("other") },
		},
		"configuration": {
			func(f *fixture) answer { return f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 9}) },
			func(f *fixture) bool { return f.get("f")["Timeout"] == 9.0 },
		},
		"delete": {
			func(f *fixture) answer { return f.send("DELETE", named("f", "", ""), nil) },
			func(f *fixture) bool { return len(f.store.keys("fn/f")) == 0 },
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			crashes := 0
			for steps := 0; ; steps++ {
				crashed := false
				synctest.Test(t, func(t *testing.T) { crashed = crashAfter(t, steps, change.send, change.done) })
				if !crashed {
					break
				}
				crashes++
			}
			if crashes < 10 {
				t.Errorf("only %d steps: the crasher is not used", crashes)
			}
		})
	}
}

// crashAfter has a process that makes a change crash after a number of steps, and reports whether
// it came that far.
func crashAfter(t *testing.T, steps int, send func(*fixture) answer, done func(*fixture) bool) (crashed bool) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	f.cancel()

	first := &fixture{t: t, store: f.store, blobs: f.blobs, deployer: f.deployer, faults: f.faults, calls: f.calls}
	c := &crasher{left: 1 << 30}
	first.start(func(cfg *Config, f *fixture) {
		cfg.Store, cfg.Deployer = crashStore{f.store, c}, crashDeployer{f.deployer, c}
	})
	c.mu.Lock()
	c.left, c.crash = steps, func() { crashed = true; first.cancel() }
	c.mu.Unlock()
	a := send(first)
	synctest.Wait()
	first.cancel()
	synctest.Wait()

	second := &fixture{t: t, store: f.store, blobs: f.blobs, deployer: f.deployer, faults: f.faults, calls: f.calls}
	second.start(nil)
	synctest.Wait() // nothing fails now, so all tasks end
	if tasks := f.store.keys(rolloutKeys); len(tasks) > 0 {
		t.Errorf("after %d steps: %v are left to do", steps, tasks)
	}
	if a.status < 300 && !done(second) {
		t.Errorf("after %d steps: acknowledged with %d, and lost", steps, a.status)
	}
	for _, key := range f.store.keys(functionKeys) {
		name := key[len(functionKeys):]
		got := second.get(name)
		r, err := second.Resolve(t.Context(), name, "")
		if got["State"] != active || got["LastUpdateStatus"] != successful || err != nil {
			t.Errorf("after %d steps: %s is %v %v, %v", steps, name, got["State"], got["LastUpdateStatus"], err)
		}
		if floor := f.deployer.switches[name]; r.ID.Number < floor {
			t.Errorf("after %d steps: %s runs revision %d, and the worker takes none lower than %d", steps, name, r.ID.Number, floor)
		}
		if _, ok := f.deployer.revs[r.ID.Number]; !ok {
			t.Errorf("after %d steps: root does not know revision %d of %s", steps, r.ID.Number, name)
		}
		if _, err := second.Environment(t.Context(), r.ID.Number); err != nil {
			t.Errorf("after %d steps: environment of revision %d: %v", steps, r.ID.Number, err)
		}
		if f.deployer.gone[name] {
			t.Errorf("after %d steps: the worker believes that %s is gone", steps, name)
		}
	}
	if done(second) && len(f.store.keys("fn/f")) == 0 && !f.deployer.gone["f"] {
		t.Errorf("after %d steps: the worker does not know that f is gone", steps)
	}
	second.cancel()
	synctest.Wait()
	return crashed
}

// At every step of an update it holds what Rollout promises.
func TestOrderOfUpdate(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	old, err := f.Resolve(t.Context(), "f", "")
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	f.deployer.onRegister = func(ctx context.Context, r Revision) error {
		now, err := f.Resolve(ctx, "f", "")
		if err != nil || now.ID != old.ID {
			t.Errorf("while root registers %v requests run %v, %v", r.ID, now.ID, err)
		}
		status := f.get("f")["LastUpdateStatus"]
		steps = append(steps, fmt.Sprint("register ", status))
		return nil
	}
	f.deployer.onSwitch = func(ctx context.Context, name string, number uint64) error {
		now, err := f.Resolve(ctx, "f", "")
		if err != nil || now.ID.Number != number || number <= old.ID.Number {
			t.Errorf("while the worker switches to %d requests run %v, %v", number, now.ID, err)
		}
		steps = append(steps, fmt.Sprint("switch ", f.get("f")["LastUpdateStatus"]))
		return nil
	}
	if a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("other")}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.settled("f")
	// The first is before the update is acknowledged, so that the client learns of bad code.
	if want := []string{"register Successful", "register InProgress", "switch InProgress"}; !slices.Equal(steps, want) {
		t.Errorf("%q, want %q", steps, want)
	}
	if got := f.get("f")["LastUpdateStatus"]; got != successful {
		t.Error(got)
	}
	if now, err := f.Resolve(t.Context(), "f", ""); err != nil || now.Code == old.Code {
		t.Errorf("%v, %v", now, err)
	}
	if !slices.Contains(f.deployer.released, old.ID.Number) {
		t.Errorf("released are %v, not %d", f.deployer.released, old.ID.Number)
	}
}

// An error that passes delays an update, with growing pauses.
func TestRetries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, nil)
		f.create(newFunction("f"))
		began := time.Now()
		var at []time.Duration
		f.deployer.onSwitch = func(context.Context, string, uint64) error {
			if at = append(at, time.Since(began)); len(at) < 9 {
				return errors.New("the worker is not there")
			}
			return nil
		}
		f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 9})
		f.settled2()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 63, 113, 163}
		for i := range want {
			want[i] *= 100 * time.Millisecond
		}
		if !slices.Equal(at, want) {
			t.Errorf("tried at %v, want %v", at, want)
		}
		if f.get("f")["LastUpdateStatus"] != successful || len(f.faults) != 8 {
			t.Errorf("%v, %d errors are told of", f.get("f")["LastUpdateStatus"], len(f.faults))
		}
		f.cancel()
	})
}

// settled2 waits until no change is under way, in the time of a test.
func (f *fixture) settled2() {
	for {
		f.rollout.mu.Lock()
		var some *run
		for _, some = range f.rollout.running {
			break
		}
		f.rollout.mu.Unlock()
		if some == nil {
			return
		}
		<-some.done
	}
}

// Code that cannot be used after all leaves the function as it was.
func TestFailedUpdate(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	before := f.get("f")
	n := 0
	f.deployer.onRegister = func(context.Context, Revision) error {
		if n++; n == 2 {
			return &CodeError{Fault: DamagedCode, Detail: "another digest"}
		}
		return nil
	}
	if a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("other")}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.settled("f")
	got := f.get("f")
	if got["LastUpdateStatus"] != "Failed" || got["LastUpdateStatusReason"] == "" || got["LastUpdateStatusReasonCode"] == "" || got["State"] != active || got["CodeSha256"] != before["CodeSha256"] {
		t.Errorf("%v", got)
	}
	r, err := f.Resolve(t.Context(), "f", "")
	if err != nil || fmt.Sprintf("%x", r.Code) != fmt.Sprintf("%x", f.deployer.revs[1].Code) {
		t.Errorf("%v, %v", r, err)
	}
	if a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("third")}); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	f.settled("f")
	if got := f.get("f"); got["LastUpdateStatus"] != successful || got["CodeSha256"] != digest("third") {
		t.Errorf("%v", got)
	}
}

// A function whose code was lost before it became active can be repaired or deleted.
func TestFailedCreation(t *testing.T) {
	for _, repair := range []bool{true, false} {
		f := newFixture(t, nil)
		n := 0
		f.deployer.onRegister = func(context.Context, Revision) error {
			if n++; n == 2 {
				return &CodeError{Fault: NotAZip}
			}
			return nil
		}
		f.send("POST", functions, newFunction("f"))
		f.settled("f")
		got := f.get("f")
		if got["State"] != "Failed" || got["StateReason"] == "" || got["StateReasonCode"] == "" {
			t.Errorf("%v", got)
		}
		_, err := f.Resolve(t.Context(), "f", "")
		if e, ok := errors.AsType[*Error](err); !ok || e.Status != 409 {
			t.Error(err)
		}
		if repair {
			if a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": []byte("good")}); a.status != 200 || a.body["State"] != pending {
				t.Errorf("%d %s", a.status, a.raw)
			}
			f.settled("f")
			if got := f.get("f"); got["State"] != active {
				t.Errorf("%v", got)
			}
		}
		f.send("DELETE", named("f", "", ""), nil)
		var u usage
		if _, err := get(memTx{f.store.rows}, usageKey, &u); err != nil || u != (usage{}) {
			t.Errorf("usage %+v, %v", u, err)
		}
	}
}

// The environment of a replaced revision stays while requests may run it, and no longer.
func TestReplacedEnvironment(t *testing.T) {
	now := time.Now()
	f := newFixture(t, func(c *Config, _ *fixture) { c.Now = func() time.Time { return now } })
	update := func(value string) uint64 {
		t.Helper()
		f.send("PUT", named("f", "/configuration", ""), j{"Environment": j{"Variables": j{"A1": value}}})
		f.settled("f")
		r, err := f.Resolve(t.Context(), "f", "")
		if err != nil {
			t.Fatal(err)
		}
		return r.ID.Number
	}
	f.create(newFunction("f"))
	first := update("1")
	second := update("2")
	for number, want := range map[uint64]string{first: "1", second: "2"} {
		if env, err := f.Environment(t.Context(), number); err != nil || env["A1"] != want {
			t.Errorf("revision %d: %v, %v", number, env, err)
		}
	}
	now = now.Add(keepReplaced + time.Second)
	third := update("3")
	if env, err := f.Environment(t.Context(), first); err == nil {
		t.Errorf("the environment of revision %d is still there: %v", first, env)
	}
	f.send("DELETE", named("f", "", ""), nil)
	if env, err := f.Environment(t.Context(), third); err != nil || env["A1"] != "3" {
		t.Errorf("%v, %v", env, err)
	}
	now = now.Add(keepReplaced + time.Second)
	f.create(newFunction("g"))
	f.send("PUT", named("g", "/configuration", ""), j{})
	f.settled("g")
	if rows := f.store.keys(oldKeys); len(rows) > 1 {
		t.Errorf("%v", rows)
	}
}

// A function that is made anew right after its deletion is the new one.
func TestRecreate(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	last := uint64(0)
	for range 20 {
		f.send("DELETE", named("f", "", ""), nil)
		if _, err := f.Resolve(t.Context(), "f", ""); err == nil {
			t.Fatal("a deleted function can be invoked")
		}
		f.create(newFunction("f"))
		r, err := f.Resolve(t.Context(), "f", "")
		if err != nil || r.ID.Number <= last || r.ID.Number != f.deployer.switches["f"] || f.deployer.gone["f"] {
			t.Fatalf("%v, %v; the worker has %d, gone %v", r.ID, err, f.deployer.switches["f"], f.deployer.gone["f"])
		}
		last = r.ID.Number
	}
}

// Of changes at once one is made, and the others are refused.
func TestConcurrentUpdates(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int]int{}
	for i := range 16 {
		wg.Go(func() {
			for k := range 10 {
				a := f.send("PUT", named("f", "/code", ""), j{"ZipFile": fmt.Appendf(nil, "%d %d", i, k)})
				if a.status != 200 && a.status != 409 {
					t.Errorf("%d %s", a.status, a.raw)
				}
				mu.Lock()
				seen[a.status]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	f.settled2()
	if f.get("f")["LastUpdateStatus"] != successful || seen[200] == 0 {
		t.Errorf("%v, %v", f.get("f"), seen)
	}
	for range len(f.faults) {
		t.Error(<-f.faults)
	}
}

// An update that ends after its function was deleted and made anew says nothing of the new one.
func TestDeletionDuringUpdate(t *testing.T) {
	f := newFixture(t, nil)
	f.create(newFunction("f"))
	held, hold := make(chan struct{}), make(chan struct{})
	var states []any
	first := true
	f.deployer.onSwitch = func(context.Context, string, uint64) error {
		if first {
			first = false
			close(held)
			<-hold
			return nil
		}
		states = append(states, f.get("f")["State"])
		return nil
	}
	f.send("PUT", named("f", "/configuration", ""), j{"Timeout": 9})
	<-held
	deleted := make(chan answer)
	go func() { deleted <- f.send("DELETE", named("f", "", ""), nil) }()
	for f.send("GET", named("f", "", ""), nil).status != 404 {
		runtime.Gosched()
	}
	if a := f.send("POST", functions, newFunction("f")); a.status != 201 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	close(hold)
	if a := <-deleted; a.status != 204 {
		t.Errorf("%d %s", a.status, a.raw)
	}
	f.settled("f")
	if want := []any{pending}; !slices.Equal(states, want) || f.get("f")["State"] != active || f.get("f")["Timeout"] != 3.0 {
		t.Errorf("the state was %v while the worker switched, want %v; now %v", states, want, f.get("f"))
	}
}
