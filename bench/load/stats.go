package load

import (
	"math"
	"slices"
	"time"
)

// Summary describes a set of durations, in milliseconds. The zero value is that of no
// duration at all.
type Summary struct {
	N    int     `json:"n"`
	Min  float64 `json:"min_ms"`
	P50  float64 `json:"p50_ms"`
	P90  float64 `json:"p90_ms"`
	P99  float64 `json:"p99_ms"`
	Max  float64 `json:"max_ms"`
	Mean float64 `json:"mean_ms"`
}

// Summarize describes d, which it does not change.
func Summarize(d []time.Duration) Summary {
	if len(d) == 0 {
		return Summary{}
	}
	ms := Milliseconds(d)
	slices.Sort(ms)
	var sum float64
	for _, v := range ms {
		sum += v
	}
	return Summary{
		N: len(ms), Min: ms[0], P50: Quantile(ms, 0.5), P90: Quantile(ms, 0.9), P99: Quantile(ms, 0.99),
		Max: ms[len(ms)-1], Mean: sum / float64(len(ms)),
	}
}

// Milliseconds converts durations.
func Milliseconds(d []time.Duration) []float64 {
	ms := make([]float64, len(d))
	for i, v := range d {
		ms[i] = float64(v) / float64(time.Millisecond)
	}
	return ms
}

// Quantile is the least value that is not exceeded by the part q of sorted, 0 to 1
// (nearest rank: always a value that was measured). It is NaN for no values.
func Quantile(sorted []float64, q float64) float64 {
	if len(sorted) == 0 {
		return math.NaN()
	}
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the 0.5 quantile of values in any order.
func Median(values []float64) float64 {
	return Quantile(slices.Sorted(slices.Values(values)), 0.5)
}
