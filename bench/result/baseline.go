package result

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
)

// Tolerances are generous on purpose: a false alarm stops everybody, and a small loss
// shows in the next full run.
const (
	tolerance = 1.6 // times worse than the baseline
	loose     = 2.5 // for what depends most on what else the host does
)

// Ratio is a figure that can be compared between hosts.
type Ratio struct {
	ID         string  // of the target, and the check's name if the target has several
	Experiment string  // of package suite that measures it
	Value      float64 // NaN if it was not measured
	least      bool    // more is better
	tolerance  float64
}

// Ratios are those of r that a baseline may hold, measured or not.
func Ratios(r *Results) (list []Ratio) {
	experiments := map[string]string{"P3": "warm", "P4": "warm", "P6": "lives", "P9": "streams"}
	for _, t := range targets() {
		for _, c := range t.checks {
			if c.ratio {
				x := Ratio{strings.TrimSpace(t.id + " " + c.name), experiments[t.id], c.value(r), c.least, tolerance}
				if t.id == "P6" || t.id == "P9" {
					x.tolerance = loose
				}
				list = append(list, x)
			}
		}
	}
	// Of cold starts the fast ones: a busy host holds up many processes longer than one,
	// and medians then say more of the host than of sandboxd. With an empty pool even those
	// do; what they pay for, P6 compares with runc, which a busy host holds up as much.
	const fast = 5 // percent
	list = append(list, Ratio{"P1", "cold", r.Quantile(ColdNext, Pooled, fast) / r.Quantile(ColdNext, Floor, fast), false, loose})
	return slices.DeleteFunc(list, func(x Ratio) bool { return math.IsNaN(x.Value) })
}

// Baseline holds ratios by id.
type Baseline map[string]float64

// LoadBaseline reads a baseline.
func LoadBaseline(path string) (b Baseline, err error) {
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &b)
	}
	if err != nil {
		return nil, fmt.Errorf("baseline %s: %w; 'make bench' writes it", path, err)
	}
	return b, nil
}

// Save writes b.
func (b Baseline) Save(path string) error {
	text, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

// BaselineOf takes the ratios of a run for a baseline.
func BaselineOf(r *Results) Baseline {
	b := Baseline{}
	for _, x := range Ratios(r) {
		b[x.ID] = math.Round(x.Value*1000) / 1000
	}
	return b
}

// Check says in what way a ratio is a regression; nil if it is none.
func (b Baseline) Check(x Ratio) error {
	base, ok := b[x.ID]
	if !ok {
		return fmt.Errorf("%s is not in the baseline, which has %v: 'make bench' writes it", x.ID, slices.Sorted(maps.Keys(b)))
	}
	bound := base * x.tolerance
	if x.least {
		bound = base / x.tolerance
	}
	if x.least && x.Value < bound || !x.least && x.Value > bound {
		return fmt.Errorf("%s is %s, the baseline %s, the bound %s", x.ID, figure(x.Value), figure(base), figure(bound))
	}
	return nil
}
