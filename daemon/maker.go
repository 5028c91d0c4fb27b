package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/pool"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// prewarmed is a sandbox made ahead of need, with the lease of its ids.
type prewarmed struct {
	*runc.Prewarmed
	base uint32
}

// maker makes the kernel's side of sandboxes. Safe for concurrent use.
type maker struct {
	owner  string // instance folder of the daemon
	leases *subid.Leases
	engine *runc.Engine
	log    *logrus.Logger

	revisions  *revisions
	pool       *pool.Pool[shape, prewarmed]
	quarantine *quarantine // of those that could not be removed
}

// poolConfig says how many sandboxes are kept ready: of each shape in use at least floor,
// more with demand, and never more of all than may still be made.
type poolConfig struct {
	floor int
	room  func() int // how many more sandboxes there may be; called often
}

func newMaker(owner string, leases *subid.Leases, engine *runc.Engine, networks []Network, ready poolConfig, mem memory.Info, log *logrus.Logger) *maker {
	m := &maker{owner: owner, leases: leases, engine: engine, log: log, quarantine: newQuarantine(log)}
	use := func(shape) func() { return func() {} }
	if ready.floor > 0 {
		m.pool = pool.New(pool.Config[shape, prewarmed]{
			Make:     m.prepare,
			Discard:  func(p prewarmed) { m.report("discard a sandbox that was kept ready", m.discard(p)) },
			Floor:    ready.floor,
			Ceiling:  ready.room,
			Pressure: mem.Short,
			OnError:  func(err error) { m.report("prepare a sandbox", err) },
		})
		use = m.pool.Use
	}
	m.revisions = newRevisions(networks, use, func(err error) { m.report("give back the files of a revision", err) })
	return m
}

// fill has sandboxes made ahead of need, if there is room.
func (m *maker) fill() {
	if m.pool != nil {
		m.pool.Look()
	}
}

// report logs an error that has no caller.
func (m *maker) report(what string, err error) {
	if err != nil {
		m.log.WithError(err).Error("could not " + what)
	}
}

// prepare makes a sandbox of that shape ahead of need.
func (m *maker) prepare(ctx context.Context, s shape) (p prewarmed, err error) {
	spec, prefix, ok := m.revisions.prewarmedSpec(s)
	if !ok {
		return p, errors.New("its revision has ended") // a moment ago
	}
	if spec.ID, err = sandboxID(prefix); err != nil {
		return p, err
	}
	if spec.IDBase, err = m.leases.Acquire(m.owner); err != nil {
		return p, err
	}
	p.base = spec.IDBase
	if p.Prewarmed, err = m.engine.Prepare(ctx, spec); err != nil {
		return p, m.unmade(spec.ID, p.base, err, func() {})
	}
	return p, nil
}

// unmade ends the lease of a sandbox that could not be made, and its use of a revision,
// unless something of the sandbox is left: that goes to the quarantine.
func (m *maker) unmade(id string, base uint32, err error, release func()) error {
	end := func() error {
		err := m.leases.Release(base)
		if err == nil {
			release()
		}
		return err
	}
	if _, ok := errors.AsType[*runc.RemainsError](err); ok {
		return m.quarantine.admit(id, err, func(ctx context.Context) error {
			if err := m.engine.RemoveRemains(ctx, id); err != nil {
				return err
			}
			return end()
		})
	}
	return errors.Join(err, end())
}

// remove ends a sandbox, the lease of its ids and its use of a revision. One that cannot be
// removed is quarantined: its ids are not used again.
func (m *maker) remove(ctx context.Context, id string, base uint32, end func(context.Context) error, release func()) error {
	remove := func(ctx context.Context) error {
		if err := end(ctx); err != nil {
			return err
		}
		err := failpoint.Do(failpoint.ReleaseIDs, func() error { return m.leases.Release(base) })
		if err == nil {
			release()
		}
		return err
	}
	if err := remove(ctx); err != nil {
		return m.quarantine.admit(id, err, remove)
	}
	return nil
}

// discard removes a sandbox that nobody has taken.
func (m *maker) discard(p prewarmed) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
	defer cancel()
	return m.remove(ctx, p.ID(), p.base, p.Close, func() {})
}

