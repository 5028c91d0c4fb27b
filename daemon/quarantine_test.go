package daemon

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
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
		err := q.admit("s", busy, func(context.Context) error {
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
		_ = q.admit("stays", busy, func(context.Context) error { tries++; return busy })
		_ = q.admit("goes", busy, func(context.Context) error { return nil })
		if err := q.close(t.Context()); !errors.Is(err, busy) || tries != 1 {
			t.Errorf("%v after %d tries, want busy after one", err, tries)
		}
	})
}
