package engine

import (
	"context"
	"errors"
	"path"
	"time"

	"github.com/sandboxd/sandboxd/isolation"
)

// Freezes are the times of freezing and thawing a sandbox, in turn.
type Freezes struct {
	Freeze []time.Duration `json:"freeze"` // until every process has stopped
	Thaw   []time.Duration `json:"thaw"`   // until every process may run
}

// Freeze freezes and thaws a sandbox, in which the function waits for its first event,
// n times.
func Freeze(ctx context.Context, o Options, n int) (f Freezes, err error) {
	h, err := open(ctx, o)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, h.close()) }()
	sup, close, err := h.sandbox(ctx)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, close()) }()
	asked := make(chan error, 1)
	go func() { // the function's GET next, which nobody answers
		conn, err := sup.Listener().Accept()
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		asked <- err
	}()
	if _, err := h.run(ctx, sup, path.Join("/var/task", "bootstrap"), "AWS_LAMBDA_RUNTIME_API="+isolation.APIAddr); err != nil {
		return f, err
	}
	select {
	case err := <-asked:
		if err != nil {
			return f, err
		}
	case <-ctx.Done():
		return f, ctx.Err()
	}
	if err := sup.Throttle(ctx, true); err != nil { // as it is between invocations
		return f, err
	}
	for range n {
		began := time.Now()
		if err := sup.Freeze(ctx); err != nil {
			return f, err
		}
		frozen := time.Now()
		if err := sup.Thaw(ctx); err != nil {
			return f, err
		}
		f.Freeze, f.Thaw = append(f.Freeze, frozen.Sub(began)), append(f.Thaw, time.Since(frozen))
		time.Sleep(5 * time.Millisecond) // the function goes back to its wait
	}
	return f, nil
}
