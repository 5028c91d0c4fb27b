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
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/failpoint"
	"github.com/sandboxd/sandboxd/internal/pool"
	"github.com/sandboxd/sandboxd/internal/tracing"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// prewarmed is a sandbox created ahead of demand, with the lease of its ids.
type prewarmed struct {
	*runc.Prewarmed
	base uint32 // first host id
}

// maker creates and removes the kernel objects of sandboxes for the worker. It is safe for
// concurrent use.
type maker struct {
	owner  string // instance folder of the daemon
	leases *subid.Leases
	engine *runc.Engine
	log    *logrus.Logger

	revisions  *revisions
	pool       *pool.Pool[shape, prewarmed]
	quarantine *quarantine // sandboxes that could not be removed
}

// poolConfig says how many prewarmed sandboxes to keep: at least floor of each shape in
// use, more with demand, and of all shapes together at most room().
type poolConfig struct {
	floor int
	room  func() int // how many more sandboxes may exist; called often
}

func newMaker(owner string, leases *subid.Leases, engine *runc.Engine, networks []Network, ready poolConfig, mem memory.Info, log *logrus.Logger) *maker {
	m := &maker{owner: owner, leases: leases, engine: engine, log: log, quarantine: newQuarantine(log)}
	use := func(shape) func() { return func() {} }
	if ready.floor > 0 {
		m.pool = pool.New(pool.Config[shape, prewarmed]{
			Make:     m.prepare,
			Discard:  func(p prewarmed) { m.report("discard a prewarmed sandbox", m.discard(p)) },
			Floor:    ready.floor,
			Ceiling:  ready.room,
			Pressure: mem.Short,
			OnError:  func(err error) { m.report("create a prewarmed sandbox", err) },
		})
		use = m.pool.Use
	}
	m.revisions = newRevisions(networks, use, func(err error) { m.report("release the files of a revision", err) })
	return m
}

// fill makes the pool check whether it needs more prewarmed sandboxes. It does not block.
func (m *maker) fill() {
	if m.pool != nil {
		m.pool.Look()
	}
}

// report logs an error that cannot be returned to a caller. what completes "could not …".
func (m *maker) report(what string, err error) {
	if err != nil {
		m.log.WithError(err).Error("could not " + what)
	}
}

// prepare creates a prewarmed sandbox of the shape s.
func (m *maker) prepare(ctx context.Context, s shape) (p prewarmed, err error) {
	spec, prefix, ok := m.revisions.prewarmedSpec(s)
	if !ok {
		return p, errors.New("no revision has this shape any more") // it was retired meanwhile
	}
	if spec.ID, err = sandboxID(prefix); err != nil {
		return p, err
	}
	if spec.IDBase, err = m.leases.Acquire(m.owner); err != nil {
		return p, err
	}
	p.base = spec.IDBase
	if p.Prewarmed, err = m.engine.Prepare(ctx, spec); err != nil {
		return p, m.rollback(spec.ID, function.ID{}, p.base, err, func() {})
	}
	return p, nil
}

// rollback ends the lease of a sandbox whose creation failed with err, calls release, and
// returns the error to report. If something of the sandbox remains, it goes into quarantine,
// and lease and release wait for its removal.
func (m *maker) rollback(id string, revision function.ID, base uint32, err error, release func()) error {
	end := func() error {
		err := m.leases.Release(base)
		if err == nil {
			release()
		}
		return err
	}
	if _, ok := errors.AsType[*runc.RemainsError](err); ok {
		return m.quarantine.admit(id, revision, err, func(ctx context.Context) error {
			if err := m.engine.RemoveRemains(ctx, id); err != nil {
				return err
			}
			return end()
		})
	}
	return errors.Join(err, end())
}

// remove removes a sandbox with end, then ends the lease of its ids and calls release. If
// one of the first two fails, the sandbox goes into quarantine, and its ids are not reused.
func (m *maker) remove(ctx context.Context, id string, revision function.ID, base uint32, end func(context.Context) error, release func()) error {
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
		return m.quarantine.admit(id, revision, err, remove)
	}
	return nil
}

// discard removes a prewarmed sandbox that was not assigned to a revision.
func (m *maker) discard(p prewarmed) error {
	ctx, cancel := context.WithTimeout(context.Background(), teardownTime)
	defer cancel()
	return m.remove(ctx, p.ID(), function.ID{}, p.base, p.Close, func() {})
}

// hosted is a sandbox that the worker uses: it belongs to a revision and has a lease of its
// ids. It implements privsep.Hosted.
type hosted struct {
	*runc.Sandbox
	maker    *maker
	revision *revision
	base     uint32
	created  time.Time
	finish   func() // from pool.Take
}

// SetThrottled turns the CPU quota on or off. The worker turns it on when the function has
// initialized; from then on the pool may use the CPU for prewarming again.
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
	return h.maker.remove(ctx, h.ID(), h.revision.id, h.base, h.Sandbox.Close, func() { h.maker.revisions.release(h.revision) })
}

// fact returns what commands learn about the sandbox.
func (h *hosted) fact() admin.Fact {
	f := admin.Fact{
		ID: h.ID(), Revision: h.revision.id, Created: h.created, Cgroup: h.CgroupPath(), Init: h.PIDs(),
		Network: admin.NetworkOf(h.revision.spec.Network),
	}
	if usage, err := h.Usage(); err == nil { // fails while the sandbox is being removed
		f.MemoryBytes, f.PIDs = usage.MemoryBytes, usage.PIDs
	}
	if t, err := h.Traffic(); err == nil { // fails without egress, and during the removal
		f.Network.Egress = &t
	}
	return f
}

// make creates the kernel objects of a sandbox for the revision with that number. It
// assigns a prewarmed sandbox if there is one.
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
			m.report("use a prewarmed sandbox", errors.Join(err, m.discard(p))) // a new one may work
		}
	}
	if err := m.makeNew(ctx, h, release); err != nil {
		h.finish()
		return nil, err
	}
	return h, nil
}

// makeNew creates the sandbox h without the pool. On failure it rolls back and has called
// release, or will once the quarantine has removed what remains.
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
		return m.rollback(spec.ID, h.revision.id, spec.IDBase, err, release)
	}
	h.base = spec.IDBase
	return nil
}

// idPrefix turns a function's name into the prefix of sandbox ids. Ids are names of files
// and cgroups.
func idPrefix(name string) string {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
	return strings.Trim(name[:min(len(name), 31)], "-")
}

// sandboxID returns a new id: the prefix and eight random hexadecimal digits.
func sandboxID(prefix string) (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", fmt.Errorf("generate a sandbox id: %w", err)
	}
	return strings.TrimPrefix(prefix+"-", "-") + hex.EncodeToString(b[:]), nil
}

// close removes the prewarmed sandboxes, tries a last time to remove those in quarantine,
// and releases the files of all revisions. It returns an error for each sandbox that
// remains.
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
