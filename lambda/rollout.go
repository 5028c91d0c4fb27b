package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/function"
)

// Deployer makes revisions known to the processes that run them. Its operations can be
// repeated. An error that is not a [*CodeError] passes: the operation is tried again.
type Deployer interface {
	// Register returns when root knows a revision and has its files.
	Register(ctx context.Context, r Revision) error
	// Switch returns when requests that arrive from now on run in no revision of a function
	// that is lower than number. gone says that there is no such function any more.
	Switch(ctx context.Context, name string, number uint64, gone bool) error
	// Release says that no request will be given to a revision any more. Root forgets it when
	// the worker has no sandbox of it.
	Release(ctx context.Context, id function.ID)
}

// Revision is what runs of a function: data for root, the worker and invocations.
type Revision struct {
	ID       function.ID
	Version  string
	ARN      string            // unqualified
	Settings function.Settings // without Env
	Role     string
	Code     [32]byte // digest of the zip
	ImageURI string   // with the digest; "" for a zip
	Image    *function.Image
}

// CodeError reports that the code of a function cannot be used.
type CodeError struct {
	Fault  CodeFault
	Detail string // for the operator
}

// CodeFault says what is wrong with code.
type CodeFault int

// What can be wrong with code.
const (
	NotAZip      CodeFault = iota // or a zip that cannot be extracted
	TooLarge                      // more than fits when it is extracted
	DamagedCode                   // not what was uploaded
	UnusableCode                  // Detail is for the client too
)

// Error returns what is wrong.
func (e *CodeError) Error() string { return "the code cannot be used: " + e.Detail }

// maxUnzipped is the most that a zip may have when it is extracted, as on Lambda.
const maxUnzipped = 262_144_000

// refusal returns the error as AWS puts it.
func (e *CodeError) refusal() *Error {
	switch e.Fault {
	case NotAZip:
		return badParameter("Could not unzip uploaded file. Please check your file, then try to upload again.")
	case TooLarge:
		return badParameter("Unzipped size must be smaller than %d bytes", maxUnzipped)
	case DamagedCode:
		return failed(e)
	}
	return badParameter("The code cannot be used: %s", e.Detail)
}

// Rollout brings changes of functions into effect, one after another for each function. A
// change is in the store before it begins, so that one which was interrupted is done again:
//
//	commit:   the function is Pending, or its update InProgress   (the caller of Begin)
//	register: root knows the new revision
//	announce: Current answers the new revision
//	switch:   no request that arrives runs an older one
//	commit:   the function is Active, its update Successful
//
// So a request that arrives after Successful can be read runs the new code, one that arrives
// before InProgress can be read the old code, and one between them either.
type Rollout struct {
	ctx      context.Context
	cfg      *Config
	revision func(*record, *definition) Revision

	mu        sync.Mutex
	running   map[string]*run
	announced map[string]uint64 // functions whose next revision runs already
}

// A run is the work on one function.
type run struct {
	again bool          // there is a task that came after the work had begun
	done  chan struct{} // closed when all tasks are done
}

func newRollout(ctx context.Context, cfg *Config, revision func(*record, *definition) Revision) *Rollout {
	return &Rollout{ctx: ctx, cfg: cfg, revision: revision, running: map[string]*run{}, announced: map[string]uint64{}}
}

// Resume continues all that is left to do.
func (r *Rollout) Resume(ctx context.Context) error {
	const page = 1000
	for after := ""; ; {
		var entries []Entry
		err := r.cfg.Store.View(ctx, func(tx Reader) (err error) {
			entries, err = tx.List(rolloutKeys, after, page)
			return err
		})
		if err != nil {
			return fmt.Errorf("find interrupted updates: %w", err)
		}
		for _, e := range entries {
			r.Begin(strings.TrimPrefix(e.Key, rolloutKeys))
			after = e.Key
		}
		if len(entries) < page {
			return nil
		}
	}
}

// Begin brings the tasks of a function that are in the store into effect. The channel is closed
// when they are, or when the context of the rollout has ended.
func (r *Rollout) Begin(name string) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.running[name]; w != nil {
		w.again = true
		return w.done
	}
	w := &run{done: make(chan struct{})}
	r.running[name] = w
	go r.work(name, w)
	return w.done
}

// work does the tasks of a function.
func (r *Rollout) work(name string, w *run) {
	defer close(w.done)
	pause := firstPause
	for {
		err := r.step(name)
		if err == nil {
			pause = firstPause
			r.mu.Lock()
			if !w.again {
				delete(r.running, name)
				r.mu.Unlock()
				return
			}
			w.again = false
			r.mu.Unlock()
			continue
		}
		if r.ctx.Err() == nil {
			r.cfg.OnError(fmt.Errorf("update of function %s: %w; trying again in %v", name, err, pause))
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, lastPause)
		case <-r.ctx.Done():
			r.mu.Lock()
			delete(r.running, name)
			r.mu.Unlock()
			return
		}
	}
}

// Pauses after errors that pass.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

