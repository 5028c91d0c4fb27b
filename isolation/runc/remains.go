package runc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// RemainsError says that a sandbox could not be made, and that what there was of it could
// not be removed either. The engine keeps what is left: see [Engine.RemoveRemains].
type RemainsError struct {
	ID   string // of the sandbox
	Err  error  // why it could not be made
	Left error  // why something is left
}

func (e *RemainsError) Error() string {
	return fmt.Sprintf("%v; and something of sandbox %s is left: %v", e.Err, e.ID, e.Left)
}

// Unwrap returns both causes.
func (e *RemainsError) Unwrap() []error { return []error{e.Err, e.Left} }

// remains are the sandboxes of an engine that could not be made and not be removed. Safe
// for concurrent use; the zero value has none.
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

// forget takes out s, which has been removed.
func (r *remains) forget(s *Sandbox) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.left[s.spec.ID] == s {
		delete(r.left, s.spec.ID)
	}
}

// of returns what is left of the sandbox id, nil if nothing is.
func (r *remains) of(id string) *Sandbox {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.left[id]
}

// ids lists the sandboxes.
func (r *remains) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Sorted(maps.Keys(r.left))
}

// RemoveRemains tries again to remove what is left of the sandbox id, which a
// [RemainsError] has named. It returns nil if nothing is left, also of an id that never had
// remains. An error says what stays; it may be called again. Until it succeeds the id and
// its range of host ids must not be used again. Safe for concurrent use.
func (e *Engine) RemoveRemains(ctx context.Context, id string) error {
	s := e.remains.of(id)
	if s == nil {
		return nil
	}
	if err := s.Close(ctx); err != nil { // else it is forgotten
		return fmt.Errorf("remove what is left of sandbox %s: %w", id, err)
	}
	return nil
}

// removeAllRemains tries a last time to remove what is left of any sandbox.
func (e *Engine) removeAllRemains(ctx context.Context) error {
	var errs []error
	for _, id := range e.remains.ids() {
		errs = append(errs, e.RemoveRemains(ctx, id))
	}
	return errors.Join(errs...)
}
