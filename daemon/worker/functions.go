package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// emulatorName is the name under which AWS's emulator serves its function (INV-01). If the
// worker serves a single function, that function has this name too.
const emulatorName = "function"

// functions holds the functions that the worker serves: for each name the revision that
// takes invocations, and beside them those that drain or provision. Without a control
// process it has those that were put; with one it learns of those that are invoked (learn.go).
// It implements invoke.Functions. Methods are safe for concurrent use.
type functions struct {
	w       *worker
	forced  <-chan struct{} // closed when the daemon must stop at once
	control control         // nil without a control process
	budget  *fleet.Budget   // of all functions; nil without a control process
	life    context.Context // ends at the shutdown
	end     context.CancelFunc
	start   starter // of sandboxes; replaced in tests

	serving     atomic.Pointer[map[string]*served] // by key (keyOf); a stored map is never modified
	credentials atomic.Pointer[rapid.Credentials]  // of new sandboxes; never nil

	mu       sync.Mutex // guards the fields below, and stores to serving
	closing  bool
	beside   map[*served]struct{}     // that drain or provision
	learning map[string]*lesson       // by key
	users    map[uint64]int           // how many served there are of a revision, by its number; only with control
	retiring map[uint64]chan struct{} // revisions that root is asked to forget; closed when it has
	busy     sync.WaitGroup           // calls of put, drains and lessons
	unclean  error                    // of the first drain that failed
}

// served is one revision with its sandboxes.
type served struct {
	rev      *function.Revision
	reserved int // most invocations at once; -1 if nothing is reserved
	factory  *factory
	fleet    *fleet.Fleet
}

// newFunctions returns functions without any. control is nil if there is no control process.
func newFunctions(w *worker, forced <-chan struct{}, control control) *functions {
	f := &functions{w: w, forced: forced, control: control, beside: map[*served]struct{}{},
		learning: map[string]*lesson{}, users: map[uint64]int{}, retiring: map[uint64]chan struct{}{}}
	f.life, f.end = context.WithCancel(context.Background())
	f.start = (*factory).start
	if control != nil {
		f.budget = fleet.NewBudget(w.config.Concurrency, w.memoryForAll())
	}
	f.serving.Store(&map[string]*served{})
	first := rapid.Credentials(w.config.Credentials)
	f.credentials.Store(&first)
	return f
}

// put makes rev the revision that serves its function. Requests that arrive after put has
// returned run in sandboxes of rev; requests accepted before run in those of the previous
// revision, which drains. If rev has provisioned sandboxes, put first waits until they have
// initialized. If that fails, put returns the error and changes nothing, and those that have
// been made drain.
func (f *functions) put(ctx context.Context, rev *function.Revision) error {
	return f.swap(ctx, rev.Name, f.newServed(rev, -1), nil)
}

