// Package fleet manages the sandboxes of one function. It assigns a sandbox to each
// invocation, creates sandboxes up to a limit, prefers the most recently used one, and closes
// sandboxes that are dead or have been idle for too long.
//
// A request first reserves a place ([Fleet.Reserve]) and then runs in it ([Lease.Invoke]), so
// that the caller knows early whether it is accepted.
//
// One mutex of [Fleet] guards all state, and is never held during an operation that can
// block. Each sandbox has one goroutine, its reaper (reaper.go); only the reaper closes the
// sandbox. An invocation starts no goroutine and does not wake the reaper: the goroutine that
// ends the invocation updates the state.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/rapid"
)

var (
	// ErrTooMany reports that Max invocations are running. Package invoke answers it with
	// status 429 (INV-23).
	ErrTooMany = errors.New("every sandbox is busy")
	// ErrNoRoom reports that the invocations of all functions together use all of the Budget.
	ErrNoRoom = errors.New("the sandboxes of all functions are busy")
	// ErrClosed reports that Shutdown was called before a sandbox was asked to run the
	// invocation.
	ErrClosed = errors.New("the function is shut down")
	// ErrCutShort reports that the fleet has ended while a sandbox may have been running the
	// invocation, which must not run again.
	ErrCutShort = errors.New("cut short by the shutdown")
)

// patience is how long a request waits for a sandbox that has answered and is about to be
// Done (LC-41), before it takes a new sandbox. A runtime asks for its next event well within
// that time, so a client that sends one request after the other stays on one warm sandbox
// instead of causing a cold start. A queued request also waits this long before we watch its
// client for a disconnect.
const patience = 20 * time.Millisecond

// Sandbox is a sandbox of the fleet. The fleet calls its methods from several goroutines at
// once, but Invoke from one at a time (with [Share], from as many as the sandbox has places),
// and Close exactly once.
type Sandbox interface {
	// ID returns the id of the sandbox, for Stats and errors.
	ID() string
	// State returns the state of the sandbox's life cycle.
	State() rapid.State
	// Invoke is like Invoke of *rapid.Sandbox: it waits for an initialization in progress, and
	// returns when the answer is complete, or has begun if it is streamed. rapid.ErrDead and
	// rapid.ErrBusy mean that no process has received the invocation.
	Invoke(context.Context, *rapid.Invocation) (*rapid.Result, error)
	// Ready returns a channel that is closed when the sandbox has initialized. It stays open if
	// the initialization fails.
	Ready() <-chan struct{}
	// Ended returns a channel that is closed when the life cycle has ended by itself.
	Ended() <-chan struct{}
	// Close shuts the sandbox down (a running invocation gets an answer, and the shutdown has
	// the reason spindown) and releases what it holds. The context has the deadline.
	Close(context.Context) error
}

// Config configures a fleet. It must not be changed after New.
type Config struct {
	// Max is the most sandboxes at once, including those that are being created or closed;
	// less than 1 means 1.
	Max int
	// New creates a sandbox that lives until its Close. It is called on the goroutine of the
	// invocation that needs it, several at once. The context ends when Shutdown stops waiting,
	// not when the client disconnects.
	New func(context.Context) (Sandbox, error)
	// Provisioned is how many of Max sandboxes [Fleet.Provision] creates ahead of invocations,
	// with NewProvisioned, which is like New. They are replaced when they die.
	Provisioned    int
	NewProvisioned func(context.Context) (Sandbox, error)
	// IdleTimeout is how long a sandbox may be idle before it is closed; 0 means no limit. It
	// does not apply to provisioned sandboxes.
	IdleTimeout time.Duration
	// Budget, if not nil, limits the sandboxes of this fleet together with those of others.
	// Memory is what one sandbox takes of it, in bytes.
	Budget *Budget
	Memory uint64
	// OnError, if not nil, receives errors that cannot be returned to a caller, such as those
	// of sandboxes that did not close cleanly. It must be safe for concurrent use.
	OnError func(error)
}

