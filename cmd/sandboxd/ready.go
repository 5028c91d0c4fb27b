package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/pool"
	"github.com/sandboxd/sandboxd/tracing"
)

// pressureShare is the part of the host's memory, in percent, that must be available
// for sandboxes to be kept ready.
const pressureShare = 10

// blank is a sandbox made ahead of need, with the lease of its ids.
type blank struct {
	*runc.Blank
	base uint32
}

// keepReady starts the pool of blanks: at least floor, more with demand, never more
// than sandboxes may still come to most.
func (f *factory) keepReady(floor, most int) {
	f.pool = pool.New(pool.Config[blank]{
		Make:     f.prepare,
		Discard:  func(b blank) { f.report(f.discard(b)) },
		Floor:    floor,
		Ceiling:  func() int { return most - f.count() },
		Pressure: memoryShort,
		OnError:  func(err error) { f.report(fmt.Errorf("prepare a sandbox: %w", err)) },
	})
}

func (f *factory) report(err error) {
	if err != nil {
		f.log.WithError(err).Error("the pool of ready sandboxes")
	}
}

// prepare makes a blank.
func (f *factory) prepare(ctx context.Context) (b blank, err error) {
	spec := f.spec
	if spec.ID, err = sandboxID(f.name); err != nil {
		return b, err
	}
	if spec.IDBase, err = f.leases.Acquire(f.instance); err != nil {
		return b, err
	}
	b.base = spec.IDBase
	if b.Blank, err = f.engine.Prepare(ctx, spec); err != nil {
		return b, f.unmade(spec.ID, b.base, err)
	}
	return b, nil
}

// unmade ends the lease of a sandbox that could not be made, unless something of the
// sandbox is left: that goes to the quarantine.
func (f *factory) unmade(id string, base uint32, err error) error {
	if remains, ok := errors.AsType[*runc.RemainsError](err); ok {
		return f.quarantine.admit(id, err, func(ctx context.Context) error {
			if err := remains.Remove(ctx); err != nil {
				return err
			}
			return f.leases.Release(base)
		})
	}
	return errors.Join(err, f.leases.Release(base))
}

// discard removes a blank.
func (f *factory) discard(b blank) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
	defer cancel()
	remove := func(ctx context.Context) error {
		if err := b.Close(ctx); err != nil {
			return err
		}
		return f.leases.Release(b.base)
	}
	if err := remove(ctx); err != nil {
		return f.quarantine.admit(b.ID(), err, remove)
	}
	return nil
}

// box gives the kernel's side of a sandbox: a blank that becomes the function's, or,
// if none is ready, a new one.
func (f *factory) box(ctx context.Context) (box *runc.Sandbox, id string, base uint32, err error) {
	spec := f.spec
	if f.pool != nil {
		if b, ok := f.pool.Take(); ok {
			assign, end := tracing.Step(ctx, "ready sandbox")
			box, err := b.Assign(assign, spec)
			end()
			if err == nil {
				return box, b.ID(), b.base, nil
			}
			f.report(errors.Join(err, f.discard(b))) // a new one may still do
		}
	}
	if id, err = sandboxID(f.name); err != nil {
		return nil, "", 0, err
	}
	if base, err = f.leases.Acquire(f.instance); err != nil {
		return nil, "", 0, err
	}
	spec.ID, spec.IDBase = id, base
	ctx, end := tracing.Step(ctx, "new sandbox")
	defer end()
	if box, err = f.engine.Create(ctx, spec); err != nil {
		return nil, "", 0, f.unmade(id, base, err)
	}
	return box, id, base, nil
}

// count is how many sandboxes live.
func (f *factory) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.live)
}

// memoryShort tells whether the host's memory is better used otherwise.
func memoryShort() bool {
	total, available := hostMemory()
	return available/pressureShare < total/100
}

// hostMemory is the host's memory, and what of it new programs can have, in bytes; both
// are 0 on a host that does not tell, which concurrency has warned of.
func hostMemory() (total, available uint64) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(b)) {
		_, _ = fmt.Sscanf(line, "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(line, "MemAvailable: %d kB", &available)
	}
	return total << 10, available << 10
}
