package runc

import (
	"context"
	"fmt"

	"github.com/sandboxd/sandboxd/isolation"
)

// Prewarmed is a sandbox made ahead of need (docs/decisions/0008): its cgroup, its
// network namespace with the listener, its /tmp and its domains are there, and only
// init handlers run in them. It has no function's files and limits yet. It becomes
// one function's sandbox, once, or is closed.
type Prewarmed struct{ sandbox *Sandbox }

// Prepare makes one with the id, id range, domains, /tmp, seccomp profile and network
// of spec. It takes what Create and the start of every domain take.
// Its errors are as those of Create.
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

// ID returns the id that the sandbox was prepared with.
func (b *Prewarmed) ID() string { return b.sandbox.spec.ID }

// Assign gives the sandbox the limits, root and mounts of spec and returns it as a
// sandbox whose domains only wait for Start. It takes about a millisecond. After an
// error it is closed. Assign may be called once.
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
			err = s.furnish(ctx, name, s.domains[name])
		}
	}
	if err != nil {
		return nil, s.rollBack(ctx, fmt.Errorf("assign %s: %w", s.spec.ID, err))
	}
	return s, nil
}

// Close ends and removes a prewarmed sandbox that was not assigned.
func (b *Prewarmed) Close(ctx context.Context) error { return b.sandbox.Close(ctx) }
