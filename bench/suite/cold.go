package suite

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

// coldBlock is how many cold starts a daemon sees before a new one takes its place, so
// that sandboxes that are there already stay few.
const coldBlock = 25

// cold measures P1 and P2. Every request is of a new tenant, so every one needs a
// sandbox that has served nobody (INV-05).
func (s *suite) cold(ctx context.Context) error {
	for left := s.rounds(200); left > 0; left -= coldBlock {
		if err := s.coldBlock(ctx, min(left, coldBlock)); err != nil {
			return err
		}
	}
	return nil
}

func (s *suite) coldBlock(ctx context.Context, rounds int) (err error) {
	floor, err := s.startFloor(ctx, 0, "--cold")
	if err != nil {
		return err
	}
	defer stopAll(&err, floor)
	room := fmt.Sprintf("--concurrency=%d", rounds+2)
	pooled, err := s.startSandboxd(ctx, "--tenant-isolation", room, "--pool=1")
	if err != nil {
		return err
	}
	defer stopAll(&err, pooled)
	unpooled, err := s.startSandboxd(ctx, "--tenant-isolation", room, "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, unpooled)
	all := []subject{{result.Floor, floor}, {result.Pooled, pooled}, {result.Unpooled, unpooled}}
	taken := 0
	for round := range rounds {
		for i := range all {
			a := all[(i+round)%len(all)]
			// A refill is in nobody's way: it would be in the time of whoever comes after the pool.
			if err := pooled.awaitInits(ctx, taken+1); err != nil {
				return err
			}
			if a.server == pooled {
				taken++
			}
			c, err := coldStart(ctx, a.server, fmt.Sprint("tenant-", round))
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			s.add(result.ColdMain, a.name, c.main)
			s.add(result.ColdNext, a.name, c.next)
			s.add(result.ColdTotal, a.name, c.total)
		}
	}
	return nil
}

// coldTimes are those of one cold start. They begin with the request, on the floor
// with the start of the process.
type coldTimes struct{ main, next, total time.Duration }

// coldStart makes the first invocation of a tenant, on a connection that is there.
func coldStart(ctx context.Context, p *server, tenant string) (c coldTimes, err error) {
	client := load.NewClient(p.url, patience)
	defer client.Close()
	if err := client.Connect(ctx); err != nil {
		return c, err
	}
	request, err := client.Request([]byte(`"stamps"`), http.Header{"X-Amz-Tenant-Id": {tenant}})
	if err != nil {
		return c, err
	}
	a, err := client.Send(ctx, request)
	if err == nil {
		err = a.Fault()
	}
	if err != nil {
		return c, err
	}
	var stamps struct{ Main, Next time.Duration }
	if err := json.Unmarshal(a.Body, &stamps); err != nil {
		return c, fmt.Errorf("stamps %q: %w", a.Body, err)
	}
	began := a.Sent
	if exec := a.Header.Get("X-Exec-Time"); exec != "" {
		ns, err := strconv.ParseInt(exec, 10, 64)
		if err != nil {
			return c, fmt.Errorf("X-Exec-Time: %w", err)
		}
		began = time.Duration(ns)
	}
	return coldTimes{stamps.Main - began, stamps.Next - began, a.Took}, nil
}

// awaitInits waits until a daemon has at least n init handlers, those of the sandboxes
// that have served and those of the pool, and makes no more of them.
func (p *server) awaitInits(ctx context.Context, n int) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for seen, since := -1, time.Now(); ; {
		_, inits, err := p.processes()
		if err != nil {
			return err
		}
		if len(inits) != seen {
			seen, since = len(inits), time.Now()
		}
		if seen >= n && time.Since(since) > calm {
			return nil
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%d init handlers, want %d: %w; log:\n%s", seen, n, err, p.log())
		}
	}
}

// calm is how long a pool has made nothing when it is taken to be full: some times
// what the next one would take.
const calm = 150 * time.Millisecond

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
