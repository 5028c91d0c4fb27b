package runc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// RemainsError reports that a sandbox could not be created, and that its remains could not be
// removed. The engine keeps track of them: see [Engine.RemoveRemains].
type RemainsError struct {
	ID   string // of the sandbox
	Err  error  // why it could not be created
	Left error  // why the remains could not be removed
}

func (e *RemainsError) Error() string {
	return fmt.Sprintf("%v; and remains of sandbox %s could not be removed: %v", e.Err, e.ID, e.Left)
}

// Unwrap returns both causes.
func (e *RemainsError) Unwrap() []error { return []error{e.Err, e.Left} }

// remains holds the sandboxes of an engine that could neither be created nor removed. It is
// safe for concurrent use. The zero value is empty.
type remains struct {
	mu   sync.Mutex
	left map[string]*Sandbox // by id
}

func (r *remains) add(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left == nil {
		r.left = map[string]*Sandbox{}
	}
	r.left[s.spec.ID] = s
}

// forget drops s, which has been removed.
func (r *remains) forget(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left[s.spec.ID] == s {
		delete(r.left, s.spec.ID)
	}
}

// of returns the remains of the sandbox id, or nil.
func (r *remains) of(id string) *Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left[id]
}

// ids returns the ids of all sandboxes with remains.
func (r *remains) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.left))
}

// RemoveRemains tries again to remove the remains of the sandbox id, after a [RemainsError]. It
// returns nil if there are none, also for an id that never had any. After an error it may be
// called again. Until it succeeds, the id and its range of host ids must not be reused. It is
// safe for concurrent use.
func (e *Engine) RemoveRemains(ctx context.Context, id string) error {
	s := e.remains.of(id)
	if s == nil {
		return nil
	}
	if err := s.Close(ctx); err != nil { // on success Close calls forget
		return fmt.Errorf("remove the remains of sandbox %s: %w", id, err)
	}
	return nil
}

// removeAllRemains tries a last time to remove all remains.
func (e *Engine) removeAllRemains(ctx context.Context) error {
	var errs []error
	for _, id := range e.remains.ids() {
		errs = append(errs, e.RemoveRemains(ctx, id))
	}
	return errors.Join(errs...)
}
