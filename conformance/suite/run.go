package suite

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"time"
)

// Case is the check of one requirement. Its Run drives the environment of Setup through
// t and says with t.Errorf what is wrong; cases with the same Setup run one after the
// other in one environment, so a case leaves it able to take an invocation.
type Case struct {
	ID    string
	Setup *Setup
	Run   func(t *T)
}

// Status is the outcome of a case.
type Status string

// The outcomes. A Pending case failed as it is known to; Surprise is one that passed
// though it is listed as pending.
const (
	Passed       Status = "passed"
	Failed       Status = "failed"
	NotSupported Status = "not supported"
	Pending      Status = "pending"
	Surprise     Status = "passed, but listed as pending"
)

// Bad reports whether the status makes a run fail.
func (s Status) Bad() bool { return s == Failed || s == Surprise }

// Result is what became of one case.
type Result struct {
	ID     string        `json:"id"`
	Status Status        `json:"status"`
	Seen   string        `json:"seen,omitempty"` // what was wrong, or why it was not run
	Took   time.Duration `json:"tookNanoseconds"`
}

// Run runs cases against targets. Its zero value lacks only Target.
type Run struct {
	Target   Target
	Pending  map[string]string    // ids known to fail, with the reason
	Only     *regexp.Regexp       // the ids to run; nil is all
	Each     func(Result)         // called with each result when it is there; may be nil
	Keep     func(id, log string) // called with what the target printed, for each case that fails; may be nil
	Patience time.Duration        // how long a case waits for what the target must do; 0 is [DefaultPatience]
	Factor   float64              // how much slower than the reference this machine is; 0 is to be measured
}

// All runs the cases that Only selects and returns their results in the same order. An
// error means that the run itself could not go on.
func (r *Run) All(ctx context.Context, cases []Case) ([]Result, error) {
	factor := r.Factor
	if factor == 0 {
		var err error
		if factor, err = calibrate(); err != nil {
			return nil, err
		}
	}
	var chosen []Case
	for _, c := range cases {
		if r.Only == nil || r.Only.MatchString(c.ID) {
			chosen = append(chosen, c)
		}
	}
	results := make([]Result, len(chosen))
	for _, group := range groups(chosen) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		r.group(ctx, chosen, group, results, factor)
	}
	return results, nil
}

// groups gathers the indexes of cases with the same setup, in the order in which the
// setups come first.
func groups(cases []Case) [][]int {
	var order []*Setup
	members := make(map[*Setup][]int)
	for i, c := range cases {
		if !slices.Contains(order, c.Setup) {
			order = append(order, c.Setup)
		}
		members[c.Setup] = append(members[c.Setup], i)
	}
	var list [][]int
	for _, s := range order {
		list = append(list, members[s])
	}
	return list
}

// group runs the cases of one setup in one environment, or in a new one after a case
// that failed: who knows in what state it left the old one.
func (r *Run) group(ctx context.Context, cases []Case, indexes []int, results []Result, factor float64) {
	e := &environment{target: r.Target, setup: cases[indexes[0]].Setup, factor: factor, patience: cmp.Or(r.Patience, DefaultPatience)}
	lacking := e.lacking()
	for n, i := range indexes {
		c := cases[i]
		res := Result{ID: c.ID, Status: NotSupported, Seen: lacking}
		if lacking == "" {
			res = r.one(ctx, e, c)
		}
		if n == len(indexes)-1 {
			res.failWith(e.stop())
		}
		results[i] = res
		if r.Each != nil {
			r.Each(res)
		}
	}
}

func (r *Run) one(ctx context.Context, e *environment, c Case) Result {
	began := time.Now()
	t := newT(ctx, e)
	t.run(c.Run)
	wrong := t.seen()
	res := Result{ID: c.ID, Status: Passed, Took: time.Since(began)}
	switch {
	case t.unsupported != "":
		res.Status, res.Seen = NotSupported, t.unsupported
	case len(wrong) > 0:
		res.Status, res.Seen = Failed, join(wrong)
		if r.Keep != nil && e.instance != nil {
			r.Keep(c.ID, e.instance.Log())
		}
	}
	failed := res.Status == Failed
	if reason, pending := r.Pending[c.ID]; pending {
		switch res.Status {
		case Failed:
			res.Status, res.Seen = Pending, reason+": "+res.Seen
		case Passed:
			res.Status, res.Seen = Surprise, "remove it from the pending list"
		}
	}
	if failed {
		res.failWith(e.stop())
	}
	return res
}

// failWith makes the case fail with an error of stopping its environment, unless that is
// nil: the target must end in order, and leave nothing.
func (res *Result) failWith(err error) {
	if err == nil {
		return
	}
	seen := []string{fmt.Sprintf("the target did not stop: %v", err)}
	if res.Seen != "" {
		seen = append([]string{res.Seen}, seen...)
	}
	res.Status, res.Seen = Failed, join(seen)
}

// environment is the instance that the cases of a setup share.
type environment struct {
	target   Target
	setup    *Setup
	factor   float64
	patience time.Duration
	instance Instance // nil before the first use and after a failure
	plays    int
}

// lacking says which features of the setup the target does not have.
func (e *environment) lacking() string {
	var need []string
	need = append(need, e.setup.Needs...)
	if len(e.setup.Extensions) > 0 {
		need = append(need, Extensions)
	}
	if len(e.setup.Env) > 0 {
		need = append(need, Variables)
	}
	if len(e.setup.Args) > 0 {
		need = append(need, Arguments)
	}
	if e.setup.URL {
		need = append(need, URLs)
	}
	for _, f := range need {
		if !slices.Contains(e.target.Features(), f) {
			return "the target has no " + f
		}
	}
	return ""
}

func (e *environment) stop() error {
	if e.instance == nil {
		return nil
	}
	err := e.instance.Stop()
	e.instance = nil
	return err
}

// run calls a case on a goroutine of its own, so that Fatalf can end it.
func (t *T) run(f func(*T)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil { // a bug in the case must not end the run
				buf := make([]byte, 4096)
				t.Errorf("the case panicked: %v\n%s", p, buf[:runtime.Stack(buf, false)])
			}
		}()
		f(t)
	}()
	<-done
}

func join(list []string) string {
	if len(list) == 1 {
		return list[0]
	}
	text := ""
	for i, s := range list {
		text += fmt.Sprintf("(%d) %s ", i+1, s)
	}
	return text[:len(text)-1]
}
