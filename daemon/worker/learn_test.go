package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rapid"
)

// A fakeControl knows functions, and is root too: it knows which revisions are registered.
type fakeControl struct {
	t     *testing.T
	delay func() time.Duration // of each answer; nil is none

	mu         sync.Mutex
	current    map[string]uint64 // number of the revision that resolve answers with
	next       uint64            // the last number
	registered map[uint64]bool
	memory     int // of the functions, in MB
	reserved   map[string]int
	asked      []string // what was resolved
	err        error    // of every answer
	forgets    bool     // root may forget what is registered
}

func (c *fakeControl) wait() {
	if c.delay != nil {
		time.Sleep(c.delay())
	}
}

// update makes another revision of a function, and returns its number.
func (c *fakeControl) update(name string) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next++
	c.current[name] = c.next
	return c.next
}

func (c *fakeControl) resolve(ctx context.Context, name, qualifier string) (*message.Resolved, error) {
	c.wait()
	c.mu.Lock()
	c.asked = append(c.asked, strings.TrimSuffix(name+":"+qualifier, ":"))
	number, err := c.current[name], c.err
	if err == nil && number != 0 {
		c.registered[number] = true
	}
	reserved, ok := c.reserved[name]
	if !ok {
		reserved = -1
	}
	megabytes := c.memory
	c.mu.Unlock()
	c.wait()
	switch {
	case err != nil:
		return nil, err
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case number == 0:
		return nil, &invoke.Fault{Status: http.StatusNotFound, Type: "ResourceNotFoundException", Message: "Function not found: " + name}
	}
	s := function.Defaults()
	s.Name, s.MemoryMB = name, max(megabytes, function.MinMemoryMB)
	return &message.Resolved{Reserved: reserved, Revision: function.Revision{
		ID: function.ID{Epoch: 1, Number: number}, Version: function.Latest, ARN: function.ARN("us-east-1", "123456789012", name), Settings: s}}, nil
}

func (c *fakeControl) environment(_ context.Context, number uint64) (map[string]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return map[string]string{"NUMBER": strconv.FormatUint(number, 10)}, c.err
}

func (c *fakeControl) retire(_ context.Context, number uint64) error {
	c.wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.registered[number] {
		return message.ErrUnknownRevision
	}
	delete(c.registered, number)
	return nil
}

// start is a starter of sandboxes that answer with their variable NUMBER.
func (c *fakeControl) start(f *factory, ctx context.Context, cfg rapid.Config) (fleet.Sandbox, error) {
	env, err := f.env.hold(ctx, cfg.Function.Env)
	if err != nil {
		return nil, err
	}
	c.wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if number := f.rev.ID.Number; !c.registered[number] {
		if !c.forgets {
			c.t.Errorf("a sandbox of revision %d, which is not registered", number)
		}
		f.env.release()
		return nil, message.ErrUnknownRevision
	}
	return &fakeSandbox{control: c, factory: f, answer: env["NUMBER"]}, nil
}

type fakeSandbox struct {
	control *fakeControl
	factory *factory
	answer  string
}

func (s *fakeSandbox) ID() string             { return "fake" }
func (s *fakeSandbox) State() rapid.State     { return rapid.Idle }
func (s *fakeSandbox) Ready() <-chan struct{} { return nil }
func (s *fakeSandbox) Ended() <-chan struct{} { return nil }

func (s *fakeSandbox) Invoke(context.Context, *rapid.Invocation) (*rapid.Result, error) {
	s.control.wait()
	done := make(chan struct{})
	close(done)
	return &rapid.Result{Payload: []byte(s.answer), Done: done}, nil
}

func (s *fakeSandbox) Close(context.Context) error {
	s.control.wait()
	s.factory.env.release()
	return nil
}

// revisions returns the numbers of those that are registered.
func (c *fakeControl) revisions() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.registered))
}

// left says what is left after the functions are forgotten, and root has been told of it.
func (c *fakeControl) left(f *functions) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := c.revisions(); len(r)+len(f.users)+len(f.retiring)+len(f.learning)+len(f.beside)+len(*f.serving.Load()) > 0 {
		return fmt.Sprintf("left are the registered %v, the used %v, the retiring %v, the learning %v, %d that end, the serving %v",
			r, f.users, f.retiring, f.learning, len(f.beside), *f.serving.Load())
	}
	return ""
}

