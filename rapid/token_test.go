package rapid

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid/internal/fakesup"
	"github.com/sandboxd/sandboxd/supervisor"
)

// LC-80: an invocation that comes at the very moment of the freeze, before it or after, is
// none the worse for it: the limit of Idle is not taken for that of Invoking.
func TestInvocationAtTheMomentOfTheFreeze(t *testing.T) {
	linger := DefaultSettings().Linger
	inWorld(t, echo(2*linger), func(w *world) {
		want := "Initializing Invoking Idle"
		for range 300 {
			r := w.invoke("id")
			if r.FunctionError {
				t.Fatalf("%+v %s", r, r.Payload)
			}
			<-r.Done
			time.Sleep(linger)
		}
		for range 299 {
			want += " Invoking Idle"
		}
		w.wantStates(want)
		frozen := false
		for _, call := range w.sup.Calls() {
			if call != "freeze" && call != "thaw" {
				continue
			}
			if frozen == (call == "freeze") {
				t.Fatalf("%s of a sandbox that is frozen: %v", call, frozen)
			}
			frozen = !frozen
		}
	})
}

// A warm sandbox is served without its Run: nothing that Run could be woken by is sent.
func TestRunSleepsOn(t *testing.T) {
	inWorld(t, echo(0), func(w *world) {
		<-w.invoke("first").Done
		synctest.Wait()
		for range 100 {
			<-w.invoke("id").Done
			w.s.token.take() // Run does not hold the token, and is not about to take it
			if len(w.s.token.wake) > 0 || w.s.token.step == nil || w.s.State() != Idle {
				t.Fatalf("warm %v in %v, or Run was woken", w.s.token.step != nil, w.s.State())
			}
			w.s.token.release()
		}
		w.sup.Calls()
		time.Sleep(time.Second)
		if got, want := w.sup.Calls(), []string{"freeze"}; !slices.Equal(got, want) { // and still it sees to that
			t.Errorf("calls %q, want %q", got, want)
		}
		<-w.invoke("after").Done
	})
}

// Nor is Run needed to hand out the events of managed mode; it still sees to the limits.
func TestRunSleepsOnInManagedMode(t *testing.T) {
	inWorld(t, workers(2, byPayload), func(w *world) {
		<-w.invoke("first").Done
		synctest.Wait()
		// Run gets the first time that it is woken. Then it waits behind this goroutine, which
		// gets the second.
		woken, stop, stopped := 0, make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-w.s.token.wake:
					woken++
				case <-stop:
					return
				}
			}
		}()
		synctest.Wait()
		for i := range 100 {
			a, _ := w.start(fmt.Sprint("a", i), "")
			b, _ := w.start(fmt.Sprint("b", i), "")
			<-(<-a).Done
			<-(<-b).Done
			synctest.Wait()
		}
		close(stop)
		<-stopped
		if woken > 0 || w.s.State() != Serving {
			t.Errorf("in %v Run was woken %d times", w.s.State(), woken)
		}
		late, _ := w.start("late", "sleep 1m")
		if r := <-late; r.ErrorType != errSandboxTimedout {
			t.Errorf("after 3 s: %+v", r)
		}
	}, managed(2))
}

// EX-29: from the end of a process on until Run has dealt with it, also while Run waits
// for the turn to do so, nobody else hands out an invocation.
func TestNoStepBeforeAnExit(t *testing.T) {
	var exit chan struct{}
	inWorld(t, func(w *world) fakesup.Program {
		exit = make(chan struct{})
		return func(p *fakesup.Process) supervisor.Exit {
			go func() { _, _ = w.s.NewClient().Next(p.Ctx) }()
			<-exit
			return supervisor.Exit{Code: 1}
		}
	}, func(w *world) {
		synctest.Wait()
		w.s.token.take()
		close(exit)
		seen := 0
		for range 100_000 {
			if runtime.Gosched(); w.s.token.exiting.Load() == 1 {
				seen++
			} else if seen > 0 {
				break
			}
		}
		if n := w.s.token.exiting.Load(); n != 1 {
			t.Errorf("%d processes have ended that Run has not dealt with, want 1", n)
		}
		w.s.token.release()
		w.wantStates("Initializing Idle Resetting Cold")
		if n := w.s.token.exiting.Load(); n != 0 {
			t.Errorf("%d when it has", n)
		}
	})
}
