// Package result holds what the benchmark has measured, judges it by the targets P1 to
// P16, and writes the page of the documentation. It measures nothing.
package result

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/sandboxd/sandboxd/bench/load"
)

// Host says where the figures come from.
type Host struct {
	When      time.Time `json:"when"`
	Version   string    `json:"version"` // of sandboxd
	Kernel    string    `json:"kernel"`
	CPU       string    `json:"cpu"`
	Cores     int       `json:"cores"`
	MemoryMB  int       `json:"memory_mb"`
	Cgroups   string    `json:"cgroups"`
	System    string    `json:"system"`
	Load      string    `json:"load"` // averages when the run began
	PageCache string    `json:"page_cache"`
	Peers     []string  `json:"peers"` // with their versions
}

// Series is one thing measured of one subject, round after round.
type Series struct {
	What      string    `json:"what"`
	Subject   string    `json:"subject"`
	Unit      string    `json:"unit"`
	N         int       `json:"n"`         // values measured
	Rounds    []float64 `json:"rounds"`    // the median of each round
	Quantiles []float64 `json:"quantiles"` // 0 to 100 percent of all values; set by Finish

	values []float64
}

// Results are all series of a run. They are read after Finish only.
type Results struct {
	Host      Host      `json:"host"`
	Isolation string    `json:"isolation"` // as `sandboxd inspect` shows it for what was measured
	Series    []*Series `json:"series"`
}

// Add appends one round of a series. It is for one goroutine.
func (r *Results) Add(what, subject, unit string, values ...float64) {
	if len(values) == 0 {
		return
	}
	s := r.find(what, subject)
	if s == nil {
		s = &Series{What: what, Subject: subject, Unit: unit}
		r.Series = append(r.Series, s)
	}
	s.N += len(values)
	s.Rounds = append(s.Rounds, load.Median(values))
	s.values = append(s.values, values...)
}

// Finish computes what the JSON and the readers need.
func (r *Results) Finish() {
	for _, s := range r.Series {
		if s.values == nil {
			continue
		}
		slices.Sort(s.values)
		s.Quantiles = nil
		for q := range 101 {
			s.Quantiles = append(s.Quantiles, load.Quantile(s.values, float64(q)/100))
		}
	}
}

func (r *Results) find(what, subject string) *Series {
	for _, s := range r.Series {
		if s.What == what && s.Subject == subject {
			return s
		}
	}
	return nil
}

// all are the series of what is measured, whoever it is of.
func (r *Results) all(what string) []*Series {
	var list []*Series
	for _, s := range r.Series {
		if s.What == what {
			list = append(list, s)
		}
	}
	return list
}

// Has reports whether the series was measured.
func (r *Results) Has(what, subject string) bool { return r.find(what, subject) != nil }

// Quantile is a quantile, in whole percent, of all values of a series. NaN if it was
// not measured.
func (r *Results) Quantile(what, subject string, percent int) float64 {
	s := r.find(what, subject)
	if s == nil || percent < 0 || percent >= len(s.Quantiles) {
		return math.NaN()
	}
	return s.Quantiles[percent]
}

// P50 is the median of all values of a series.
func (r *Results) P50(what, subject string) float64 { return r.Quantile(what, subject, 50) }

// Ratio is the median over the rounds of the subject's figure divided by the other's
// of the same round: what the host did meanwhile cancels out. NaN if one was not measured.
func (r *Results) Ratio(what, subject, other string) float64 {
	a, b := r.find(what, subject), r.find(what, other)
	if a == nil || b == nil {
		return math.NaN()
	}
	var ratios []float64
	for i := range min(len(a.Rounds), len(b.Rounds)) {
		ratios = append(ratios, a.Rounds[i]/b.Rounds[i])
	}
	return load.Median(ratios)
}

// Save writes the results as JSON.
func (r *Results) Save(path string) error {
	b, err := json.Marshal(rounded(r))
	if err != nil {
		return fmt.Errorf("results: %w", err)
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

// rounded is r with figures of four significant digits, which is more than they mean.
func rounded(r *Results) *Results {
	short := func(in []float64) []float64 {
		out := make([]float64, len(in))
		for i, v := range in {
			if v != 0 {
				unit := math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-3)
				v = math.Round(v/unit) * unit
			}
			out[i] = v
		}
		return out
	}
	c := *r
	c.Series = nil
	for _, s := range r.Series {
		t := *s
		t.Rounds, t.Quantiles = short(s.Rounds), short(s.Quantiles)
		c.Series = append(c.Series, &t)
	}
	return &c
}

// Load reads what Save wrote.
func Load(path string) (*Results, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Results{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}