// Fleet is the set of sandboxes of one function. Its methods are safe for concurrent use.
// Use New, and end it with Shutdown.
type Fleet struct {
	cfg     Config
	life    context.Context    // ends when Shutdown stops waiting for invocations
	endLife context.CancelFunc // ends life
	reapers sync.WaitGroup     // one for each member

	mu          sync.Mutex
	members     map[*member]struct{} // never more than Max
	count       [phases]int          // number of members by phase
	idle        []*member            // members in phase idle, most recently used last
	waiters     []waiter             // longest waiting first
	empty       time.Time            // since when there are no members
	closing     bool
	drained     chan struct{} // closed when closing and no member is taken or finishing
	onceDrained sync.Once
	errs        []error // of sandboxes closed by Shutdown
	cut         error   // why Shutdown did not wait for all invocations; nil if it did
}

// A phase is the fleet's state of a member.
type phase int

const (
	taken     phase = iota // leased: its sandbox is being created, or its invocation is not answered completely
	finishing              // its invocation is answered, but not Done (LC-40)
	idle                   // free
	leaving                // being closed
	warming                // provisioned, and not initialized yet
	phases                 // the number of phases
)

// A waiter is a request that waits for a sandbox of its tenant.
type waiter struct {
	tenant string
	grant  chan grant // capacity 1
}

// A grant ends the wait of a request.
type grant struct {
	lease *Lease
	err   error // ErrClosed, or errAgain; then lease is nil
}

// errAgain tells a waiter that it must wait for room in the Budget.
var errAgain = errors.New("other functions use the place")

// A member is one sandbox, or the place of one that is being created.
type member struct {
	provisioned bool
	pause       time.Duration // waited before its creation
	sandbox     Sandbox       // nil until created; then fixed
	done        func()        // called when its answered invocation is Done
	broken      chan struct{} // closed when the sandbox must be closed: it refused an invocation, or is discarded

	// Guarded by Fleet.mu.
	phase       phase
	closes      bool          // the Budget has its room back
	yields      bool          // discarded to make room, not because of a failure
	tenant      string        // the only tenant that it serves (INV-05); "" if it has served none
	stream      *rapid.Stream // answer of a taken member while it is streamed
	made        time.Time
	since       time.Time // when it became idle
	invocations uint64
}

// New returns an empty fleet.
func New(cfg Config) *Fleet {
	cfg.Max = max(cfg.Max, 1)
	if cfg.OnError == nil {
		cfg.OnError = func(error) {}
	}
	life, end := context.WithCancel(context.Background())
	return &Fleet{
		cfg: cfg, life: life, endLife: end,
		members: map[*member]struct{}{}, drained: make(chan struct{}), empty: time.Now(),
	}
}

// Reserve returns the right to one invocation: on the most recently used idle sandbox, or
// else on a new one. Lease.Invoke creates the new one, so Reserve returns at once, with one
// exception: it waits for a sandbox that has answered and is about to be free. If there is
// room for a new sandbox, it waits briefly, else until the sandbox is free or ctx ends. At
// most one request waits for each such sandbox; all other requests above Max get ErrTooMany
// at once.
//
// A sandbox serves only one tenant in its life (INV-05). At Max an idle sandbox of another
// tenant is closed to make room. Without tenant isolation tenant must be "".
//
// If the Budget has no room for a new sandbox, Reserve does what [Budget] says.
func (f *Fleet) Reserve(ctx context.Context, tenant string) (*Lease, error) {
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return nil, ErrClosed
	}
	warm := f.warmest(tenant) >= 0
	if !warm {
		f.finalizeStreams()
		warm = f.warmest(tenant) >= 0
	}
	room := len(f.members) < f.cfg.Max
	soon := f.soon(tenant, room) // the most requests that may wait
	if warm || room && len(f.waiters) >= soon {
		l := f.take(tenant, nil)
		f.mu.Unlock()
		if l == nil {
			return f.cfg.Budget.wait(ctx, f, tenant)
		}
		return l, nil
	}
	if len(f.waiters) >= soon {
		f.mu.Unlock()
		return nil, ErrTooMany
	}
	w := waiter{tenant, make(chan grant, 1)}
	f.waiters = append(f.waiters, w)
	if !room {
		f.makeRoom()
	}
	f.mu.Unlock()
	return f.wait(ctx, w)
}