// swap makes s serve key, as put does. If old is not nil and does not serve key any more, swap
// changes nothing.
func (f *functions) swap(ctx context.Context, key string, s, old *served) error {
	f.mu.Lock()
	switch {
	case f.closing:
		f.mu.Unlock()
		return fleet.ErrClosed
	case old != nil && (*f.serving.Load())[key] != old:
		f.mu.Unlock()
		return nil
	}
	f.beside[s] = struct{}{} // ps shows its sandboxes
	f.use(s)
	f.busy.Add(1)
	f.mu.Unlock()
	defer f.busy.Done()
	var err error
	if s.rev.Provisioned > 0 {
		err = s.fleet.Provision(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.closing {
		err = fleet.ErrClosed
	}
	if err != nil || old != nil && (*f.serving.Load())[key] != old {
		f.drain(s)
		return err
	}
	delete(f.beside, s)
	f.change(map[string]*served{key: s})
	return nil
}

// remove stops serving the function with that name. Its revision drains.
func (f *functions) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closing { // else shutdown does it
		f.change(map[string]*served{name: nil})
	}
}

// change makes others serve those keys, or nothing where next has nil, and starts draining the
// previous revisions. The caller holds f.mu.
func (f *functions) change(next map[string]*served) {
	now := maps.Clone(*f.serving.Load())
	var old []*served
	for key, s := range next {
		if now[key] != nil {
			old = append(old, now[key])
		}
		if s != nil {
			now[key] = s
		} else {
			delete(now, key)
		}
	}
	f.serving.Store(&now)
	for _, s := range old {
		f.drain(s)
	}
}

// drain shuts down the sandboxes of s in the background. The caller holds f.mu.
func (f *functions) drain(s *served) {
	f.beside[s] = struct{}{}
	f.busy.Go(func() {
		err := s.fleet.Shutdown(f.w.drain)
		if err != nil {
			f.w.log.WithError(err).WithField("function", s.rev.Name).Error("a revision did not shut down cleanly")
		}
		f.mu.Lock()
		delete(f.beside, s)
		if f.unclean == nil {
			f.unclean = err
		}
		f.unuse(s)
		f.mu.Unlock()
	})
}

// newServed makes a served of rev. reserved is the most invocations at once, -1 if nothing is
// reserved.
func (f *functions) newServed(rev *function.Revision, reserved int) *served {
	s := &served{rev: rev, reserved: reserved, factory: newFactory(f.w, rev, *f.credentials.Load(), f.forced, f.control)}
	s.factory.starter = f.start
	places := rev.Concurrency
	if reserved > 0 {
		places = reserved
	}
	if places == 0 {
		places = f.w.config.Concurrency
	}
	newSandbox := s.factory.make
	if rev.Managed > 0 {
		places, newSandbox = places*rev.Managed, fleet.Share(rev.Managed, newSandbox)
	}
	s.fleet = fleet.New(fleet.Config{
		Max:         places,
		New:         newSandbox,
		Provisioned: rev.Provisioned, NewProvisioned: s.factory.provision,
		IdleTimeout: f.w.config.IdleTimeout,
		Budget:      f.budget, Memory: uint64(rev.MemoryMB) << 20,
		OnError: func(err error) { f.w.log.WithError(err).Error("sandbox did not end cleanly") },
	})
	return s
}

// find returns the revision that serves key, or nil.
func (f *functions) find(key string) *served {
	all := *f.serving.Load()
	if s := all[key]; s != nil || key != emulatorName || len(all) != 1 || f.control != nil {
		return s
	}
	for _, s := range all {
		return s
	}
	return nil
}

// lookup returns the revision that serves a function. With control it learns of a function
// that it does not know, which may last until ctx ends.
func (f *functions) lookup(ctx context.Context, name, qualifier string) (*served, error) {
	if f.control != nil {
		key := keyOf(name, qualifier)
		if s := f.find(key); s != nil {
			return s, nil
		}
		return f.learn(ctx, key, name, qualifier)
	}
	s := f.find(name)
	if s == nil || qualifier != "" && qualifier != function.Latest && qualifier != s.rev.Version { // INV-06
		return nil, invoke.ErrNoFunction
	}
	return s, nil
}

// keyOf returns the key under which a version of a function is served.
func keyOf(name, qualifier string) string {
	if qualifier == "" || qualifier == function.Latest {
		return name
	}
	return name + ":" + qualifier
}

// all returns every revision that may have sandboxes.
func (f *functions) all() []*served {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*served
	for _, s := range *f.serving.Load() {
		list = append(list, s)
	}
	for s := range f.beside {
		list = append(list, s)
	}
	return list
}

// Find implements invoke.Functions.
func (f *functions) Find(ctx context.Context, name, qualifier string) (invoke.Function, error) {
	s, err := f.lookup(ctx, name, qualifier)
	if err != nil {
		return invoke.Function{}, err
	}
	return invoke.Function{ARN: s.rev.ARN, Version: s.rev.Version, Tenants: s.rev.TenantIsolation}, nil
}

// Lease implements invoke.Functions.
func (f *functions) Lease(ctx context.Context, name, qualifier, tenant string) (invoke.Lease, error) {
	for {
		s, err := f.lookup(ctx, name, qualifier)
		if err != nil {
			return nil, err
		}
		if s.reserved == 0 {
			return nil, invoke.ErrTooMany
		}
		l, err := s.fleet.Reserve(ctx, tenant)
		switch {
		case err == nil:
			return &lease{functions: f, name: name, qualifier: qualifier, tenant: tenant, served: s, lease: l}, nil
		case errors.Is(err, fleet.ErrClosed) && f.isOver(s, keyOf(name, qualifier)):
			return nil, invoke.ErrClosed
		case errors.Is(err, fleet.ErrClosed):
			continue // another revision has replaced s
		case errors.Is(err, fleet.ErrTooMany) && (f.control == nil || s.reserved > 0):
			return nil, invoke.ErrTooMany
		case errors.Is(err, fleet.ErrTooMany), errors.Is(err, fleet.ErrNoRoom):
			return nil, invoke.ErrAllBusy
		case errors.Is(err, fleet.ErrTooLarge):
			return nil, &invoke.Fault{Status: http.StatusBadRequest, Type: "InvalidParameterValueException", Message: fmt.Sprintf(
				"The function's MemorySize, %d MB, exceeds the memory for all functions, %d MB. Lower the one or raise the other.",
				s.rev.MemoryMB, f.w.memoryForAll()>>20)}
		}
		return nil, err
	}
}

// isOver reports whether s has ended and nothing will replace it.
func (f *functions) isOver(s *served, key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closing || f.find(key) == s
}

// lease is the right to one invocation of a revision. It implements invoke.Lease.
type lease struct {
	functions               *functions
	name, qualifier, tenant string
	served                  *served
	lease                   *fleet.Lease
}

// retryTime limits the wait for a sandbox of the next revision. The context of the request
// does not apply any more: it covered the wait for the first lease.
const retryTime = time.Minute

// maxTries is how often an invocation is tried with a revision that root does not know.
const maxTries = 3

// Invoke implements invoke.Lease. If the revision shuts down before a sandbox has received
// the invocation, Invoke runs it in the revision that replaced it.
func (l *lease) Invoke(inv *rapid.Invocation) (*rapid.Result, error) {
	for tries := 1; ; tries++ {
		res, err := l.lease.Invoke(inv)
		switch {
		case errors.Is(err, fleet.ErrCutShort):
			return nil, fmt.Errorf("%w: %w", invoke.ErrClosed, err)
		case errors.Is(err, message.ErrUnknownRevision) && l.functions.control != nil && tries < maxTries:
			l.functions.forget(l.served, keyOf(l.name, l.qualifier)) // control registers it once more
		case !errors.Is(err, fleet.ErrClosed):
			return res, err
		}
		if l.functions.isOver(l.served, keyOf(l.name, l.qualifier)) {
			return nil, fmt.Errorf("%w: %w", invoke.ErrClosed, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), retryTime)
		next, err := l.functions.Lease(ctx, l.name, l.qualifier, l.tenant)
		cancel()
		if err != nil {
			return nil, err
		}
		*l = *next.(*lease)
	}
}

// Version implements invoke.Lease.
func (l *lease) Version() string { return l.served.rev.Version }

// shutdown accepts no more invocations and shuts down the sandboxes of all revisions, as
// fleet.Fleet.Shutdown does. It returns the errors of that, and the first of earlier drains.
func (f *functions) shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.closing = true
	f.mu.Unlock()
	f.end()
	var (
		ends sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, s := range *f.serving.Load() {
		ends.Go(func() {
			if err := s.fleet.Shutdown(ctx); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	ends.Wait()
	f.busy.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(append(errs, f.unclean)...)
}