// hosted is a sandbox of a revision with the lease of its ids. It implements
// privsep.Hosted.
type hosted struct {
	*runc.Sandbox
	maker    *maker
	revision *revision
	base     uint32
	created  time.Time
	finish   func() // see pool.Take
}

// SetThrottled turns the CPU quota on or off. It is turned on when the function has
// initialized: then others may have the CPU again.
func (h *hosted) SetThrottled(ctx context.Context, on bool) error {
	err := h.Sandbox.SetThrottled(ctx, on)
	if on {
		h.finish()
	}
	return err
}

// Close removes the sandbox. See privsep.Config.Create.
func (h *hosted) Close(ctx context.Context) error {
	h.finish()
	return h.maker.remove(ctx, h.ID(), h.base, h.Sandbox.Close, func() { h.maker.revisions.release(h.revision) })
}

// fact is what the supervisor says of the sandbox to commands.
func (h *hosted) fact() admin.Fact {
	f := admin.Fact{
		ID: h.ID(), Revision: h.revision.id, Created: h.created, Cgroup: h.CgroupPath(), Init: h.PIDs(),
		Network: admin.NetworkOf(h.revision.spec.Network),
	}
	if usage, err := h.Usage(); err == nil { // one that is being removed has none
		f.MemoryBytes, f.PIDs = usage.MemoryBytes, usage.PIDs
	}
	if t, err := h.Traffic(); err == nil { // one without egress, or that is being removed, has none
		f.Network.Egress = &t
	}
	return f
}

// make makes the kernel's side of a sandbox of the revision of that number: one that was
// kept ready becomes it, or, if there is none, a new one.
func (m *maker) make(ctx context.Context, number uint64) (_ privsep.Hosted, err error) {
	rev, err := m.revisions.acquire(number)
	if err != nil {
		return nil, err
	}
	h := &hosted{maker: m, revision: rev, created: time.Now(), finish: func() {}}
	release := func() { m.revisions.release(rev) }
	if m.pool != nil {
		var p prewarmed
		var ok bool
		if p, h.finish, ok = m.pool.Take(rev.shape); ok {
			assign, end := tracing.Step(ctx, "ready sandbox")
			box, err := p.Assign(assign, rev.spec)
			end()
			if err == nil {
				h.Sandbox, h.base = box, p.base
				return h, nil
			}
			m.report("use a sandbox that was kept ready", errors.Join(err, m.discard(p))) // a new one may still do
		}
	}
	if err := m.makeNew(ctx, h, release); err != nil {
		h.finish()
		return nil, err
	}
	return h, nil
}

// makeNew makes h without the pool. What fails is released.
func (m *maker) makeNew(ctx context.Context, h *hosted, release func()) (err error) {
	spec := h.revision.spec
	if spec.ID, err = sandboxID(h.revision.files.Prefix); err == nil {
		spec.IDBase, err = m.leases.Acquire(m.owner)
	}
	if err != nil {
		release()
		return err
	}
	ctx, end := tracing.Step(ctx, "new sandbox")
	defer end()
	if h.Sandbox, err = m.engine.Create(ctx, spec); err != nil {
		return m.unmade(spec.ID, spec.IDBase, err, release)
	}
	h.base = spec.IDBase
	return nil
}

// idPrefix turns a function's name into the first part of sandbox ids, which name files and
// cgroups.
func idPrefix(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.Trim(name[:min(len(name), 31)], "-")
}

// sandboxID makes a new id: the prefix and eight random hexadecimal digits.
func sandboxID(prefix string) (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("sandbox id: %w", err)
	}
	return strings.TrimPrefix(prefix+"-", "-") + hex.EncodeToString(b[:]), nil
}

// close removes what is kept ready, tries a last time to remove what is in quarantine, and
// gives back the files of all revisions. It returns the errors of sandboxes that stay.
func (m *maker) close(ctx context.Context) error {
	var errs []error
	if m.pool != nil {
		if err := m.pool.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove the sandboxes that are kept ready: %w", err))
		}
	}
	errs = append(errs, m.quarantine.close(ctx))
	m.revisions.close()
	return errors.Join(errs...)
}
