package fleet

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

// lateContext has ended by the time that somebody asks for its end; ending does what
// happens before that.
type lateContext struct {
	context.Context
	ending func()
}

func (c lateContext) Done() <-chan struct{} {
	c.ending()
	done := make(chan struct{})
	close(done)
	return done
}

func (lateContext) Err() error { return context.Canceled }

// shareRig is a sharing of 2 places whose sandboxes are made when told.
type shareRig struct {
	*sharing
	box  *fake
	make chan error // what becomes of the making
}

func newShareRig() *shareRig {
	r := &shareRig{box: &fake{id: "a", ended: make(chan struct{})}, make: make(chan error)}
	r.sharing = &sharing{n: 2, make: func(context.Context) (Sandbox, error) {
		if err := <-r.make; err != nil {
			return nil, err
		}
		return r.box, nil
	}}
	return r
}

// first begins to make the sandbox.
func (r *shareRig) first(t *testing.T) <-chan Sandbox {
	made := make(chan Sandbox, 1)
	go func() {
		s, _ := r.join(t.Context())
		made <- s
	}()
	synctest.Wait()
	return made
}

// The life ends when the sandbox has been made, and everybody else has left: who joined
// gets the place, and its Close closes the sandbox.
func TestShareLastOneLeavesAtTheEnd(t *testing.T) {
	for range 50 { // a select that finds both takes either
		synctest.Test(t, func(t *testing.T) {
			r := newShareRig()
			first := r.first(t)
			last, err := r.join(lateContext{t.Context(), func() {
				r.make <- nil
				if err := (<-first).Close(t.Context()); err != nil {
					t.Error(err)
				}
				if _, closed := r.box.history(); closed {
					t.Error("closed while somebody has a place")
				}
			}})
			if err != nil {
				t.Fatalf("%v, and the sandbox has no owner", err)
			}
			if err := last.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if _, closed := r.box.history(); !closed || len(r.open) != 0 {
				t.Errorf("closed %v, %d still open", closed, len(r.open))
			}
		})
	}
}

// Who does not wait until the sandbox has been made leaves the place to others, and the
// maker closes the sandbox.
func TestShareLeftBeforeItIsMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newShareRig()
		first := r.first(t)
		if _, err := r.join(lateContext{t.Context(), func() {}}); !errors.Is(err, context.Canceled) {
			t.Fatalf("%v, want the end of the context", err)
		}
		r.make <- nil
		a := <-first
		b, err := r.join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, closed := r.box.history(); closed {
			t.Error("closed while somebody has a place")
		}
		if err := b.Close(t.Context()); err != nil {
			t.Error(err)
		}
		if _, closed := r.box.history(); !closed || len(r.open) != 0 {
			t.Errorf("closed %v, %d still open", closed, len(r.open))
		}
	})
}

// The life ends while the making fails: there is nothing to close, and nothing is left of
// it for those who come later.
func TestShareFailsAtTheEnd(t *testing.T) {
	broken := errors.New("broken")
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			r := newShareRig()
			first := r.first(t)
			_, err := r.join(lateContext{t.Context(), func() {
				r.make <- broken
				if s := <-first; s != nil {
					t.Error("a sandbox that was not made")
				}
			}})
			if !errors.Is(err, broken) {
				t.Errorf("%v, want why it could not be made", err)
			}
			if len(r.open) != 0 {
				t.Errorf("%d still open", len(r.open))
			}
		})
	}
}

// A fleet that shuts down around the moment at which a shared sandbox has been made
// closes it once.
func TestShareShutdown(t *testing.T) {
	for _, after := range []time.Duration{0, 49 * time.Millisecond, 50 * time.Millisecond, 51 * time.Millisecond, time.Second} {
		for range 100 {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, Config{}, func(b *fake) { b.many = true })
				f := New(Config{Max: 6, New: Share(3, r.cfg.New)})
				done := make(chan error)
				for range 4 {
					go func() {
						_, err := f.Invoke(t.Context(), &rapid.Invocation{})
						done <- err
					}()
				}
				time.Sleep(after)
				now, cancel := context.WithCancelCause(t.Context())
				cancel(errors.New("hurry"))
				_ = f.Shutdown(now) // says that they were cut short
				for range 4 {
					if err := <-done; err != nil && !errors.Is(err, ErrClosed) && !errors.Is(err, ErrCutShort) {
						t.Error(err)
					}
				}
				r.allClosed() // a fake panics if it is closed twice
			})
		}
	}
}
