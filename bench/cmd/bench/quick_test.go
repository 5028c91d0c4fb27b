package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/bench/result"
)

// measured are results with the warm ratio given, and a good one of cold starts.
func measured(warm float64) *result.Results {
	r := &result.Results{}
	r.Add(result.WarmOne, result.Floor, result.MS, 1)
	r.Add(result.WarmOne, result.Sandboxd, result.MS, warm)
	r.Add(result.ColdNext, result.Floor, result.MS, 1)
	r.Add(result.ColdNext, result.Pooled, result.MS, 1)
	r.Finish()
	return r
}

func TestCompare(t *testing.T) {
	baseline := result.Baseline{"P3": 1, "P1": 1}
	for _, c := range []struct {
		name string
		warm []float64 // attempt by attempt
		bad  bool
	}{
		{"good at once", []float64{1.1}, false},
		{"noise", []float64{5, 5, 1.1}, false},
		{"regression", []float64{5, 5, 5}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var asked [][]string
			outcome, err := compare(baseline, io.Discard, func(only []string) (*result.Results, error) {
				asked = append(asked, slices.Clone(only))
				return measured(c.warm[len(asked)-1]), nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if len(asked) != len(c.warm) {
				t.Errorf("measured %d times, want %d", len(asked), len(c.warm))
			}
			for _, only := range asked[1:] {
				if !slices.Equal(only, []string{"warm"}) {
					t.Errorf("measured %v again, want warm only", only)
				}
			}
			if (outcome["P3"] != nil) != c.bad || outcome["P1"] != nil {
				t.Errorf("outcome %v", outcome)
			}
			events := filepath.Join(t.TempDir(), "events")
			if err := writeEvents(events, outcome); err != nil {
				t.Fatal(err)
			}
			want := map[bool]string{false: "pass", true: "fail"}[c.bad]
			if b, err := os.ReadFile(events); err != nil || !strings.Contains(string(b), fmt.Sprintf(`"Action":%q,"Package":"bench","Test":"P3"`, want)) {
				t.Errorf("events %s, %v", b, err)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := compare(baseline, io.Discard, func([]string) (*result.Results, error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}
