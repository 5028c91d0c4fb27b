package worker

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// maxCounted is how many functions have numbers of their own at once. Those that were not
// invoked for message.NumbersAge make room; others are in the totals only.
const maxCounted = 16 << 10

// counted counts what becomes of invocations. It implements invoke.Functions, and is safe for
// concurrent use. The numbers are of use to a control process only.
type counted struct {
	invoke.Functions
	now func() time.Time

	total     tally
	durations []atomic.Uint64 // as message.FunctionNumbers.Durations
	functions sync.Map        // *tally by name
	kept      atomic.Int64    // entries of functions
}

// tally has the numbers of one function, or of all.
type tally struct {
	invocations, throttles, failed, broken atomic.Uint64
	nanoseconds                            atomic.Int64
	last                                   atomic.Int64 // time of the last invocation, as in time.Time.UnixNano
}

func newCounted(f invoke.Functions) *counted {
	return &counted{Functions: f, now: time.Now, durations: make([]atomic.Uint64, len(message.DurationBounds)+1)}
}

// Lease implements invoke.Functions.
func (c *counted) Lease(ctx context.Context, name, qualifier, tenant string) (invoke.Lease, error) {
	began := c.now()
	l, err := c.Functions.Lease(ctx, name, qualifier, tenant)
	if err == nil {
		return &countedLease{l, c, c.of(name, began), began}, nil
	}
	if errors.Is(err, invoke.ErrTooMany) || errors.Is(err, invoke.ErrAllBusy) {
		c.total.throttles.Add(1)
		if t := c.of(name, began); t != nil {
			t.throttles.Add(1)
		}
	}
	return nil, err
}

// of returns the numbers of a function that is known to exist, nil if there are too many
// functions.
func (c *counted) of(name string, now time.Time) *tally {
	if t, ok := c.functions.Load(name); ok {
		t.(*tally).last.Store(now.UnixNano())
		return t.(*tally)
	}
	if c.kept.Load() >= maxCounted {
		c.drop(now)
		if c.kept.Load() >= maxCounted {
			return nil
		}
	}
	fresh := &tally{}
	fresh.last.Store(now.UnixNano())
	t, known := c.functions.LoadOrStore(name, fresh)
	if !known {
		c.kept.Add(1)
	}
	return t.(*tally)
}

// drop forgets the numbers of functions that were not invoked for message.NumbersAge.
func (c *counted) drop(now time.Time) {
	oldest := now.Add(-message.NumbersAge).UnixNano()
	c.functions.Range(func(name, t any) bool {
		if t.(*tally).last.Load() < oldest && c.functions.CompareAndDelete(name, t) {
			c.kept.Add(-1)
		}
		return true
	})
}

// countedLease is a lease whose invocation is counted.
type countedLease struct {
	invoke.Lease
	counted  *counted
	function *tally // nil if the function has no numbers of its own
	began    time.Time
}

// Invoke implements invoke.Lease.
func (l *countedLease) Invoke(inv *rapid.Invocation) (*rapid.Result, error) {
	res, err := l.Lease.Invoke(inv)
	took := l.counted.now().Sub(l.began)
	failed := err == nil && res.FunctionError
	l.counted.total.add(took, failed, err != nil)
	if l.function != nil {
		l.function.add(took, failed, err != nil)
	}
	i, _ := slices.BinarySearch(message.DurationBounds, took)
	l.counted.durations[i].Add(1)
	return res, err
}

// add counts an invocation.
func (t *tally) add(took time.Duration, failed, broken bool) {
	t.invocations.Add(1)
	t.nanoseconds.Add(int64(took))
	if failed {
		t.failed.Add(1)
	}
	if broken {
		t.broken.Add(1)
	}
}

func (t *tally) numbers(name string) message.FunctionNumbers {
	return message.FunctionNumbers{
		Name: name, Invocations: t.invocations.Load(), Throttles: t.throttles.Load(),
		Errors:  map[string]uint64{message.FunctionError: t.failed.Load(), message.PlatformError: t.broken.Load()},
		Seconds: time.Duration(t.nanoseconds.Load()).Seconds(),
	}
}

// numbers returns what was counted, for that many functions at most.
func (c *counted) numbers(most int) (total message.FunctionNumbers, functions []message.FunctionNumbers) {
	total = c.total.numbers("")
	for i := range c.durations {
		total.Durations = append(total.Durations, c.durations[i].Load())
	}
	c.drop(c.now())
	type named struct {
		name string
		last int64
		*tally
	}
	var all []named
	c.functions.Range(func(name, t any) bool {
		all = append(all, named{name.(string), t.(*tally).last.Load(), t.(*tally)})
		return true
	})
	slices.SortFunc(all, func(a, b named) int { return int(min(max(b.last-a.last, -1), 1)) })
	for _, n := range all[:min(max(most, 0), len(all))] {
		functions = append(functions, n.numbers(n.name))
	}
	return total, functions
}

// numbers answers a request for what the worker has counted.
func (w *worker) numbers(rw http.ResponseWriter, r *http.Request) {
	most, err := strconv.Atoi(r.URL.Query().Get("functions"))
	if err != nil {
		http.Error(rw, "functions is a number", http.StatusBadRequest)
		return
	}
	n := message.Numbers{Start: w.config.Start, Known: len(*w.functions.serving.Load())}
	if w.logs != nil {
		n.Logs.Bytes, n.Logs.Dropped = w.logs.Stats()
	}
	n.Total, n.Functions = w.counted.numbers(most)
	for _, s := range w.functions.all() {
		stats := s.fleet.Stats()
		n.Sandboxes += len(stats)
		n.Bytes += uint64(len(stats)) * uint64(s.rev.MemoryMB) << 20
		for _, stat := range stats {
			if stat.Idle > 0 {
				n.Idle++
			}
		}
	}
	rw.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(rw).Encode(n) // fails only if control has gone
}

// forgetKey answers when no request is verified any more by what was derived from an access
// key before.
func (w *worker) forgetKey(rw http.ResponseWriter, r *http.Request) {
	var m message.ForgetKey
	if err := json.NewDecoder(io.LimitReader(r.Body, maxAnswer)).Decode(&m); err != nil || m.AccessKeyID == "" {
		http.Error(rw, "an access key is JSON with an id", http.StatusBadRequest)
		return
	}
	w.authorizer.forget(m.AccessKeyID)
	rw.WriteHeader(http.StatusNoContent)
}