// newLearner returns functions that learn of a fakeControl.
func newLearner(t *testing.T, change func(*message.WorkerConfig)) (*functions, *fakeControl) {
	c := &fakeControl{t: t, current: map[string]uint64{}, registered: map[uint64]bool{}, reserved: map[string]int{}}
	config := &message.WorkerConfig{Control: true, Region: "us-east-1", AccountID: "123456789012", LogFormat: "Text", Concurrency: 8, Memory: 8 << 30,
		IdleTimeout: time.Minute, Networks: map[string]isolation.Network{"none": {}}}
	if change != nil {
		change(config)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	f := newFunctions(&worker{config: config, log: log, drain: context.Background(), memory: memory.Info{}}, nil, c)
	f.start = c.start
	return f, c
}

// run invokes a function, and returns what it answers or "! error".
func (f *functions) run(ctx context.Context, name string) string {
	l, err := f.Lease(ctx, name, "", "")
	if err != nil {
		return "! " + err.Error()
	}
	res, err := l.Invoke(&rapid.Invocation{ID: "n"})
	if err != nil {
		return "! " + err.Error()
	}
	return string(res.Payload)
}

func (f *functions) finish(t *testing.T) {
	t.Helper()
	if err := f.shutdown(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestLearnsOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		c.delay = func() time.Duration { return time.Second }
		c.update("a")
		got := make(chan string)
		for range 4 {
			go func() { got <- f.run(t.Context(), "a") }()
		}
		for range 4 {
			if g := <-got; g != "1" {
				t.Errorf("got %q", g)
			}
		}
		if !slices.Equal(c.asked, []string{"a"}) {
			t.Errorf("four requests at once asked for %q, want one question", c.asked)
		}
		if got := f.run(t.Context(), "b"); got != "! ResourceNotFoundException: Function not found: b" {
			t.Errorf("an unknown function: %s", got)
		}
		c.update("b")
		if got := f.run(t.Context(), "b"); got != "2" {
			t.Errorf("a function that is new: %s; what was not found must be asked again", got)
		}
		if got := f.run(t.Context(), "no.name"); got != "! "+invoke.ErrNoFunction.Error() {
			t.Errorf("a name that no function can have: %s", got)
		}
		if _, err := f.Find(t.Context(), "a", "7"); err != nil || c.asked[len(c.asked)-1] != "a:7" {
			t.Errorf("a qualifier: %v; asked for %q", err, c.asked)
		}
		if fn, err := f.Find(t.Context(), "a", function.Latest); err != nil || fn.ARN != "arn:aws:lambda:us-east-1:123456789012:function:a" {
			t.Errorf("%+v, %v", fn, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if got := f.run(ctx, "c"); !strings.Contains(got, context.DeadlineExceeded.Error()) {
			t.Errorf("a client that leaves: %s", got)
		}
	})
}

// While control does not answer, functions that are known go on, with new sandboxes too, and
// the others are refused.
func TestControlDoesNotAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		c.update("a")
		c.update("b")
		f.run(t.Context(), "a")
		c.mu.Lock()
		c.err = errControl
		c.mu.Unlock()
		first, err := f.Lease(t.Context(), "a", "", "")
		if err != nil {
			t.Fatal(err)
		}
		if got := f.run(t.Context(), "a"); got != "1" { // a second sandbox
			t.Errorf("a function that is known: %s", got)
		}
		if res, err := first.Invoke(&rapid.Invocation{ID: "n"}); err != nil || string(res.Payload) != "1" {
			t.Errorf("%v, %v", res, err)
		}
		_, err = f.Find(t.Context(), "b", "")
		if fault, ok := errors.AsType[*invoke.Fault](err); !ok || fault.Status != http.StatusServiceUnavailable {
			t.Errorf("a function that is not known: %v", err)
		}
		c.mu.Lock()
		c.err = nil
		c.mu.Unlock()
		if got := f.run(t.Context(), "b"); got != "2" {
			t.Errorf("after control has come back: %s", got)
		}
	})
}

