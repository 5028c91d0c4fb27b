package fleet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// as runs an invocation of a tenant, until Done, and names the sandbox.
func (r *rig) as(tenant string) string {
	r.t.Helper()
	res, err := r.Invoke(r.t.Context(), &rapid.Invocation{ID: tenant, TenantID: tenant})
	if err != nil {
		return err.Error()
	}
	<-res.Done
	synctest.Wait()
	return string(res.Payload)
}

// INV-05: a sandbox serves the tenant that it served first, and nobody else. At the
// limit the one that was idle longest makes room.
func TestTenants(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 2}, nil)
		got := ""
		for _, tenant := range []string{"red", "blue", "red", "blue", "green", "blue", "red", "green"} {
			got += r.as(tenant)
		}
		if got != "ababcbde" {
			t.Errorf("sandboxes %q, want ababcbde", got)
		}
		for _, b := range r.boxes {
			ran, _ := b.history()
			for _, tenant := range ran {
				if tenant != ran[0] {
					t.Errorf("sandbox %s served %q", b.id, ran)
				}
			}
		}
		r.shutdown()
	})
}

// INV-05, INV-23: many tenants at once on few sandboxes: nobody shares, nobody hangs.
func TestTenantsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 3}, nil)
		done := make(chan error)
		for i := range 40 {
			go func() {
				time.Sleep(time.Duration(i*137%1000) * time.Millisecond)
				for {
					res, err := r.Invoke(t.Context(), &rapid.Invocation{ID: fmt.Sprint(i % 5), TenantID: fmt.Sprint(i % 5)})
					if errors.Is(err, ErrTooMany) {
						time.Sleep(300 * time.Millisecond)
						continue
					}
					if err == nil {
						<-res.Done
					}
					done <- err
					return
				}
			}()
		}
		for range 40 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		n := 0
		for _, b := range r.boxes {
			ran, _ := b.history()
			n += len(ran)
			for _, tenant := range ran {
				if tenant != ran[0] {
					t.Errorf("sandbox %s served %q", b.id, ran)
				}
			}
		}
		if n != 40 {
			t.Errorf("%d invocations ran, want 40", n)
		}
		r.shutdown()
	})
}

// LC-09: provisioned sandboxes are there before the first request, stay, and are
// replaced.
func TestProvision(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 3, Provisioned: 2, IdleTimeout: time.Minute}, nil)
		if err := r.Provision(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(r.Stats()); n != 2 {
			t.Fatalf("%d sandboxes, want 2", n)
		}
		for range 3 { // more than are provisioned
			go func() { _, _ = r.Invoke(t.Context(), &rapid.Invocation{}) }()
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if n := len(r.Stats()); n != 2 || len(r.boxes) != 3 {
			t.Errorf("%d sandboxes of %d made, want the 2 provisioned of 3", n, len(r.boxes))
		}
		r.mu.Lock()
		for _, b := range r.boxes {
			if _, closed := b.history(); !closed {
				close(b.ended)
				break
			}
		}
		r.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(r.Stats()); n != 2 || len(r.boxes) != 4 {
			t.Errorf("%d sandboxes of %d made, want 2 of 4 after one has died", n, len(r.boxes))
		}
		r.shutdown()
	})
}

// LC-09: what cannot initialize is not put to use, and the start says why. Later it is
// tried again, with pauses that grow.
func TestProvisionFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dies := func(b *fake) {
			b.stuck = true
			time.AfterFunc(time.Second, func() { close(b.ended) })
		}
		r := newRig(t, Config{Max: 1, Provisioned: 1}, dies)
		if err := r.Provision(t.Context()); !errors.Is(err, ErrNotReady) {
			t.Errorf("Provision: %v, want ErrNotReady", err)
		}
		time.Sleep(10 * time.Minute)
		r.mu.Lock()
		if n := len(r.boxes); n < 10 || n > 20 {
			t.Errorf("%d tries in ten minutes", n)
		}
		r.fail = errors.New("no memory")
		before := len(r.boxes)
		r.mu.Unlock()
		time.Sleep(10 * time.Minute)
		r.mu.Lock()
		r.fail, r.setup = nil, nil
		r.mu.Unlock()
		time.Sleep(2 * time.Minute)
		r.mu.Lock()
		if n := len(r.boxes); n != before+1 {
			t.Errorf("%d sandboxes, want one more than %d once they can be made", n, before)
		}
		r.mu.Unlock()
		if got := r.as(""); got == "" {
			t.Error("no answer")
		}
		r.shutdown()
	})
}

