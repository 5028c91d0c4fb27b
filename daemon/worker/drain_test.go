package worker

import (
	"context"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sandboxd/sandboxd/internal/exit"
)

func TestSignals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		signals := make(chan os.Signal)
		ctx := exit.OnSignals(context.Background(), signals)
		drain, stop := drainContext(ctx, time.Minute)
		defer stop()
		signals <- syscall.SIGTERM
		synctest.Wait()
		if ctx.Err() == nil || drain.Err() != nil {
			t.Fatalf("after one signal: context %v, drain %v", ctx.Err(), drain.Err())
		}
		time.Sleep(59 * time.Second)
		synctest.Wait()
		if drain.Err() != nil {
			t.Fatal("drained too early")
		}
		signals <- syscall.SIGINT
		synctest.Wait()
		if why := context.Cause(drain); why == nil || !strings.Contains(why.Error(), "second signal") {
			t.Fatalf("the drain after a second signal: %v, want it cut short", why)
		}
		select {
		case <-exit.Forced(ctx):
		default:
			t.Fatal("nothing is forced after the second signal")
		}
	})
}

func TestDrainTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		drain, stop := drainContext(ctx, time.Minute)
		defer stop()
		time.Sleep(time.Hour) // serving does not count
		cancel()
		begin := time.Now()
		<-drain.Done()
		if waited := time.Since(begin); waited != time.Minute {
			t.Errorf("drained for %v, want a minute", waited)
		}
		if why := context.Cause(drain).Error(); !strings.Contains(why, "--drain-timeout, 1m0s") {
			t.Errorf("the drain ended since %s; want the flag and its value", why)
		}
	})
}
