package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/invoke"
	"github.com/sandboxd/sandboxd/rapid"
)

// outcomes are functions whose leases and invocations end as their names say.
type outcomes struct {
	invoke.Functions
	clock *time.Time
}

func (o outcomes) Lease(_ context.Context, name, _, _ string) (invoke.Lease, error) {
	switch name {
	case "throttled":
		return nil, invoke.ErrTooMany
	case "crowded":
		return nil, fmt.Errorf("all: %w", invoke.ErrAllBusy)
	case "missing":
		return nil, invoke.ErrNoFunction
	}
	return outcome{name: name, clock: o.clock}, nil
}

type outcome struct {
	invoke.Lease
	name  string
	clock *time.Time
}

func (o outcome) Invoke(*rapid.Invocation) (*rapid.Result, error) {
	switch o.name {
	case "fails":
		return &rapid.Result{FunctionError: true}, nil
	case "breaks":
		return nil, errors.New("no sandbox")
	case "slow":
		*o.clock = o.clock.Add(30 * time.Minute)
	}
	*o.clock = o.clock.Add(3 * time.Millisecond)
	return &rapid.Result{}, nil
}

// Each invocation is counted once, by its end; functions that were not invoked for an hour have
// no numbers of their own.
func TestCounted(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	c := newCounted(outcomes{clock: &now})
	c.now = func() time.Time { return now }
	call := func(name string) {
		if l, err := c.Lease(t.Context(), name, "", ""); err == nil {
			_, _ = l.Invoke(&rapid.Invocation{})
		}
	}
	for _, name := range []string{"slow", "fine", "fine", "fails", "breaks", "throttled", "crowded", "missing"} {
		call(name)
	}
	total, functions := c.numbers(100)
	if total.Invocations != 5 || total.Throttles != 2 || total.Errors[message.FunctionError] != 1 || total.Errors[message.PlatformError] != 1 {
		t.Errorf("%+v", total)
	}
	if total.Seconds < 1800 || total.Seconds > 1801 {
		t.Errorf("%v seconds", total.Seconds)
	}
	sum := uint64(0)
	for i, n := range total.Durations {
		sum += n
		if (n > 0) != (i == 0 || i == 2 || i == len(total.Durations)-1) {
			t.Errorf("%d durations in bucket %d of %v", n, i, total.Durations)
		}
	}
	if sum != 5 {
		t.Errorf("%d durations", sum)
	}
	got := map[string]message.FunctionNumbers{}
	for _, f := range functions {
		got[f.Name] = f
	}
	if len(got) != 6 || got["fine"].Invocations != 2 || got["throttled"].Throttles != 1 || got["breaks"].Errors[message.PlatformError] != 1 {
		t.Errorf("%+v", got)
	}
	now = now.Add(45 * time.Minute)
	call("fine")
	if _, two := c.numbers(2); len(two) != 2 || two[0].Name != "fine" || two[0].Invocations != 3 {
		t.Errorf("the last invoked: %+v", two)
	}
	now = now.Add(20 * time.Minute)
	if total, left := c.numbers(100); len(left) != 1 || left[0].Name != "fine" || total.Invocations != 6 {
		t.Errorf("after an hour: %+v of %+v", left, total)
	}
}

// However many functions there are, the numbers take bounded memory, and the totals have all.
func TestCountedBound(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	c := newCounted(outcomes{clock: &now})
	c.now = func() time.Time { return now }
	all := func(prefix string) {
		for i := range maxCounted + 10 {
			l, err := c.Lease(t.Context(), fmt.Sprint(prefix, i), "", "")
			if err != nil {
				t.Fatal(err)
			}
			_, _ = l.Invoke(&rapid.Invocation{})
		}
	}
	all("a")
	if total, functions := c.numbers(1 << 20); len(functions) != maxCounted || total.Invocations != maxCounted+10 {
		t.Errorf("%d functions, %d invocations", len(functions), total.Invocations)
	}
	now = now.Add(2 * time.Hour)
	all("b")
	if n := c.kept.Load(); n != maxCounted {
		t.Errorf("%d functions are kept", n)
	}
}