// step does the task of a function, if there is one.
func (r *Rollout) step(name string) error {
	var t task
	var rec *record
	var found bool
	err := r.cfg.Store.View(r.ctx, func(tx Reader) (err error) {
		t = task{}
		if found, err = get(tx, rolloutKeys+name, &t); err != nil || !found {
			return err
		}
		rec, err = load(tx, name)
		return err
	})
	switch {
	case err != nil || !found:
		return err
	case t.Gone:
		if err := r.cfg.Deployer.Switch(r.ctx, name, t.Number, true); err != nil {
			return err
		}
		return r.finish(name, t, nil)
	case rec == nil || rec.Next == nil || rec.Next.Number != t.Number: // a damaged store
		return fmt.Errorf("the store has the task %d of function %s, but not its revision", t.Number, name)
	}
	if err := r.cfg.Deployer.Register(r.ctx, r.revision(rec, rec.Next)); err != nil {
		if bad, ok := errors.AsType[*CodeError](err); ok {
			return r.finish(name, t, bad)
		}
		return err
	}
	r.announce(name, t.Number)
	if err := r.cfg.Deployer.Switch(r.ctx, name, t.Number, false); err != nil {
		return err
	}
	return r.finish(name, t, nil)
}

// announce makes a revision the one that requests run, before the store says so.
func (r *Rollout) announce(name string, number uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.announced[name] = number
}

// announcedOf returns the revision of a function that is announced, 0 if none is. It must be
// read before the store: a revision that is announced afterwards is not yet the function's
// current one in what was read.
func (r *Rollout) announcedOf(name string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.announced[name]
}

// finish commits the end of a task, unless another has taken its place. bad is why it failed.
func (r *Rollout) finish(name string, t task, bad *CodeError) error {
	var released []uint64
	err := r.cfg.Store.Update(r.ctx, func(tx Tx) error {
		released = nil
		var now task
		if found, err := get(tx, rolloutKeys+name, &now); err != nil || !found || now != t {
			return err
		}
		if err := tx.Delete(rolloutKeys + name); err != nil || t.Gone {
			return err
		}
		rec, err := load(tx, name)
		if err != nil {
			return err
		}
		if released, err = r.settle(tx, rec, bad); err != nil {
			return err
		}
		if err := put(tx, functionKeys+name, rec); err != nil {
			return err
		}
		return r.forgetOld(tx)
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	if r.announced[name] == t.Number {
		delete(r.announced, name)
	}
	r.mu.Unlock()
	r.release(released...)
	return nil
}

// release tells the deployer of revisions that are not needed any more.
func (r *Rollout) release(numbers ...uint64) {
	for _, n := range numbers {
		r.cfg.Deployer.Release(r.ctx, function.ID{Epoch: r.cfg.Store.Epoch(), Number: n})
	}
}

// settle makes the next definition of a function the current one, or drops it. It returns the
// revisions that are not needed any more.
func (r *Rollout) settle(tx Tx, rec *record, bad *CodeError) (released []uint64, err error) {
	before := rec.bytes()
	rec.RevisionID = r.cfg.NewID()
	switch {
	case bad == nil:
		if rec.Current != nil {
			if err := r.retire(tx, rec.Name, rec.Current); err != nil {
				return nil, err
			}
			released = append(released, rec.Current.Number)
		}
		rec.Current, rec.Next = rec.Next, nil
		rec.State, rec.StateReason, rec.StateReasonCode = active, "", ""
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = successful, "", ""
	case rec.Current == nil: // it stays as it is: there is nothing else to show
		rec.State, rec.StateReason, rec.StateReasonCode = inactive, bad.refusal().Message, "InvalidZipFileException"
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = unsuccess, bad.refusal().Message, "InvalidZipFileException"
	default:
		if err := tx.Delete(revisionKey(rec.Next.Number)); err != nil {
			return nil, err
		}
		released = append(released, rec.Next.Number)
		rec.Next = nil
		rec.Update, rec.UpdateReason, rec.UpdateReasonCode = unsuccess, bad.refusal().Message, "InvalidZipFileException"
	}
	return released, addUsage(tx, 0, rec.bytes()-before)
}

// keepReplaced is how long the environment of a replaced revision stays: longer than a request
// can run that it was given to.
const keepReplaced = function.MaxTimeout + 15*time.Minute

// retire keeps the environment of a definition for the requests that still run it.
func (r *Rollout) retire(tx Tx, name string, d *definition) error {
	if err := put(tx, revisionKey(d.Number), revisionRow{Name: name, Env: d.Env, Replaced: true}); err != nil {
		return err
	}
	return tx.Put(oldKey(r.cfg.Now().Add(keepReplaced), d.Number), []byte("{}"))
}

// forgetOld removes what was kept of revisions that were replaced long ago.
func (r *Rollout) forgetOld(tx Tx) error {
	const most = 16 // more than one transaction adds
	entries, err := tx.List(oldKeys, "", most)
	if err != nil {
		return err
	}
	now := oldKey(r.cfg.Now(), 0)
	for _, e := range entries {
		if e.Key >= now {
			break
		}
		_, number, _ := strings.Cut(strings.TrimPrefix(e.Key, oldKeys), "/")
		if err := tx.Delete(revisionKeys + number); err != nil {
			return err
		}
		if err := tx.Delete(e.Key); err != nil {
			return err
		}
	}
	return nil
}

// setTask puts a task into the store; Begin does it.
func setTask(tx Tx, name string, t task) error {
	b, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return tx.Put(rolloutKeys+name, b)
}