// Invoke calls Reserve, and Invoke of the lease. The context applies to Reserve only.
func (f *Fleet) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	l, err := f.Reserve(ctx, inv.TenantID)
	if err != nil {
		return nil, err
	}
	return l.Invoke(inv)
}

// grab returns a lease of a request with the turn t in the queue of the Budget, or nil if
// there is no room. If a sandbox of this fleet is idle, it does not matter whose turn it is.
// The error is ErrClosed, or errFull if there can be no other sandbox.
func (f *Fleet) grab(tenant string, t *turn) (*Lease, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closing {
		return nil, ErrClosed
	}
	if l := f.take(tenant, t); l != nil {
		return l, nil
	}
	if len(f.members) >= f.cfg.Max {
		return nil, errFull
	}
	return nil, nil
}

// wait waits until w is granted. After patience it takes a new place if there is room; from
// then on it also returns when ctx ends. Before that it does not use ctx, because watching a
// client costs more than most waits.
func (f *Fleet) wait(ctx context.Context, w waiter) (*Lease, error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	var gone <-chan struct{}
	for {
		select {
		case g := <-w.grant:
			if g.err == errAgain {
				return f.cfg.Budget.wait(ctx, f, w.tenant)
			}
			return g.lease, g.err
		case <-enough.C:
			f.mu.Lock()
			if slices.Contains(f.waiters, w) {
				if l := f.take(w.tenant, nil); l != nil {
					f.unqueue(w)
					f.mu.Unlock()
					return l, nil
				}
			}
			f.mu.Unlock() // there is no room, or w has just been granted: continue to wait
			gone = ctx.Done()
		case <-gone:
			f.mu.Lock()
			if !f.unqueue(w) {
				if g := <-w.grant; g.lease != nil {
					f.giveBack(g.lease.m)
				}
			}
			f.mu.Unlock()
			return nil, fmt.Errorf("wait for a sandbox: %w", ctx.Err())
		}
	}
}

// The caller of each function below holds f.mu.

// finalizeStreams updates the members whose streamed answer has ended. A client may send its
// next request as soon as it has the whole answer, before the reaper notices.
func (f *Fleet) finalizeStreams() {
	for m := range f.members {
		if m.phase != taken || m.stream == nil {
			continue
		}
		select {
		case <-m.stream.Ended():
			f.streamed(m)
		default:
		}
	}
}

// streamed records that the stream of m has ended.
func (f *Fleet) streamed(m *member) {
	m.stream = nil
	if m.phase == taken {
		f.move(m, finishing)
	}
}

// warmest returns the index in f.idle of the member that tenant used last, or else of one
// without a tenant, or -1.
func (f *Fleet) warmest(tenant string) int {
	fresh := -1
	for i := len(f.idle) - 1; i >= 0; i-- {
		switch f.idle[i].tenant {
		case tenant:
			return i
		case "":
			fresh = max(fresh, i)
		}
	}
	return fresh
}

// soon returns the number of members that tenant may wait for: those that are about to be
// free and, if there is no room, those whose place is about to be free.
func (f *Fleet) soon(tenant string, room bool) int {
	n := f.count[finishing]
	if tenant != "" && room { // count only members of this tenant
		n = 0
		for m := range f.members {
			if m.phase == finishing && m.tenant == tenant {
				n++
			}
		}
	}
	if !room {
		n += f.count[leaving] + len(f.idle)
	}
	return n
}