// What control asks for the metrics, and what it tells of revoked keys.
func TestAnswersNumbers(t *testing.T) {
	f, c := newLearner(t, nil)
	defer f.finish(t)
	c.update("a")
	w := f.w
	w.functions, w.counted, w.authorizer = f, newCounted(f), &authorizer{}
	w.config.Start = 3
	l, err := w.counted.Lease(t.Context(), "a", "", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Invoke(&rapid.Invocation{ID: "1"}); err != nil {
		t.Fatal(err)
	}
	ask := func(method, target, body string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(body))
		r.Host = message.WorkerHost
		rec := httptest.NewRecorder()
		w.answers().ServeHTTP(rec, r)
		return rec
	}
	var n message.Numbers
	if rec := ask("GET", "/numbers?functions=5", ""); rec.Code != http.StatusOK || json.Unmarshal(rec.Body.Bytes(), &n) != nil {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	if n.Start != 3 || n.Known != 1 || n.Sandboxes != 1 || n.Bytes == 0 || n.Total.Invocations != 1 || len(n.Functions) != 1 || n.Functions[0].Name != "a" {
		t.Errorf("%+v", n)
	}
	for _, c := range []struct {
		method, target, body string
		want                 int
	}{
		{"GET", "/numbers?functions=0", "", http.StatusOK},
		{"GET", "/numbers", "", http.StatusBadRequest},
		{"POST", "/forget-key", `{"AccessKeyID":"AKINVOKE"}`, http.StatusNoContent},
		{"POST", "/forget-key", `{}`, http.StatusBadRequest},
		{"POST", "/forget-key", `nonsense`, http.StatusBadRequest},
	} {
		if rec := ask(c.method, c.target, c.body); rec.Code != c.want {
			t.Errorf("%s %s %s: %d, want %d", c.method, c.target, c.body, rec.Code, c.want)
		}
	}
	if w.authorizer.forgets != 1 {
		t.Errorf("keys were forgotten %d times", w.authorizer.forgets)
	}
}

// A key that was revoked is accepted no more as soon as forget has returned, also if an answer
// of control that is older was on its way then.
func TestForgetKey(t *testing.T) {
	now := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	asked, revoked := 0, false
	onTheWay := func() {}
	verify := verifyKeys(&asked, func() time.Time { return now.Add(time.Hour) })
	a := &authorizer{scope: testScope, now: func() time.Time { return now }}
	a.verify = func(ctx context.Context, v message.Verify) (message.Verdict, error) {
		if revoked {
			return message.Verdict{}, nil
		}
		verdict, err := verify(ctx, v)
		onTheWay()
		return verdict, err
	}
	invoke := func() string {
		r := newInvocation(t, "{}")
		sign(t, r, "AKINVOKE", testSecret, "{}", true, now)
		got, _ := try(t, a, r, testARN, "{}")
		return got
	}
	if got := invoke(); got != "" {
		t.Fatal(got)
	}
	revoked = true
	if got := invoke(); got != "" || asked != 1 {
		t.Fatalf("%q after %d questions, want the key to be remembered", got, asked)
	}
	a.forget("AKINVOKE")
	if got := invoke(); got != "UnrecognizedClientException" {
		t.Errorf("after it was forgotten: %q", got)
	}

	revoked = false
	onTheWay = func() { // control has answered, and the key is revoked before that arrives
		revoked = true
		a.forget("AKINVOKE")
	}
	if got := invoke(); got != "" {
		t.Fatal(got)
	}
	if got := invoke(); got != "UnrecognizedClientException" {
		t.Errorf("the old answer was remembered: %q", got)
	}
}

// Counting costs an invocation little.
func BenchmarkCounted(b *testing.B) {
	c := newCounted(outcomes{clock: new(time.Time)})
	for b.Loop() {
		l, _ := c.Lease(b.Context(), "fine", "", "")
		_, _ = l.Invoke(&rapid.Invocation{})
	}
}
