package suite

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
	"github.com/sandboxd/sandboxd/bench/result"
)

// most is how many sandboxes P8 is about.
const most = 500

// last is how many of the creations at the end are measured, in turn with as many of a
// daemon that has few sandboxes.
const last = 10

// density measures P8, and the part of P7 that needs sandboxes that have served: one
// tenant after the other gets a sandbox, which then idles.
func (s *suite) density(ctx context.Context) (err error) {
	n := max(most/max(s.cfg.Share, 1), 20)
	alone, err := s.startSandboxd(ctx, "--tenant-isolation", "--concurrency=1", "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, alone)
	many, err := s.startSandboxd(ctx, "--tenant-isolation", fmt.Sprintf("--concurrency=%d", n), "--pool=0")
	if err != nil {
		return err
	}
	defer stopAll(&err, many)
	if _, err := coldStart(ctx, alone, tenant(0)); err != nil {
		return err
	}
	var before memory
	var few *server // in which sandboxes are the 10th and those that follow
	defer func() { stopAll(&err, few) }()
	for i := range n {
		if i == n-last {
			if few, err = s.fewSandboxes(ctx); err != nil {
				return err
			}
		}
		if few != nil {
			c, err := coldStart(ctx, few, tenant(i))
			if err != nil {
				return fmt.Errorf("another sandbox: %w", err)
			}
			s.add(result.Creation, result.Tenth, c.total)
		}
		c, err := coldStart(ctx, many, tenant(i))
		if err != nil {
			return fmt.Errorf("sandbox %d: %w", i+1, err)
		}
		if few != nil {
			s.add(result.Creation, result.Last, c.total)
		}
		if i+1 == last {
			if before, err = many.memory(); err != nil {
				return err
			}
		}
		if slices.Contains([]int{1, 10, 50, 100, 200, 300, 400, n}, i+1) {
			if err := s.among(ctx, alone, many, i+1); err != nil {
				return err
			}
		}
	}
	after, err := many.memory()
	if err != nil {
		return err
	}
	s.results.Add(result.Memory, result.InitHandlers, result.MB, after.inits/float64(n))
	s.results.Add(result.Memory, result.Daemon, result.MB, (after.daemon-before.daemon)/float64(n-last))
	return s.idle(ctx, many)
}

// fewSandboxes starts a daemon and has it make nine sandboxes.
func (s *suite) fewSandboxes(ctx context.Context) (*server, error) {
	p, err := s.startSandboxd(ctx, "--tenant-isolation", fmt.Sprintf("--concurrency=%d", 9+last), "--pool=0")
	if err != nil {
		return nil, err
	}
	for i := range 9 {
		if _, err := coldStart(ctx, p, fmt.Sprint("first-", i)); err != nil {
			return nil, errors.Join(err, p.stop())
		}
	}
	return p, nil
}

func tenant(i int) string { return fmt.Sprint("tenant-", i) }

// among measures invocations of random ones of n idle sandboxes, in turn with those of
// the only one of another daemon.
func (s *suite) among(ctx context.Context, alone, many *server, n int) error {
	clients := map[*server]*load.Client{}
	for _, p := range []*server{alone, many} {
		clients[p] = load.NewClient(p.url, patience)
		defer clients[p].Close()
	}
	invoke := func(p *server, who int) (time.Duration, error) {
		request, err := clients[p].Request(event, http.Header{"X-Amz-Tenant-Id": {tenant(who)}})
		if err != nil {
			return 0, err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil { // all are frozen again
			return 0, err
		}
		a, err := clients[p].Send(ctx, request)
		if err == nil {
			err = a.Fault()
		}
		return a.Took, err
	}
	var one, some []time.Duration
	for range s.rounds(60) {
		a, err := invoke(alone, 0)
		if err != nil {
			return err
		}
		b, err := invoke(many, rand.IntN(n))
		if err != nil {
			return err
		}
		one, some = append(one, a), append(some, b)
	}
	for i := range one {
		s.add(result.OnlyOne, fmt.Sprint(n), one[i])
		s.add(result.OneOfMany, fmt.Sprint(n), some[i])
	}
	return nil
}

// idleTime is how long the CPU time of an idle daemon is measured.
const idleTime = 15 * time.Second

// idle measures what a daemon and its init handlers do when there is nothing to do.
func (s *suite) idle(ctx context.Context, p *server) error {
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	before, err := p.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := pause(ctx, idleTime/time.Duration(max(s.cfg.Share, 1))); err != nil {
		return err
	}
	after, err := p.cpu()
	if err != nil {
		return err
	}
	s.results.Add(result.IdleCPU, result.Sandboxd, result.Percent, 100*(after-before).Seconds()/time.Since(began).Seconds())
	return nil
}

// blanks measures the part of P7 that a sandbox without a function shows best: what the
// kernel holds for its cgroups, and what the whole host has less of.
func (s *suite) blanks(ctx context.Context) (err error) {
	n := max(100/max(s.cfg.Share, 1), 20)
	p, err := s.startSandboxd(ctx, "--tenant-isolation", fmt.Sprintf("--concurrency=%d", n+1), fmt.Sprintf("--pool=%d", n))
	if err != nil {
		return err
	}
	defer stopAll(&err, p)
	if err := p.awaitInits(ctx, 10); err != nil { // what only the first need is there
		return err
	}
	before, err := availableMB()
	if err != nil {
		return err
	}
	_, first, err := p.processes()
	if err != nil {
		return err
	}
	if err := p.awaitInits(ctx, n); err != nil {
		return err
	}
	if err := pause(ctx, time.Second); err != nil {
		return err
	}
	after, err := availableMB()
	if err != nil {
		return err
	}
	if made := n - len(first); made > 0 { // else all were there before anybody looked
		s.results.Add(result.Memory, result.WholeHost, result.MB, (before-after)/float64(made))
	}
	kernel, err := p.kernelMemory()
	if err != nil {
		return err
	}
	s.results.Add(result.Memory, result.Kernel, result.MB, kernel...)
	return nil
}
