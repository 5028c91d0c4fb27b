// Package fleet keeps the sandboxes of one function: it gives each invocation a
// sandbox of its own, makes sandboxes up to a limit, uses the warmest first,
// and closes those that are dead or idle for long.
//
// A request first reserves a place ([Fleet.Reserve]) and then runs in it
// ([Lease.Invoke]), so that a caller knows at once whether it is accepted.
//
// All state is in [Fleet] under one mutex that is never held while anything
// waits. Each sandbox has one goroutine, its reaper (reaper.go), which alone
// closes it. An invocation starts no goroutine and wakes no reaper: the end of it is noted by
// who brings it.
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
	// ErrTooMany says that Max invocations wait for their answers already; the
	// front makes a 429 of it (INV-23).
	ErrTooMany = errors.New("every sandbox is busy")
	// ErrClosed says that Shutdown was called before a sandbox was asked to run the invocation.
	ErrClosed = errors.New("shut down")
	// ErrCutShort says that the fleet has ended while a sandbox may have run the invocation,
	// which must not run again.
	ErrCutShort = errors.New("cut short by the shutdown")
)

// patience is how long a request that could have a new sandbox waits for one that
// has given its answer and only has to come to Done (LC-41). A runtime asks for
// its next event well within it, and a client that sends one request after the
// other then stays on one warm sandbox instead of paying for a cold start. So long, too,
// a request waits before its client is watched.
const patience = 20 * time.Millisecond

// Sandbox is what the fleet needs of a sandbox. Its methods are called from
// several goroutines at once, Invoke by one at a time (of a sandbox that [Share] divides,
// by as many as it has places), Close exactly once.
type Sandbox interface {
	// ID names the sandbox in Stats and errors.
	ID() string
	// State is where in its life the sandbox is.
	State() rapid.State
	// Invoke is that of *rapid.Sandbox: it returns when the answer is complete, or
	// begins as a stream, and waits for an init that still runs. rapid.ErrDead and rapid.ErrBusy mean that
	// no process has seen the invocation.
	Invoke(context.Context, *rapid.Invocation) (*rapid.Result, error)
	// Ready is closed when the sandbox has initialized. It may never be.
	Ready() <-chan struct{}
	// Ended is closed when the sandbox has become rapid's Dead by itself.
	Ended() <-chan struct{}
	// Close ends the sandbox's life (a running invocation gets its answer, reason
	// spindown) and releases all it holds. The context carries the deadline.
	Close(context.Context) error
}

// Config is fixed for the life of a fleet.
type Config struct {
	// Max is the most sandboxes at once, those being made or closed included;
	// less than 1 means 1.
	Max int
	// New makes a sandbox whose life runs until its Close. It is called on the
	// goroutine of the invocation that needs it, several at once; the context
	// ends when a Shutdown no longer waits, not when the client leaves.
	New func(context.Context) (Sandbox, error)
	// Provisioned is how many of Max [Fleet.Provision] makes ahead of need, with
	// NewProvisioned, which is as New. They are replaced when they die.
	Provisioned    int
	NewProvisioned func(context.Context) (Sandbox, error)
	// IdleTimeout is how long a sandbox may be idle before it is closed; 0 means
	// for ever. Provisioned ones stay.
	IdleTimeout time.Duration
	// OnError is told what has no caller to tell: sandboxes that did not close
	// cleanly. It may be nil, and is called from several goroutines.
	OnError func(error)
}

// Fleet is the set of sandboxes of one function. Its methods are safe for
// concurrent use. Use New; end it with Shutdown.
type Fleet struct {
	cfg     Config
	life    context.Context    // ends when running invocations are no longer waited for
	endLife context.CancelFunc // ends life
	reapers sync.WaitGroup     // one for each member

	mu          sync.Mutex
	members     map[*member]struct{} // never more than Max
	count       [phases]int          // members by phase
	idle        []*member            // those in phase idle, the most recently used last
	waiters     []waiter             // longest waiting first
	closing     bool
	drained     chan struct{} // closed when closing and no member is taken or finishing
	onceDrained sync.Once
	errs        []error // of sandboxes closed by Shutdown
	cut         error   // why Shutdown did not wait for all invocations; nil if it did
}

// A phase is what the fleet does with a member.
type phase int

const (
	taken     phase = iota // leased: being made, or its invocation has no answer yet, or one that still streams
	finishing              // answered, not yet Done (LC-40)
	idle                   // free
	leaving                // being closed
	warming                // provisioned, and not initialized yet
	phases                 // the number of phases
)

// A waiter is a request that waits for a sandbox of its tenant.
type waiter struct {
	tenant string
	grant  chan *Lease // capacity 1; nil is sent when the fleet closes
}

// A member is one sandbox, or the place of one that is being made.
type member struct {
	provisioned bool
	pause       time.Duration // before it was made
	sandbox     Sandbox       // nil until made; then fixed
	done        func()        // notes the end of an answered invocation
	broken      chan struct{} // closed by the lease when the sandbox refused its invocation

	// Guarded by Fleet.mu.
	phase       phase
	yields      bool          // it makes room for another tenant, or others: nothing is wrong with it
	tenant      string        // whose sandbox it is for its life (INV-05); "" is nobody's yet
	stream      *rapid.Stream // the answer of a taken member, as long as it streams
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
		members: map[*member]struct{}{}, drained: make(chan struct{}),
	}
}