// A switch that arrives while control answers with the revision before makes the worker ask
// again, whatever the answer is.
func TestSwitchDuringALesson(t *testing.T) {
	for _, before := range []string{"a revision", "nothing"} {
		synctest.Test(t, func(t *testing.T) {
			f, c := newLearner(t, nil)
			defer f.finish(t)
			c.delay = func() time.Duration { return time.Second }
			if before == "a revision" {
				c.update("a")
			}
			got := make(chan string)
			go func() { got <- f.run(t.Context(), "a") }()
			time.Sleep(1500 * time.Millisecond) // the answer is on its way
			n := c.update("a")
			f.switchTo(message.Switch{Name: "a", Number: n})
			if g := <-got; g != strconv.FormatUint(n, 10) {
				t.Errorf("with %s before: got %s, want %d", before, g, n)
			}
			time.Sleep(time.Minute)
			if got := c.revisions(); !slices.Equal(got, []uint64{n}) {
				t.Errorf("with %s before: registered are %v, want only %d", before, got, n)
			}
		})
	}
}

func TestFunctionIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		n := c.update("a")
		f.run(t.Context(), "a")
		c.mu.Lock()
		delete(c.current, "a")
		c.mu.Unlock()
		f.switchTo(message.Switch{Name: "a", Number: n, Gone: true})
		if got := f.run(t.Context(), "a"); !strings.HasPrefix(got, "! ResourceNotFoundException") {
			t.Errorf("a function that is gone: %s", got)
		}
		synctest.Wait()
		if left := c.left(f); left != "" {
			t.Error(left)
		}
	})
}

// The rules of an update (docs/decisions/0056) hold whatever happens at the same time: a
// request that arrives after the switch was confirmed runs in no earlier revision, one that
// has its lease before the update began in no later one, and none is lost. Meanwhile functions
// are forgotten and revisions retired.
func TestUpdatesUnderLoad(t *testing.T) {
	for seed := range uint64(40) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 13))
			var turn sync.Mutex
			random := func(n int) int {
				turn.Lock()
				defer turn.Unlock()
				return rnd.IntN(n)
			}
			f, c := newLearner(t, func(config *message.WorkerConfig) { config.IdleTimeout = 5 * time.Millisecond })
			c.delay = func() time.Duration { return time.Duration(random(8)) * time.Millisecond }
			names := []string{"a", "b"}
			successful := map[string]uint64{} // guarded by c.mu, as current, which is what is in progress
			for _, name := range names {
				successful[name] = c.update(name)
			}
			read := func(m map[string]uint64, name string) uint64 {
				c.mu.Lock()
				defer c.mu.Unlock()
				return m[name]
			}
			var clients, others sync.WaitGroup
			stop := make(chan struct{})
			for range 8 {
				clients.Go(func() {
					for range 30 {
						name := names[random(len(names))]
						least := read(successful, name)
						l, err := f.Lease(t.Context(), name, "", "")
						if errors.Is(err, invoke.ErrAllBusy) {
							time.Sleep(time.Millisecond)
							continue
						}
						if err != nil {
							t.Errorf("seed %d: a request is lost: %v", seed, err)
							return
						}
						most := read(c.current, name)
						res, err := l.Invoke(&rapid.Invocation{ID: "n"})
						if err != nil {
							t.Errorf("seed %d: a request is lost: %v", seed, err)
							return
						}
						if ran, err := strconv.ParseUint(string(res.Payload), 10, 64); err != nil || ran < least || ran > most {
							t.Errorf("seed %d: %s ran in revision %s, want %d to %d", seed, name, res.Payload, least, most)
						}
						time.Sleep(time.Duration(random(20)) * time.Millisecond)
					}
				})
			}
			others.Go(func() { // updates
				for range 20 {
					name := names[random(len(names))]
					n := c.update(name)
					c.wait()
					f.switchTo(message.Switch{Name: name, Number: n})
					c.mu.Lock()
					successful[name] = n
					c.mu.Unlock()
					time.Sleep(time.Duration(random(30)) * time.Millisecond)
				}
			})
			others.Go(func() { // what the ticker does
				for {
					select {
					case <-stop:
						return
					case <-time.After(3 * time.Millisecond):
						f.dropUnused(time.Millisecond)
					}
				}
			})
			clients.Wait()
			close(stop)
			others.Wait()
			time.Sleep(time.Minute)
			f.dropUnused(time.Millisecond)
			time.Sleep(time.Minute)
			if left := c.left(f); left != "" {
				t.Errorf("seed %d: %s", seed, left)
			}
			f.finish(t)
		})
	}
}

