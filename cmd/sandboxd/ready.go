package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/pool"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// pressureShare is the part of the host's memory, in percent, that must be available
// for sandboxes to be kept ready.
const pressureShare = 10

// blank is a sandbox made ahead of need, with the lease of its ids.
type blank struct {
	*runc.Blank
	base uint32
}

// maker makes the kernel's side of a function's sandboxes. It belongs to the
// supervisor's process.
type maker struct {
	instance *instance.Instance
	leases   *subid.Leases
	engine   *runc.Engine
	log      *logrus.Logger

	name string         // first part of sandbox ids
	spec isolation.Spec // all but ID and IDBase

	memory meminfo

	pool       *pool.Pool[blank] // nil: every sandbox is made when it is needed
	quarantine *quarantine       // of those that could not be removed
}

func newMaker(s *session, spec isolation.Spec) *maker {
	return &maker{instance: s.instance, leases: s.leases, engine: s.engine, log: s.log, memory: s.memory,
		name: idPrefix(s.o.functionName), spec: spec, quarantine: newQuarantine(s.log)}
}

// keepReady starts the pool of blanks: at least floor, more with demand, never more
// than sandboxes may still come to most. count says how many there are.
func (m *maker) keepReady(floor, most int, count func() int) {
	m.pool = pool.New(pool.Config[blank]{
		Make:     m.prepare,
		Discard:  func(b blank) { m.report(m.discard(b)) },
		Floor:    floor,
		Ceiling:  func() int { return most - count() },
		Pressure: m.memory.short,
		OnError:  func(err error) { m.report(fmt.Errorf("prepare a sandbox: %w", err)) },
	})
}

func (m *maker) report(err error) {
	if err != nil {
		m.log.WithError(err).Error("the pool of ready sandboxes")
	}
}

// prepare makes a blank.
func (m *maker) prepare(ctx context.Context) (b blank, err error) {
	spec := m.spec
	if spec.ID, err = sandboxID(m.name); err != nil {
		return b, err
	}
	if spec.IDBase, err = m.leases.Acquire(m.instance.Dir()); err != nil {
		return b, err
	}
	b.base = spec.IDBase
	if b.Blank, err = m.engine.Prepare(ctx, spec); err != nil {
		return b, m.unmade(spec.ID, b.base, err)
	}
	return b, nil
}

// unmade ends the lease of a sandbox that could not be made, unless something of the
// sandbox is left: that goes to the quarantine.
func (m *maker) unmade(id string, base uint32, err error) error {
	if _, ok := errors.AsType[*runc.RemainsError](err); ok {
		return m.quarantine.admit(id, err, func(ctx context.Context) error {
			if err := m.engine.RemoveRemains(ctx, id); err != nil {
				return err
			}
			return m.leases.Release(base)
		})
	}
	return errors.Join(err, m.leases.Release(base))
}

// remove ends a sandbox and the lease of its ids. One that cannot be removed is
// quarantined: its ids are not used again.
func (m *maker) remove(ctx context.Context, id string, base uint32, end func(context.Context) error) error {
	remove := func(ctx context.Context) error {
		if err := end(ctx); err != nil {
			return err
		}
		return failpoint.Do(failpoint.ReleaseIDs, func() error { return m.leases.Release(base) })
	}
	if err := remove(ctx); err != nil {
		return m.quarantine.admit(id, err, remove)
	}
	return nil
}

// discard removes a blank.
func (m *maker) discard(b blank) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
	defer cancel()
	return m.remove(ctx, b.ID(), b.base, b.Close)
}

// hosted is a sandbox with the lease of its ids.
type hosted struct {
	*runc.Sandbox
	maker  *maker
	base   uint32
	settle func() // see pool.Take
}

// SetThrottled turns the CPU quota on or off. It is turned on when the function has
// initialized: then others may have the CPU again.
func (h *hosted) SetThrottled(on bool) error {
	err := h.Sandbox.SetThrottled(on)
	if on {
		h.settle()
	}
	return err
}

// Close removes the sandbox. See privsep.Config.Create.
func (h *hosted) Close(ctx context.Context) error {
	h.settle()
	return h.maker.remove(ctx, h.ID(), h.base, h.Sandbox.Close)
}

// make gives the kernel's side of a sandbox: a blank that becomes the function's, or,
// if none is ready, a new one.
func (m *maker) make(ctx context.Context) (_ privsep.Hosted, err error) {
	spec, settle := m.spec, func() {}
	defer func() {
		if err != nil {
			settle()
		}
	}()
	if m.pool != nil {
		var b blank
		var ok bool
		if b, settle, ok = m.pool.Take(); ok {
			assign, end := tracing.Step(ctx, "ready sandbox")
			box, err := b.Assign(assign, spec)
			end()
			if err == nil {
				return &hosted{box, m, b.base, settle}, nil
			}
			m.report(errors.Join(err, m.discard(b))) // a new one may still do
		}
	}
	if spec.ID, err = sandboxID(m.name); err != nil {
		return nil, err
	}
	if spec.IDBase, err = m.leases.Acquire(m.instance.Dir()); err != nil {
		return nil, err
	}
	ctx, end := tracing.Step(ctx, "new sandbox")
	defer end()
	box, err := m.engine.Create(ctx, spec)
	if err != nil {
		return nil, m.unmade(spec.ID, spec.IDBase, err)
	}
	return &hosted{box, m, spec.IDBase, settle}, nil
}

// meminfo is /proc/meminfo, held open for a process that cannot open it.
type meminfo struct{ *os.File }

func openMeminfo() (meminfo, error) {
	f, err := os.Open("/proc/meminfo")
	return meminfo{f}, err
}

// read is the host's memory, and what of it new programs can have, in bytes.
func (m meminfo) read() (total, available uint64) {
	var buf [4096]byte
	n, _ := m.ReadAt(buf[:], 0) // the end of the file is an error
	for line := range strings.Lines(string(buf[:n])) {
		_, _ = fmt.Sscanf(line, "MemTotal: %d kB", &total)
		_, _ = fmt.Sscanf(line, "MemAvailable: %d kB", &available)
	}
	return total << 10, available << 10
}

// short tells whether the host's memory is better used otherwise.
func (m meminfo) short() bool {
	total, available := m.read()
	return available/pressureShare < total/100
}
