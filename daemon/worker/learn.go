package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
)

// maxKnown is how many functions the worker knows at once. The longest unused one makes room.
const maxKnown = 4096

// Time limits of what the worker asks control for.
const (
	learnTime  = 2 * time.Minute // of a lesson, in which root may have to unpack the code
	retireTime = 10 * time.Second
)

// control is what functions ask of others about functions that they do not know.
type control interface {
	// resolve returns the revision that serves a function from now on. Root knows it. The error
	// is a *invoke.Fault.
	resolve(ctx context.Context, name, qualifier string) (*message.Resolved, error)
	// environment returns the variables of a revision. The error is a *invoke.Fault.
	environment(ctx context.Context, number uint64) (map[string]string, error)
	// retire has root forget a revision.
	retire(ctx context.Context, number uint64) error
}

// A lesson learns of one function. All requests that need the function wait for the same
// lesson.
type lesson struct {
	over   chan struct{} // closed when the fields below are valid
	served *served
	err    error

	// Guarded by functions.mu.
	stale   bool     // the function has changed since control was asked
	retired []uint64 // revisions that root may have forgotten since then
}

// learn asks control for a function, and makes what it answers serve key.
func (f *functions) learn(ctx context.Context, key, name, qualifier string) (*served, error) {
	if !function.NameForm.MatchString(name) {
		return nil, invoke.ErrNoFunction
	}
	f.mu.Lock()
	if s := f.find(key); s != nil { // somebody else has learned of it meanwhile
		f.mu.Unlock()
		return s, nil
	}
	if f.closing {
		f.mu.Unlock()
		return nil, invoke.ErrClosed
	}
	l := f.learning[key]
	if l == nil {
		l = &lesson{over: make(chan struct{})}
		f.learning[key] = l
		f.busy.Go(func() { f.teach(l, key, name, qualifier) })
	}
	f.mu.Unlock()
	select {
	case <-l.over:
		return l.served, l.err
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to learn of function %s: %w", name, ctx.Err())
	}
}

// teach asks until the answer is of use, and ends the lesson.
func (f *functions) teach(l *lesson, key, name, qualifier string) {
	ctx, cancel := context.WithTimeout(f.life, learnTime)
	defer cancel()
	defer close(l.over)
	for {
		f.mu.Lock()
		l.stale, l.retired = false, nil
		f.mu.Unlock()
		answer, err := f.control.resolve(ctx, name, qualifier)
		var s *served
		if err == nil {
			s, err = f.newLearned(answer, name)
		}
		if f.conclude(ctx, l, key, s, err) {
			return
		}
		if s != nil {
			f.discard(s.rev.ID.Number)
		}
	}
}

// newLearned makes a served of what control has answered.
func (f *functions) newLearned(r *message.Resolved, name string) (*served, error) {
	rev := &r.Revision
	if _, known := f.w.config.Networks[rev.Network]; rev.Name != name || !known {
		return nil, fmt.Errorf("the control process answers with function %q in network %q when asked for %q", rev.Name, rev.Network, name)
	}
	s := f.newServed(rev, r.Reserved)
	s.factory.role = r.Credentials
	return s, nil
}

// conclude ends a lesson with what was answered: s or err. If that is out of date, it returns
// false: control must be asked again.
func (f *functions) conclude(ctx context.Context, l *lesson, key string, s *served, err error) (over bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closing:
		err = invoke.ErrClosed
	case ctx.Err() != nil:
		err = errControl
	case l.stale, err == nil && f.mayBeForgotten(l, s.rev.ID.Number):
		return false
	case err == nil && !f.makeRoom():
		err = invoke.ErrAllBusy
	}
	if err == nil {
		l.served = s
		f.use(s)
		f.change(map[string]*served{key: s})
	} else if s != nil && !f.closing && f.users[s.rev.ID.Number] == 0 && f.retiring[s.rev.ID.Number] == nil {
		f.retire(s.rev.ID.Number)
	}
	l.err = err
	delete(f.learning, key)
	return true
}

