package runc

import (
	"context"
	"fmt"

	"github.com/sandboxd/sandboxd/isolation"
)

// Prewarmed is a sandbox that was created ahead of demand (docs/decisions/0008). It has its
// cgroup, its network namespace with the listener, its /tmp and its domains, in which only the
// init handlers run. It does not have the files and limits of a function yet. The owner must
// either Assign or Close it. Its methods are not safe for concurrent use.
type Prewarmed struct{ sandbox *Sandbox }

// Prepare creates a prewarmed sandbox with the id, id range, domains, /tmp, seccomp profile
// and network of spec. It takes as long as Create and the start of all domains. Its errors are
// like those of Create.
func (e *Engine) Prepare(ctx context.Context, spec isolation.Spec) (*Prewarmed, error) {
	spec.Limits.CPU, spec.Root, spec.Mounts = 0, isolation.Root{}, nil
	s, err := e.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	b := &Prewarmed{s}
	for _, name := range spec.Domains {
		if _, err := s.boot(ctx, name); err != nil {
			return nil, s.rollBack(ctx, fmt.Errorf("prepare %s of %s: %w", name, spec.ID, err))
		}
	}
	if s.tmp != nil {
		if _, err := s.tmp(); err != nil {
			return nil, s.rollBack(ctx, err)
		}
	}
	return b, nil
}

// ID returns the id of the sandbox.
func (b *Prewarmed) ID() string { return b.sandbox.spec.ID }

// Assign applies the limits, root and mounts of spec, and returns the sandbox, whose domains
// then start at once. It takes about a millisecond. On an error it closes the sandbox. Assign
// may be called once.
func (b *Prewarmed) Assign(ctx context.Context, spec isolation.Spec) (*Sandbox, error) {
	s := b.sandbox
	s.spec.Limits, s.spec.Root, s.spec.Mounts = spec.Limits, spec.Root, spec.Mounts
	err := s.spec.Validate()
	if err == nil {
		err = inStep(ctx, "limits", func() error { return s.group.limit(spec.Limits, len(s.spec.Domains)) })
	}
	if err == nil {
		err = inStep(ctx, "root", s.fillRoot)
	}
	for _, name := range s.spec.Domains {
		if err == nil {
			err = s.attachFiles(ctx, name, s.domains[name])
		}
	}
	if err != nil {
		return nil, s.rollBack(ctx, fmt.Errorf("assign %s: %w", s.spec.ID, err))
	}
	return s, nil
}

// Close removes a prewarmed sandbox that was not assigned.
func (b *Prewarmed) Close(ctx context.Context) error { return b.sandbox.Close(ctx) }
