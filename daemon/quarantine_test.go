package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/function"
)

// S-09: what cannot be removed is tried again after pauses that double, up to a minute,
// and it is told of until it is gone.
func TestQuarantineTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		q := newQuarantine(log)
		began := time.Now()
		var tries []time.Duration
		busy := errors.New("busy")
		err := q.admit("s", function.ID{Number: 1}, busy, func(context.Context) error {
			tries = append(tries, time.Since(began))
			if len(tries) < 9 {
				return busy
			}
			return nil
		})
		if !errors.Is(err, busy) || len(q.list()) != 1 {
			t.Fatalf("%v, held %v", err, q.list())
		}
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		want := []time.Duration{1, 3, 7, 15, 31, 63, 123, 183, 243}
		if len(tries) != len(want) {
			t.Fatalf("tries at %v", tries)
		}
		for i, at := range want {
			if tries[i] != at*time.Second {
				t.Errorf("try %d after %v, want %d s", i+1, tries[i], at)
			}
		}
		if len(q.list()) != 0 {
			t.Errorf("still held: %v", q.list())
		}
		if err := q.close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// The end of the daemon is the last try; what stays then is told.
func TestQuarantineCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		q := newQuarantine(log)
		busy := errors.New("busy")
		tries := 0
		_ = q.admit("stays", function.ID{Number: 1}, busy, func(context.Context) error { tries++; return busy })
		_ = q.admit("goes", function.ID{Number: 1}, busy, func(context.Context) error { return nil })
		if err := q.close(t.Context()); !errors.Is(err, busy) || tries != 1 {
			t.Errorf("%v after %d tries, want busy after one", err, tries)
		}
	})
}

// A sandbox that comes while the quarantine closes, or later, is reported, and stays.
// The process that owns it is root's: a race here would end every sandbox.
func TestQuarantineAdmitsWhileItCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		q := newQuarantine(log)
		busy := errors.New("busy")
		never := func(context.Context) error { t.Error("a removal was tried after close"); return busy }
		admitted := func(id string) {
			if err := q.admit(id, function.ID{Number: 1}, busy, never); !errors.Is(err, busy) || !strings.Contains(err.Error(), id+" stays quarantined") {
				t.Errorf("admitted late: %v", err)
			}
		}
		for i := range 8 {
			_ = q.admit(fmt.Sprint("early-", i), function.ID{Number: 1}, busy, func(context.Context) error {
				admitted(fmt.Sprint("late-", i))
				return nil
			})
		}
		err := q.close(t.Context())
		for i := range 8 {
			if id := fmt.Sprintf("sandbox late-%d stays quarantined: busy", i); err == nil || !strings.Contains(err.Error(), id) {
				t.Errorf("%v does not say %q", err, id)
			}
		}
		admitted("after")
		if held := q.list(); len(held) != 9 {
			t.Errorf("held: %v", held)
		}
		time.Sleep(time.Hour)
	})
}

// A removal that hangs does not hold up the end of the daemon for longer than its context.
func TestQuarantineDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := logrus.New()
		log.SetOutput(io.Discard)
		q := newQuarantine(log)
		hang := make(chan struct{})
		busy := errors.New("busy")
		_ = q.admit("s", function.ID{Number: 1}, busy, func(context.Context) error { <-hang; return busy })
		time.Sleep(2 * firstRetry) // the first attempt hangs
		ctx, cancel := context.WithTimeout(t.Context(), teardownTime)
		defer cancel()
		if err := q.close(ctx); !errors.Is(err, busy) || ctx.Err() == nil {
			t.Errorf("%v, %v", err, ctx.Err())
		}
		close(hang)
	})
}
