package engine

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"
)

// program is what a sandbox or container runs in its short life.
const program = "/usr/bin/true"

// Lives is how many sandboxes lived one after the other.
type Lives struct {
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds"`
}

// Rate is lives a second.
func (l Lives) Rate() float64 { return float64(l.Count) / l.Seconds }

// Sandboxes creates sandboxes, runs a program in each and destroys them, as many as
// go within d, by as many workers at once.
func Sandboxes(ctx context.Context, o Options, workers int, d time.Duration) (lives Lives, err error) {
	h, err := open(ctx, o)
	if err != nil {
		return lives, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	return repeat(ctx, workers, d, func(ctx context.Context, _ string) (err error) {
		sup, close, err := h.sandbox(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, close()) }()
		p, err := h.run(ctx, sup, program)
		if err != nil {
			return err
		}
		select {
		case <-p.Done():
		case <-ctx.Done():
			return ctx.Err()
		}
		if exit := p.Exit(); exit.Code != 0 || exit.Signal != 0 {
			return fmt.Errorf("%s ended with %+v", program, exit)
		}
		return nil
	})
}

// Containers does the same with `NAME run` of an OCI runtime. With confined its
// containers have more of what a sandbox has, see makeBundle.
func Containers(ctx context.Context, o Options, name string, confined bool, workers int, d time.Duration) (Lives, error) {
	bundle, _, err := makeBundle(ctx, o, confined)
	if err != nil {
		return Lives{}, err
	}
	return repeat(ctx, workers, d, func(_ context.Context, id string) error {
		// Not to be killed: it would leave its cgroups behind.
		out, err := exec.Command(name, "--root", filepath.Join(o.Dir, name), "run", "--bundle", bundle, id).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s run: %w: %s", name, err, out)
		}
		return nil
	})
}

// repeat has workers call life until d is over. The first call, which warms what must be
// warm, does not count.
func repeat(ctx context.Context, workers int, d time.Duration, life func(ctx context.Context, id string) error) (Lives, error) {
	if err := life(ctx, "bench-warm"); err != nil {
		return Lives{}, err
	}
	var count atomic.Int64
	errs := make([]error, workers)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for n := 0; errs[w] == nil && ctx.Err() == nil && time.Since(began) < d; n++ {
				if errs[w] = life(ctx, fmt.Sprintf("bench-%d-%d", w, n)); errs[w] == nil {
					count.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return Lives{Count: int(count.Load()), Seconds: time.Since(began).Seconds()}, errors.Join(append(errs, ctx.Err())...)
}
