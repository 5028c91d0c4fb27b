package suite

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// stub is a target that answers everything with 200 and cannot be stopped in order.
type stub struct{ server *httptest.Server }

func newStub(t *testing.T) *stub {
	s := &stub{httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))}
	t.Cleanup(s.server.Close)
	return s
}

func (s *stub) Features() []string                              { return nil }
func (s *stub) Start(context.Context, *Setup) (Instance, error) { return s, nil }
func (s *stub) URL() string                                     { return s.server.URL }
func (s *stub) Log() string                                     { return "" }
func (s *stub) WaitLog(string, time.Duration) bool              { return false }
func (s *stub) Stop() error                                     { return errors.New("it would not end") }

// A target that does not stop in order fails the case after which it was to stop.
func TestStopErrorFailsACase(t *testing.T) {
	setup := &Setup{Name: "shared"}
	works := func(t *T) { t.Invoke("1") }
	cases := []Case{
		{ID: "A", Setup: setup, Run: works},
		{ID: "B", Setup: setup, Run: works}, // the last one of its environment
		{ID: "C", Setup: &Setup{Name: "fails"}, Run: func(t *T) { t.Invoke("1"); t.Errorf("wrong in itself") }},
		{ID: "D", Setup: &Setup{Name: "stops"}, Run: func(t *T) { t.Invoke("1"); t.Stop() }},
		{ID: "E", Setup: &Setup{Name: "known"}, Run: func(t *T) { t.Invoke("1"); t.Errorf("known to fail") }},
	}
	run := Run{Target: newStub(t), Factor: 1, Pending: map[string]string{"E": "known"}}
	results, err := run.All(t.Context(), cases)
	if err != nil || len(results) != len(cases) {
		t.Fatalf("%+v, %v", results, err)
	}
	for i, want := range [][]string{nil, {"it would not end"}, {"wrong in itself", "it would not end"}, {"it would not end"}, {"known to fail", "it would not end"}} {
		res := results[i]
		if (res.Status == Failed) != (want != nil) {
			t.Errorf("%s: %s: %s", res.ID, res.Status, res.Seen)
		}
		for _, text := range want {
			if !strings.Contains(res.Seen, text) {
				t.Errorf("%s: %q lacks %q", res.ID, res.Seen, text)
			}
		}
	}
}