// Reserve returns the right to one invocation: on the most recently used idle
// sandbox, else on a new one. It does not make the new one and so returns at once,
// with one exception: a sandbox that has answered and is about to be free is waited
// for, briefly if there is room for a new one, else until it is free or ctx ends.
// At most one request waits for each such sandbox; any other request above
// Max gets ErrTooMany at once.
//
// A sandbox serves one tenant for its life (INV-05); without tenant isolation tenant
// is always "". At Max an idle sandbox of another tenant makes room.
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
	soon := f.soon(tenant, room) // how many requests may wait
	if warm || room && len(f.waiters) >= soon {
		l := f.take(tenant)
		f.mu.Unlock()
		return l, nil
	}
	if len(f.waiters) >= soon {
		f.mu.Unlock()
		return nil, ErrTooMany
	}
	w := waiter{tenant, make(chan *Lease, 1)}
	f.waiters = append(f.waiters, w)
	if !room {
		f.makeRoom()
	}
	f.mu.Unlock()
	return f.wait(ctx, w)
}

// Invoke is Reserve followed by the lease's Invoke. The context covers the wait for
// a sandbox only.
func (f *Fleet) Invoke(ctx context.Context, inv *rapid.Invocation) (*rapid.Result, error) {
	l, err := f.Reserve(ctx, inv.TenantID)
	if err != nil {
		return nil, err
	}
	return l.Invoke(inv)
}

// wait waits for w to be granted. After patience it takes a new place if there is room, and
// begins to ask for the end of ctx: to watch a client costs more than most waits.
func (f *Fleet) wait(ctx context.Context, w waiter) (*Lease, error) {
	enough := time.NewTimer(patience)
	defer enough.Stop()
	var gone <-chan struct{}
	for {
		select {
		case l := <-w.grant:
			if l == nil {
				return nil, ErrClosed
			}
			return l, nil
		case <-enough.C:
			f.mu.Lock()
			if len(f.members) < f.cfg.Max && f.unqueue(w) {
				l := f.take(w.tenant)
				f.mu.Unlock()
				return l, nil
			}
			f.mu.Unlock() // there was no room, or it went to others: wait on
			gone = ctx.Done()
		case <-gone:
			f.mu.Lock()
			if !f.unqueue(w) {
				if l := <-w.grant; l != nil {
					f.giveBack(l.m)
				}
			}
			f.mu.Unlock()
			return nil, fmt.Errorf("wait for a sandbox: %w", ctx.Err())
		}
	}
}

// The functions below are called with f.mu held.

// finalizeStreams finds the members whose answer has streamed to its end: a client that has all of
// it may ask again at once.
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

// streamed notes that the stream of m has ended.
func (f *Fleet) streamed(m *member) {
	m.stream = nil
	if m.phase == taken {
		f.move(m, finishing)
	}
}

// warmest is the index of the idle member that tenant used last, else of one that is
// nobody's yet, or -1.
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

// soon counts the members that tenant may wait for: those that will be free in a
// moment, and without room also those whose place will be.
func (f *Fleet) soon(tenant string, room bool) int {
	n := f.count[finishing]
	if tenant != "" && room { // another tenant's is of no use
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

// take leases the warmest idle member, or a new place. There must be one.
func (f *Fleet) take(tenant string) *Lease {
	if i := f.warmest(tenant); i >= 0 {
		m := f.idle[i]
		m.tenant = tenant
		f.move(m, taken)
		return &Lease{f: f, m: m}
	}
	return &Lease{f: f, m: f.place(&member{tenant: tenant})}
}

// place makes m a member that has no sandbox yet.
func (f *Fleet) place(m *member) *member {
	m.done, m.broken = func() { f.done(m) }, make(chan struct{})
	f.members[m] = struct{}{}
	f.count[m.phase]++
	f.reapers.Add(1) // before Shutdown's Wait: not taken once closing
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
	if to == idle {
		m.since = time.Now()
		f.idle = append(f.idle, m)
		f.serve()
	}
	f.noticeDrain()
}

// remove forgets m, whose place is free again.
func (f *Fleet) remove(m *member) {
	f.count[m.phase]--
	delete(f.members, m)
	f.serve()
	f.noticeDrain()
}

// giveBack takes back a lease that nobody used.
func (f *Fleet) giveBack(m *member) {
	switch {
	case m.sandbox == nil:
		f.remove(m)
		f.reapers.Done()
	case m.phase == taken: // else its reaper has found it dead
		f.move(m, idle)
	}
}

// serve gives what became free to who waits longest for it. Nobody waits once closing.
func (f *Fleet) serve() {
	for i, w := range f.waiters {
		if f.available(w.tenant) {
			f.waiters = slices.Delete(f.waiters, i, i+1)
			w.grant <- f.take(w.tenant)
			return
		}
	}
	f.makeRoom()
}

// makeRoom gives up the member that is idle longest if somebody waits who can use none
// of them (INV-05), and for whom none is about to come.
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

// discard has the reaper of an idle member close it.
func (f *Fleet) discard(m *member) {
	m.yields = true
	f.move(m, leaving)
	close(m.broken)
}

// noticeDrain closes drained when the last invocation of a closing fleet is Done.
func (f *Fleet) noticeDrain() {
	if f.closing && f.count[taken]+f.count[finishing] == 0 {
		f.onceDrained.Do(func() { close(f.drained) })
	}
}

// available tells whether take may be called.
func (f *Fleet) available(tenant string) bool {
	return len(f.members) < f.cfg.Max || f.warmest(tenant) >= 0
}

// unqueue withdraws a waiter; false means that it has been granted.
func (f *Fleet) unqueue(w waiter) bool {
	i := slices.Index(f.waiters, w)
	if i < 0 {
		return false
	}
	f.waiters = slices.Delete(f.waiters, i, i+1)
	return true
}
