package rapid

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
)

// docs/decisions/0036: no event reaches a function whose CPU quota cannot be put in
// force. That is a fault of the host: the caller gets an error and no result, and the
// sandbox ends, so that the next invocation has another one.
func TestQuotaCannotBePutInForce(t *testing.T) {
	full := errors.New("write cpu.max: device or resource busy")
	broken := with(func(_ *Config, s *fakesup.Supervisor) { s.QuotaErr = full })
	handled := 0
	counts := loop(func(*fakesup.Process, *Client, *Event) (Answer, bool) { handled++; return Answer{}, true })
	// invoke runs two invocations; the first may come before the sandbox is ready or after.
	invoke := func(w *world, states string) {
		t.Helper()
		w.mayFail = true
		for _, id := range []string{"a", "b"} {
			r, err := w.s.Invoke(context.Background(), &Invocation{ID: id})
			if !errors.Is(err, ErrDead) || !errors.Is(err, full) {
				t.Errorf("Invoke %s: %+v, %v; want ErrDead and its cause", id, r, err)
			}
			<-w.s.dead
		}
		err := <-w.ran
		w.ran <- err
		if !errors.Is(err, full) {
			t.Errorf("Run: %v", err)
		}
		if handled != 0 {
			t.Errorf("the function got %d events without its quota", handled)
		}
		w.wantStates(states)
		if log := w.log.String(); strings.Contains(log, "START RequestId") || strings.Contains(log, "platform.start") || strings.Contains(log, full.Error()) {
			t.Errorf("the log of the function has an invocation that it has not seen, or the operator's error:\n%s", log)
		}
	}
	t.Run("classic, idle", func(t *testing.T) { // the way on which others step the life
		inWorld(t, counts, func(w *world) {
			synctest.Wait()
			invoke(w, "Initializing Idle Invoking ShuttingDown Dead")
		}, broken)
	})
	t.Run("classic, frozen", func(t *testing.T) {
		inWorld(t, counts, func(w *world) {
			time.Sleep(time.Second)
			invoke(w, "Initializing Idle Invoking ShuttingDown Dead")
		}, broken)
	})
	t.Run("classic, waiting", func(t *testing.T) {
		inWorld(t, counts, func(w *world) { invoke(w, "Initializing Invoking ShuttingDown Dead") }, broken)
	})
	t.Run("managed, ready", func(t *testing.T) {
		inWorld(t, workers(2, counts), func(w *world) {
			w.mayFail = true
			<-w.s.dead // before anybody asks
			invoke(w, "Initializing Serving ShuttingDown Dead")
		}, broken, managed(2))
	})
	t.Run("managed, waiting", func(t *testing.T) {
		inWorld(t, workers(2, counts), func(w *world) { invoke(w, "Initializing Serving ShuttingDown Dead") }, broken, managed(2))
	})
}

// The quota is put in force once in each generation, with its first invocation.
func TestQuotaOfEachGeneration(t *testing.T) {
	dies := loop(func(_ *fakesup.Process, _ *Client, e *Event) (Answer, bool) {
		return Answer{}, e.Invocation.ID != "dies"
	})
	inWorld(t, dies, func(w *world) {
		for _, id := range []string{"a", "b", "dies", "c"} {
			<-w.invoke(id).Done
		}
		var got []string
		for _, call := range w.sup.Calls() {
			if strings.HasPrefix(call, "throttle") || strings.HasPrefix(call, "exec") {
				got = append(got, call)
			}
		}
		if want := []string{"throttle false", "exec runtime-1", "throttle true", "throttle false", "exec runtime-2", "throttle true"}; !slices.Equal(got, want) {
			t.Errorf("calls %q, want %q", got, want)
		}
	})
}