// mayBeForgotten reports whether root was asked to forget a revision when control had it
// registered for l, or may have been. The caller holds f.mu.
func (f *functions) mayBeForgotten(l *lesson, number uint64) bool {
	return f.retiring[number] != nil || slices.Contains(l.retired, number)
}

// discard has root forget a revision that control has registered in vain, unless it serves.
func (f *functions) discard(number uint64) {
	for {
		f.mu.Lock()
		earlier := f.retiring[number]
		if earlier == nil {
			if f.users[number] == 0 {
				earlier = f.retire(number)
			}
			f.mu.Unlock()
			if earlier != nil {
				<-earlier
			}
			return
		}
		f.mu.Unlock()
		<-earlier // it may have been before the registration
	}
}

// makeRoom drops the longest unused function if there are as many as there may be. It returns
// false if all have sandboxes. The caller holds f.mu.
func (f *functions) makeRoom() bool {
	all := *f.serving.Load()
	if len(all) < maxKnown {
		return true
	}
	oldest, key := time.Time{}, ""
	for k, s := range all {
		if since, unused := s.fleet.Unused(); unused && (key == "" || since.Before(oldest)) {
			oldest, key = since, k
		}
	}
	if key != "" {
		f.change(map[string]*served{key: nil})
	}
	return key != ""
}

// dropUnused forgets functions that have had no sandbox for as long as idle. Without control
// it forgets none.
func (f *functions) dropUnused(idle time.Duration) {
	if f.control == nil || idle == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	drop := map[string]*served{}
	for key, s := range *f.serving.Load() {
		if since, unused := s.fleet.Unused(); unused && time.Since(since) >= idle {
			drop[key] = nil
		}
	}
	if len(drop) > 0 && !f.closing {
		f.change(drop)
	}
}

// forget drops s, of which root knows no revision, if it still serves key.
func (f *functions) forget(s *served, key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if (*f.serving.Load())[key] == s && !f.closing {
		f.change(map[string]*served{key: nil})
	}
}

// switchTo makes sure that requests that arrive from now on run in no revision of a function
// that is lower than the one that m has. What control has answered before does not count any
// more.
func (f *functions) switchTo(m message.Switch) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, l := range f.learning {
		if nameOf(key) == m.Name {
			l.stale = true
		}
	}
	drop := map[string]*served{}
	for key, s := range *f.serving.Load() {
		if nameOf(key) == m.Name && (m.Gone || key == m.Name && s.rev.ID.Number < m.Number) {
			drop[key] = nil
		}
	}
	if len(drop) > 0 && !f.closing {
		f.change(drop)
	}
}

// nameOf is the function of a key.
func nameOf(key string) string {
	name, _, _ := strings.Cut(key, ":")
	return name
}

// use records that s exists. The caller holds f.mu.
func (f *functions) use(s *served) {
	if f.control != nil {
		f.users[s.rev.ID.Number]++
	}
}

// unuse records that s has ended. When that was the last one of its revision, root forgets it.
// The caller holds f.mu.
func (f *functions) unuse(s *served) {
	if f.control == nil {
		return
	}
	n := s.rev.ID.Number
	f.users[n]--
	if f.users[n] == 0 {
		delete(f.users, n)
		if !f.closing { // else everything ends
			f.retire(n)
		}
	}
}

// retire has root forget a revision. It returns a channel that is closed when that is done.
// The caller holds f.mu.
func (f *functions) retire(number uint64) chan struct{} {
	over := make(chan struct{})
	f.retiring[number] = over
	f.busy.Go(func() {
		ctx, cancel := context.WithTimeout(f.life, retireTime)
		defer cancel()
		err := f.control.retire(ctx, number) // if it fails, root keeps what control may register again
		if err != nil && !errors.Is(err, message.ErrUnknownRevision) && f.life.Err() == nil {
			f.w.log.WithError(err).WithField("revision", number).Warn("the supervisor keeps a revision that is not needed any more")
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.retiring, number)
		for _, l := range f.learning {
			l.retired = append(l.retired, number)
		}
		close(over)
	})
	return over
}
