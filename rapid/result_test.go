package rapid

import (
	"slices"
	"testing"
)

// Who asks for the end of an invocation is called once, whichever of the two comes first,
// and finds Done closed.
func TestAfterDone(t *testing.T) {
	var events []string
	for _, order := range [][]string{{"after", "end"}, {"end", "after"}} {
		o := &over{done: make(chan struct{})}
		r := &Result{Done: o.done, over: o}
		events = events[:0]
		for _, step := range order {
			events = append(events, step)
			if step == "end" {
				o.end()
				continue
			}
			r.AfterDone(func() {
				<-r.Done
				events = append(events, "called")
			})
		}
		if want := append(slices.Clone(order), "called"); !slices.Equal(events, want) {
			t.Errorf("%v, want %v", events, want)
		}
	}
	done, called := make(chan struct{}), make(chan struct{})
	(&Result{Done: done}).AfterDone(func() { close(called) }) // of another Sandbox than ours
	select {
	case <-called:
		t.Error("called before the end")
	default:
	}
	close(done)
	<-called
}