// A provisioned sandbox that could not be made again keeps its place meanwhile, also
// from requests that wait: there are never more than Max.
func TestProvisionFailsAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 2, Provisioned: 1}, func(b *fake) { b.tail = 10 * time.Second })
		if err := r.Provision(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.cfg.NewProvisioned = func(context.Context) (Sandbox, error) { return nil, errors.New("no memory") }
		close(r.boxes[0].ended)
		time.Sleep(time.Second) // it is closed
		r.want(r.start(t.Context(), "1"), "b")
		next := r.start(t.Context(), "2") // it waits for b, whose place is the only one
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if n := len(r.Stats()); n > 2 {
				t.Fatalf("%d places, want 2", n)
			}
		}
		r.want(next, "b")
		r.shutdown()
	})
}

// A request whose sandbox has died does not wait for ever for a successor that cannot be
// made.
func TestSuccessorThatNeverComes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1, Provisioned: 1}, nil)
		if err := r.Provision(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.cfg.NewProvisioned = func(context.Context) (Sandbox, error) { return nil, errors.New("no memory") }
		r.boxes[0].invoke = func(*fake) error { return rapid.ErrDead }
		got := r.start(t.Context(), "1")
		time.Sleep(time.Hour)
		select {
		case answer := <-got:
			if want := "! wait for a sandbox: context deadline exceeded"; answer != want {
				t.Errorf("got %q, want %q", answer, want)
			}
		default:
			t.Error("it still waits after an hour")
		}
		r.shutdown()
	})
}

// INV-05, LC-09: a provisioned sandbox that makes room for another tenant has not
// failed. Its successor comes at once, and costs no other sandbox its place.
func TestProvisionedMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 2, Provisioned: 2}, nil)
		if err := r.Provision(t.Context()); err != nil {
			t.Fatal(err)
		}
		used := map[string]int{}
		for i := range 12 {
			tenant := []string{"red", "blue", "red", "green"}[i%4] // red stays
			began := time.Now()
			used[tenant+" "+r.as(tenant)]++
			if d := time.Since(began); d > 2500*time.Millisecond {
				t.Errorf("request %d of %s took %v: more than closing, making and running", i, tenant, d)
			}
		}
		if len(used) != 7 || len(r.boxes) != 7 { // one of red, and a new one each time for the others
			t.Errorf("used %v, made %d", used, len(r.boxes))
		}
		r.shutdown()
	})
}

// Shutdown does not wait for a provisioned sandbox that still initializes.
func TestShutdownWhileProvisioning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{Max: 1, Provisioned: 1}, func(b *fake) { b.stuck = true })
		ready := make(chan error, 1)
		go func() { ready <- r.Provision(context.Background()) }()
		time.Sleep(time.Second)
		began := time.Now()
		r.shutdown()
		if err := <-ready; !errors.Is(err, ErrClosed) {
			t.Errorf("Provision: %v, want ErrClosed", err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("shutdown took %v", d)
		}
	})
}

// Section 1.9: n requests share a sandbox; the next makes another. It is closed once,
// with its last place.
func TestShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{}, func(b *fake) { b.many = true })
		inner := r.cfg.New
		f := New(Config{Max: 6, New: Share(3, inner), IdleTimeout: time.Minute})
		for range 2 {
			done := make(chan string)
			for range 5 {
				go func() {
					res, err := f.Invoke(t.Context(), &rapid.Invocation{})
					if err != nil {
						done <- err.Error()
						return
					}
					done <- string(res.Payload)
				}()
			}
			count := map[string]int{}
			for range 5 {
				count[<-done]++
			}
			if count["a"] < 2 || count["a"] > 3 || count["a"]+count["b"] != 5 {
				t.Errorf("answers %v, want five of the sandboxes a and b", count)
			}
			time.Sleep(time.Second)
		}
		if n := len(f.Stats()); n != 2 {
			t.Errorf("%d sandboxes are listed, want 2", n)
		}
		close(r.boxes[0].ended) // one dies with all its places
		time.Sleep(time.Hour)   // and the other is idle for long
		synctest.Wait()
		if n := len(f.Stats()); n != 0 {
			t.Errorf("%d sandboxes, want none", n)
		}
		r.allClosed()
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// A sandbox that cannot be made is everybody's failure who waits for it, and nobody's
// after.
func TestShareFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Config{}, func(b *fake) { b.many = true })
		r.fail = errors.New("no memory")
		f := New(Config{Max: 6, New: Share(3, r.cfg.New)})
		done := make(chan error)
		for range 4 {
			go func() { _, err := f.Invoke(t.Context(), &rapid.Invocation{}); done <- err }()
		}
		for range 4 {
			if err := <-done; !errors.Is(err, r.fail) {
				t.Errorf("%v, want %v", err, r.fail)
			}
		}
		r.fail = nil
		if _, err := f.Invoke(t.Context(), &rapid.Invocation{}); err != nil {
			t.Error(err)
		}
		if err := f.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		r.allClosed()
	})
}
