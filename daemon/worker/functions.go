package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// emulatorName is the name under which AWS's emulator serves its function (INV-01). If the
// worker serves a single function, that function has this name too.
const emulatorName = "function"

// functions holds the functions that the worker serves: for each name the revision that
// takes invocations, and beside them those that drain or provision. It implements
// invoke.Functions. Methods are safe for concurrent use.
type functions struct {
	w      *worker
	forced <-chan struct{} // closed when the daemon must stop at once

	serving     atomic.Pointer[map[string]*served] // by name; a stored map is never modified
	credentials atomic.Pointer[rapid.Credentials]  // of new sandboxes; never nil

	mu      sync.Mutex // guards the fields below, and stores to serving
	closing bool
	beside  map[*served]struct{} // that drain or provision
	busy    sync.WaitGroup       // calls of put, and drains
	unclean error                // of the first drain that failed
}

// served is one revision with its sandboxes.
type served struct {
	rev     *function.Revision
	factory *factory
	fleet   *fleet.Fleet
}

func newFunctions(w *worker, forced <-chan struct{}) *functions {
	f := &functions{w: w, forced: forced, beside: map[*served]struct{}{}}
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
	s := f.newServed(rev)
	f.mu.Lock()
	if f.closing {
		f.mu.Unlock()
		return fleet.ErrClosed
	}
	f.beside[s] = struct{}{} // ps shows its sandboxes
	f.busy.Add(1)
	f.mu.Unlock()
	defer f.busy.Done()
	var err error
	if rev.Provisioned > 0 {
		err = s.fleet.Provision(ctx)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.closing {
		err = fleet.ErrClosed
	}
	if err != nil {
		f.drain(s)
		return err
	}
	delete(f.beside, s)
	f.change(rev.Name, s)
	return nil
}

// remove stops serving the function with that name. Its revision drains.
func (f *functions) remove(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closing { // else shutdown does it
		f.change(name, nil)
	}
}

// change makes s serve name, or nothing if s is nil, and starts draining the previous
// revision. The caller holds f.mu.
func (f *functions) change(name string, s *served) {
	now := maps.Clone(*f.serving.Load())
	old := now[name]
	if s != nil {
		now[name] = s
	} else {
		delete(now, name)
	}
	f.serving.Store(&now)
	if old == nil {
		return
	}
	f.drain(old)
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
		f.mu.Unlock()
	})
}

func (f *functions) newServed(rev *function.Revision) *served {
	s := &served{rev: rev, factory: newFactory(f.w, rev, *f.credentials.Load(), f.forced)}
	places := rev.Concurrency
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
		OnError:     func(err error) { f.w.log.WithError(err).Error("sandbox did not end cleanly") },
	})
	return s
}

// find returns the revision that serves the function with that name, or nil.
func (f *functions) find(name string) *served {
	all := *f.serving.Load()
	if s := all[name]; s != nil || name != emulatorName || len(all) != 1 {
		return s
	}
	for _, s := range all {
		return s
	}
	return nil
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
func (f *functions) Find(name string) (invoke.Function, bool) {
	s := f.find(name)
	if s == nil {
		return invoke.Function{}, false
	}
	return invoke.Function{ARN: s.rev.ARN, Version: s.rev.Version, Tenants: s.rev.TenantIsolation}, true
}

// Lease implements invoke.Functions.
func (f *functions) Lease(ctx context.Context, name, tenant string) (invoke.Lease, error) {
	for {
		s := f.find(name)
		if s == nil {
			return nil, invoke.ErrNoFunction
		}
		l, err := s.fleet.Reserve(ctx, tenant)
		switch {
		case err == nil:
			return &lease{functions: f, name: name, tenant: tenant, served: s, lease: l}, nil
		case errors.Is(err, fleet.ErrClosed) && f.find(name) != s:
			continue // another revision has replaced s
		case errors.Is(err, fleet.ErrClosed):
			return nil, invoke.ErrClosed
		case errors.Is(err, fleet.ErrTooMany):
			return nil, invoke.ErrTooMany
		}
		return nil, err
	}
}

// lease is the right to one invocation of a revision. It implements invoke.Lease.
type lease struct {
	functions    *functions
	name, tenant string
	served       *served
	lease        *fleet.Lease
}

// retryTime limits the wait for a sandbox of the next revision. The context of the request
// does not apply any more: it covered the wait for the first lease.
const retryTime = time.Minute

// Invoke implements invoke.Lease. If the revision shuts down before a sandbox has received
// the invocation, Invoke runs it in the revision that replaced it.
func (l *lease) Invoke(inv *rapid.Invocation) (*rapid.Result, error) {
	for {
		res, err := l.lease.Invoke(inv)
		if errors.Is(err, fleet.ErrCutShort) {
			return nil, fmt.Errorf("%w: %w", invoke.ErrClosed, err)
		}
		if !errors.Is(err, fleet.ErrClosed) {
			return res, err
		}
		if l.functions.find(l.name) == l.served || l.functions.find(l.name) == nil {
			return nil, fmt.Errorf("%w: %w", invoke.ErrClosed, err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), retryTime)
		next, err := l.functions.Lease(ctx, l.name, l.tenant)
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