// The worker knows a bounded number of functions: the longest unused one makes room.
func TestKnownFunctionsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, func(config *message.WorkerConfig) { config.IdleTimeout = 0 })
		defer f.finish(t)
		c.update("busy")
		if got := f.run(t.Context(), "busy"); got != "1" {
			t.Fatal(got)
		}
		for i := range maxKnown + 10 {
			name := fmt.Sprint("f", i)
			c.update(name)
			if _, err := f.Find(t.Context(), name, ""); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		all := *f.serving.Load()
		if len(all) != maxKnown || all["busy"] == nil || all["f0"] != nil || all[fmt.Sprint("f", maxKnown+9)] == nil {
			t.Errorf("%d functions are known, want %d: those that were learned last, and one with a sandbox", len(all), maxKnown)
		}
		if n := len(c.revisions()); n != maxKnown {
			t.Errorf("%d revisions are registered, want %d", n, maxKnown)
		}
	})
}

// The concurrency of all functions, and that which is reserved for one, have reasons of their
// own.
func TestReasonsOfRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, func(config *message.WorkerConfig) { config.Concurrency, config.Memory = 2, 1024<<20 })
		defer f.finish(t)
		c.reserved["one"], c.reserved["none"] = 1, 0
		for _, name := range []string{"one", "none", "any", "other"} {
			c.update(name)
		}
		lease := func(name string) (invoke.Lease, error) { return f.Lease(t.Context(), name, "", "") }
		one, err := lease("one")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lease("one"); !errors.Is(err, invoke.ErrTooMany) {
			t.Errorf("two where one is reserved: %v", err)
		}
		if _, err := lease("none"); !errors.Is(err, invoke.ErrTooMany) {
			t.Errorf("one where none is allowed: %v", err)
		}
		any, err := lease("any")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"any", "other"} {
			if _, err := lease(name); !errors.Is(err, invoke.ErrAllBusy) {
				t.Errorf("more than the host takes: %v", err)
			}
		}
		for _, l := range []invoke.Lease{one, any} {
			if _, err := l.Invoke(&rapid.Invocation{ID: "n"}); err != nil {
				t.Error(err)
			}
		}
		c.mu.Lock()
		c.memory = 2048
		c.mu.Unlock()
		c.update("large")
		_, err = lease("large")
		if fault, ok := errors.AsType[*invoke.Fault](err); !ok || !strings.Contains(fault.Message, "2048 MB, exceeds the memory for all functions, 1024 MB") {
			t.Errorf("a function that never fits: %v", err)
		}
	})
}

// A function that has no sandboxes for long is forgotten, by the worker and by root. What
// serves again after that is another registration.
func TestUnusedFunctionsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		c.update("a")
		f.run(t.Context(), "a")
		time.Sleep(90 * time.Second) // its sandbox is closed after a minute
		f.dropUnused(time.Minute)
		synctest.Wait()
		if len(f.all()) != 1 {
			t.Error("the function is forgotten too early")
		}
		time.Sleep(time.Minute)
		f.dropUnused(time.Minute)
		synctest.Wait()
		if left := c.left(f); left != "" {
			t.Error(left)
		}
		if got := f.run(t.Context(), "a"); got != "1" {
			t.Error(got)
		}
	})
}

// If root does not know a revision that the worker knows, it is registered again.
func TestRevisionThatRootHasForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		c.forgets = true
		c.update("a")
		if _, err := f.Find(t.Context(), "a", ""); err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		delete(c.registered, 1)
		c.mu.Unlock()
		if got := f.run(t.Context(), "a"); got != "1" {
			t.Error(got)
		}
	})
}

// renew replaces only what serves: an update at the same time stays.
func TestRenewDoesNotUndoAnUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, c := newLearner(t, nil)
		defer f.finish(t)
		c.update("a")
		f.run(t.Context(), "a")
		old := f.find("a")
		f.switchTo(message.Switch{Name: "a", Number: c.update("a")})
		if got := f.run(t.Context(), "a"); got != "2" {
			t.Fatal(got)
		}
		if err := f.swap(t.Context(), "a", f.newServed(old.rev, -1), old); err != nil {
			t.Error(err)
		}
		if got := f.run(t.Context(), "a"); got != "2" {
			t.Errorf("after credentials were renewed: revision %s serves, want 2", got)
		}
		now := f.find("a")
		if err := f.swap(t.Context(), "a", f.newServed(now.rev, -1), now); err != nil || f.find("a") == now {
			t.Errorf("renewing what serves: %v", err)
		}
		synctest.Wait()
		if !slices.Contains(c.revisions(), 2) {
			t.Error("the revision is retired with its old credentials, although it serves with new ones")
		}
	})
}
