package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sandboxd/sandboxd/internal/seal"
	"github.com/sandboxd/sandboxd/state"
)

// check opens what is in a folder as a start does, and compares all of it with what must be
// there. It returns how many changes of each worker are. Nothing may be damaged or half
// there, and the next change must succeed.
func check(ctx context.Context, dir string) (counts [workers]uint64, err error) {
	s, err := open(ctx, dir, "")
	if err != nil {
		return counts, err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if damage := s.store.Damage(); len(damage) > 0 {
		return counts, fmt.Errorf("the store is damaged: %v", damage)
	}
	for worker := range workers {
		if counts[worker], err = s.checkWorker(ctx, worker); err != nil {
			return counts, fmt.Errorf("worker %d, %d changes: %w", worker, counts[worker], err)
		}
	}
	if _, err := s.sweep(ctx); err != nil {
		return counts, err
	}
	for worker := range workers {
		if err := s.change(ctx, worker, counts[worker]+1); err != nil {
			return counts, fmt.Errorf("worker %d goes on after %d changes: %w", worker, counts[worker], err)
		}
	}
	return counts, nil
}

// checkWorker compares what the store has of a worker with what it must have.
func (s *stores) checkWorker(ctx context.Context, worker int) (n uint64, err error) {
	err = s.store.View(ctx, func(r *state.Reader) error {
		if n, err = countIn(r, worker); err != nil {
			return err
		}
		return errors.Join(s.probe(ctx, r, newPart(worker, n))...)
	})
	return n, err
}

// probe asks for everything that the store has of a worker, and returns an error for each
// answer that is not as it must be: the store's, or one that says what is wrong.
func (s *stores) probe(ctx context.Context, r *state.Reader, p *part) []error {
	errs := []error{p.checkCount(r), p.checkFunctions(r), p.checkTimers(r), p.checkQueue(r), p.checkLog(r), p.checkLarge(r)}
	for slot := range slots {
		errs = append(errs, p.checkFunction(r, slot), p.checkTimer(r, slot), p.checkSecret(r, slot, s.keys))
		if n, ok := p.deployed[slot]; ok {
			errs = append(errs, s.blobs.Verify(ctx, sha256.Sum256(content(p.worker, n))))
		}
	}
	return errs
}

func (p *part) checkCount(r *state.Reader) error {
	n, err := countIn(r, p.worker)
	return p.want(err, n == p.n, "%d changes, want %d", n, p.n)
}

// want returns err, or one of its own if the answer is not right.
func (p *part) want(err error, right bool, format string, args ...any) error {
	if err != nil || right {
		return err
	}
	return fmt.Errorf("wrong answer: "+format, args...)
}

// checkFunctions compares the list of functions.
func (p *part) checkFunctions(r *state.Reader) error {
	list, err := r.List(functionPrefix(p.worker), "", 2*slots)
	var got, want []string
	for _, pair := range list {
		got = append(got, pair.Key+" "+string(pair.Value))
	}
	for slot := range slots {
		if n, ok := p.deployed[slot]; ok {
			want = append(want, functionKey(p.worker, slot)+" "+functionValue(n, sha256.Sum256(content(p.worker, n))))
		}
	}
	return p.want(err, slices.Equal(got, want), "functions %q, want %q", got, want)
}

// checkFunction compares one function.
func (p *part) checkFunction(r *state.Reader, slot int) error {
	value, err := r.Get(functionKey(p.worker, slot))
	n, ok := p.deployed[slot]
	if !ok {
		return p.wantNone(err, functionKey(p.worker, slot))
	}
	want := functionValue(n, sha256.Sum256(content(p.worker, n)))
	return p.want(found(err), string(value) == want, "function %d is %q, want %q", slot, value, want)
}

// checkSecret compares the secret of one function.
func (p *part) checkSecret(r *state.Reader, slot int, keys *seal.Ring) error {
	at := place(p.worker, slot)
	sealed, err := r.Get(at.Key)
	n, ok := p.deployed[slot]
	if !ok {
		return p.wantNone(err, at.Key)
	}
	if err != nil {
		return found(err)
	}
	plain, err := keys.Open(sealed, at)
	return p.want(err, string(plain) == secret(p.worker, n), "secret %d is %q, want that of change %d", slot, plain, n)
}

// found makes the error of what is not there, but should, a wrong answer.
func found(err error) error {
	if errors.Is(err, state.ErrNotFound) {
		return fmt.Errorf("wrong answer: %v", err)
	}
	return err
}

// wantNone checks that err says that there is none.
func (p *part) wantNone(err error, what string) error {
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	return p.want(err, false, "%s is there", what)
}

// checkTimer compares the timer of a function.
func (p *part) checkTimer(r *state.Reader, slot int) error {
	timer, err := r.Timer(functionKey(p.worker, slot))
	n, ok := p.deployed[slot]
	if !ok {
		return p.wantNone(err, "timer "+functionKey(p.worker, slot))
	}
	right := string(timer.Value) == strconv.FormatUint(n, 10) && timer.At.Equal(time.Unix(int64(n), 0))
	return p.want(found(err), right, "timer %d is %v, want %d", slot, timer, n)
}

// checkTimers compares the list of all timers, of which others have some too.
func (p *part) checkTimers(r *state.Reader) error {
	due, err := r.Due(state.Forever, workers*slots+1)
	own := 0
	for _, timer := range due {
		if strings.HasPrefix(timer.Name, functionPrefix(p.worker)) {
			own++
		}
	}
	return p.want(err, own == len(p.deployed), "%d timers, want %d", own, len(p.deployed))
}

// checkQueue compares the entries of the queue.
func (p *part) checkQueue(r *state.Reader) error {
	entries, err := r.ReadQueue(queueName(p.worker), 0, len(p.queue)+1)
	var got, want []string
	for _, e := range entries {
		got = append(got, string(e.Value))
	}
	for _, n := range p.queue {
		want = append(want, strconv.FormatUint(n, 10))
	}
	return p.want(err, slices.Equal(got, want), "the queue has %q, want %q", got, want)
}

// checkLog compares the records of the log.
func (p *part) checkLog(r *state.Reader) error {
	first, next, err := r.LogBounds(logName(p.worker))
	if err != nil {
		return err
	}
	if p.n == 0 {
		return p.want(nil, first == next, "records %d to %d, want none", first, next)
	}
	records, err := r.ReadLog(logName(p.worker), 0, int(p.n)+1)
	right := first == p.cut && next == p.n+1 && len(records) == int(next-first)
	for i, record := range records {
		n := first + uint64(i)
		right = right && record.Seq == n && string(record.Value) == strconv.FormatUint(n, 10)
	}
	return p.want(err, right, "records from %d to before %d: %v; want those from %d to %d", first, next, records, p.cut, p.n)
}

// checkLarge compares the large value.
func (p *part) checkLarge(r *state.Reader) error {
	value, err := r.Get(largeKey(p.worker))
	if p.largeSince == 0 {
		return p.wantNone(err, largeKey(p.worker))
	}
	return p.want(found(err), string(value) == largeValue(p.worker, p.largeSince), "the large value is not that of change %d", p.largeSince)
}
