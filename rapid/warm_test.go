package rapid

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"
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
			w.s.turn.Lock() // Run has no turn, and is not about to have one
			if w.s.nudged() || !w.s.warm || w.s.State() != Idle {
				t.Fatalf("warm %v in %v, or Run was woken", w.s.warm, w.s.State())
			}
			w.s.turn.Unlock()
		}
		w.sup.Calls()
		time.Sleep(time.Second)
		if got, want := w.sup.Calls(), []string{"freeze"}; !slices.Equal(got, want) { // and still it sees to that
			t.Errorf("calls %q, want %q", got, want)
		}
		<-w.invoke("after").Done
	})
}
