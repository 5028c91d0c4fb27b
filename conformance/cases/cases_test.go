package cases

import (
	"context"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/conformance/suite"
)

// run runs the cases with the ids against a fake, and returns the results by id.
func run(t *testing.T, f *fake, pending map[string]string, ids ...string) map[string]suite.Result {
	t.Helper()
	r := suite.Run{Target: f, Pending: pending, Only: regexp.MustCompile("^(" + strings.Join(ids, "|") + ")$")}
	list, err := r.All(context.Background(), All())
	if err != nil {
		t.Fatal(err)
	}
	results := make(map[string]suite.Result)
	for _, res := range list {
		results[res.ID] = res
	}
	if len(results) != len(ids) {
		t.Fatalf("%d results of %v", len(results), ids)
	}
	return results
}

// fakeIDs are requirements that the fake meets.
var fakeIDs = []string{"RT-06", "RT-07", "RT-08", "RT-12", "RT-13", "RT-20", "RT-31", "RT-39", "INV-06", "INV-10"}

func TestCasesPassOnTheFake(t *testing.T) {
	f := &fake{t: t}
	for id, res := range run(t, f, nil, fakeIDs...) {
		if res.Status != suite.Passed {
			t.Errorf("%s %s: %s", id, res.Status, res.Seen)
		}
	}
	if f.starts != 1 {
		t.Errorf("%d starts for cases of one setup", f.starts)
	}
}

// Each fault fails the case that looks for it, and says what was seen.
func TestCasesFailOnFaults(t *testing.T) {
	for _, c := range []struct {
		name, id string
		faults   faults
		seen     string
	}{
		{"200 instead of 202", "RT-07", faults{accepted: http.StatusOK}, "status 200"},
		{"ping says something else", "RT-08", faults{pong: "ping"}, `"ping"`},
		{"an unknown id is taken", "RT-06", faults{unknownTaken: true}, "want 400"},
		{"the event is changed", "RT-12", faults{payload: true}, "echo is"},
		{"ids differ", "RT-13", faults{otherID: true}, `"other"`},
		{"the caller's content type is passed on", "RT-20", faults{contentType: true}, "application/x-www-form-urlencoded"},
		{"the answer is lost", "RT-31", faults{loseAnswers: true}, "answer is"},
		{"no version", "INV-06", faults{noVersion: true}, "X-Amz-Executed-Version"},
		{"function errors are 502", "INV-10", faults{errorStatus: http.StatusBadGateway}, "502"},
	} {
		t.Run(c.name, func(t *testing.T) {
			res := run(t, &fake{t: t, faults: c.faults}, nil, c.id)[c.id]
			if res.Status != suite.Failed || !strings.Contains(res.Seen, c.seen) {
				t.Errorf("%s %s: %s; want it to fail and to tell %q", c.id, res.Status, res.Seen, c.seen)
			}
		})
	}
}

func TestPending(t *testing.T) {
	pending := map[string]string{"RT-07": "known", "RT-08": "not so"}
	results := run(t, &fake{t: t, faults: faults{accepted: http.StatusOK}}, pending, "RT-07", "RT-08")
	if res := results["RT-07"]; res.Status != suite.Pending || res.Status.Bad() || !strings.HasPrefix(res.Seen, "known: ") {
		t.Errorf("a pending case that fails: %+v", res)
	}
	if res := results["RT-08"]; res.Status != suite.Surprise || !res.Status.Bad() {
		t.Errorf("a pending case that passes: %+v", res)
	}
}

func TestFailureGivesAFreshEnvironment(t *testing.T) {
	f := &fake{t: t, faults: faults{pong: "x"}}
	results := run(t, f, nil, "RT-07", "RT-08", "RT-13")
	if f.starts != 2 || results["RT-13"].Status != suite.Passed {
		t.Errorf("%d starts, results %+v", f.starts, results)
	}
}

func TestFeaturesThatTheTargetLacks(t *testing.T) {
	f := &fake{t: t}
	if res := run(t, f, nil, "EX-01")["EX-01"]; res.Status != suite.NotSupported || f.starts != 0 {
		t.Errorf("%+v after %d starts", res, f.starts)
	}
}
