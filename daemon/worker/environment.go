package worker

import (
	"context"
	"maps"
	"sync"
)

// environment has the variables of a revision as long as it has sandboxes. They may hold
// secrets, so the worker asks control for them when it makes the first sandbox, and forgets
// them with the last. A nil *environment has none. It is safe for concurrent use.
type environment struct {
	fetch func(context.Context) (map[string]string, error)
	turn  chan struct{} // capacity 1; full while somebody fetches

	mu    sync.Mutex
	users int
	vars  map[string]string // nil while there are no users, or until they are fetched
}

func newEnvironment(fetch func(context.Context) (map[string]string, error)) *environment {
	return &environment{fetch: fetch, turn: make(chan struct{}, 1)}
}

// hold returns image, the variables of a container image, with those of the function. The
// caller must call release once it does not need them any more, unless hold fails.
func (e *environment) hold(ctx context.Context, image map[string]string) (_ map[string]string, err error) {
	if e == nil {
		return image, nil
	}
	e.mu.Lock()
	e.users++
	e.mu.Unlock()
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-e.turn }()
	e.mu.Lock()
	vars := e.vars
	e.mu.Unlock()
	if vars == nil {
		if vars, err = e.fetch(ctx); err != nil {
			return nil, err
		}
		if vars == nil {
			vars = map[string]string{}
		}
		e.mu.Lock()
		e.vars = vars
		e.mu.Unlock()
	}
	all := make(map[string]string, len(image)+len(vars))
	maps.Copy(all, image)
	maps.Copy(all, vars)
	return all, nil
}

// release ends one use. With the last one the variables are gone.
func (e *environment) release() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.users--
	if e.users == 0 {
		e.vars = nil
	}
}