// take leases the warmest idle member, or a new place. It returns nil if there is neither, or
// if the Budget has no room for a new sandbox; t is as for Budget.take.
func (f *Fleet) take(tenant string, t *turn) *Lease {
	if i := f.warmest(tenant); i >= 0 {
		m := f.idle[i]
		m.tenant = tenant
		f.move(m, taken)
		return &Lease{f: f, m: m}
	}
	if len(f.members) >= f.cfg.Max || !f.cfg.Budget.take(f, t) {
		return nil
	}
	return &Lease{f: f, m: f.place(&member{tenant: tenant})}
}

// place adds m, which has no sandbox yet, to the members. The Budget has room for it.
func (f *Fleet) place(m *member) *member {
	m.done, m.broken = func() { f.done(m) }, make(chan struct{})
	f.members[m] = struct{}{}
	f.count[m.phase]++
	f.reapers.Add(1) // before Wait in Shutdown, because no place is added once closing is set
	return m
}

// move puts m into another phase.
func (f *Fleet) move(m *member, to phase) {
	if m.phase == idle {
		i := slices.Index(f.idle, m)
		f.idle = slices.Delete(f.idle, i, i+1)
	}
	f.count[m.phase]--
	f.count[to]++
	m.phase = to
	switch to {
	case idle:
		m.since = time.Now()
		f.idle = append(f.idle, m)
		f.serve()
		f.cfg.Budget.signal()
	case leaving:
		f.release(m)
	}
	f.noticeDrain()
}

// release gives the room of m back to the Budget.
func (f *Fleet) release(m *member) {
	if !m.closes {
		m.closes = true
		f.cfg.Budget.closes(f)
	}
}

// remove removes m from the members, which makes its place free.
func (f *Fleet) remove(m *member) {
	f.count[m.phase]--
	delete(f.members, m)
	if len(f.members) == 0 {
		f.empty = time.Now()
	}
	f.release(m)
	f.cfg.Budget.closed(f)
	f.serve()
	f.noticeDrain()
}

// giveBack takes back a lease that was not used.
func (f *Fleet) giveBack(m *member) {
	switch {
	case m.sandbox == nil:
		f.remove(m)
		f.reapers.Done()
	case m.phase == taken: // else the reaper has noticed that the sandbox died
		f.move(m, idle)
	}
}

// serve grants what has become free to the longest waiting request that can use it. There are
// no waiters once closing is set.
func (f *Fleet) serve() {
	for i, w := range f.waiters {
		if l := f.take(w.tenant, nil); l != nil {
			f.waiters = slices.Delete(f.waiters, i, i+1)
			w.grant <- grant{lease: l}
			return
		}
	}
	if len(f.members) < f.cfg.Max { // the Budget has no room: only a finishing member is worth waiting for
		for n := len(f.waiters); n > f.count[finishing]; n-- {
			f.waiters[n-1].grant <- grant{err: errAgain}
			f.waiters = f.waiters[:n-1]
		}
	}
	f.makeRoom()
}

// makeRoom closes the longest idle member, if a request waits that cannot use any idle member
// (INV-05) and for which no place is about to become free.
func (f *Fleet) makeRoom() {
	if len(f.waiters) <= f.count[leaving] || len(f.idle) == 0 {
		return
	}
	coming := f.count[leaving]
	for m := range f.members {
		if m.phase == warming && m.pause == 0 {
			coming++
		}
	}
	if len(f.waiters) > coming {
		f.discard(f.idle[0])
	}
}

// discard makes the reaper of an idle member close it.
func (f *Fleet) discard(m *member) {
	m.yields = true
	f.move(m, leaving)
	close(m.broken)
}

// noticeDrain closes f.drained when the last invocation of a closing fleet is Done.
func (f *Fleet) noticeDrain() {
	if f.closing && f.count[taken]+f.count[finishing] == 0 {
		f.onceDrained.Do(func() { close(f.drained) })
	}
}

// unqueue removes a waiter. It returns false if the waiter has been granted a lease.
func (f *Fleet) unqueue(w waiter) bool {
	i := slices.Index(f.waiters, w)
	if i < 0 {
		return false
	}
	f.waiters = slices.Delete(f.waiters, i, i+1)
	return true
}
