package result

import (
	"strconv"

	"github.com/sandboxd/sandboxd/bench/plot"
)

// pictures draws the page's figures, by file name.
func pictures(r *Results) map[string][]byte {
	return map[string][]byte{
		"warm.svg":  r.distributions("Warm invocations, one connection", WarmOne, Floor, Sandboxd, NoLinger).SVG(),
		"cold.svg":  r.distributions("Cold start: from the request to the bootstrap's first next", ColdNext, Floor, Pooled, Unpooled).SVG(),
		"steps.svg": r.steps().SVG(),
		"many.svg":  r.many().SVG(),
	}
}

// distributions draws how large a part of the values is below each.
func (r *Results) distributions(title, what string, subjects ...string) plot.Chart {
	c := plot.Chart{Title: title, X: MS, Y: "% of all", LogX: true}
	for _, name := range subjects {
		s := r.find(what, name)
		if s == nil {
			continue
		}
		l := plot.Line{Name: name}
		for percent, v := range s.Quantiles {
			l.X, l.Y = append(l.X, v), append(l.Y, float64(percent))
		}
		c.Lines = append(c.Lines, l)
	}
	return c
}

// steps draws what a cold invocation is made of, by medians.
func (r *Results) steps() plot.Bars {
	b := plot.Bars{Title: "A cold invocation, step by step", X: MS}
	for _, name := range []string{Floor, Pooled, Unpooled} {
		if !r.Has(ColdTotal, name) {
			continue
		}
		main, next, total := r.P50(ColdMain, name), r.P50(ColdNext, name), r.P50(ColdTotal, name)
		b.Bars = append(b.Bars, plot.Bar{Name: name, Parts: []plot.Part{
			{Name: "until the bootstrap's main", Value: main},
			{Name: "until its first next", Value: next - main},
			{Name: "until the answer", Value: total - next},
		}})
	}
	return b
}

// many draws the latency of one of n sandboxes.
func (r *Results) many() plot.Chart {
	c := plot.Chart{Title: "Invocation of a frozen sandbox, median", X: "idle sandboxes", Y: MS}
	for _, what := range []string{OneOfMany, OnlyOne} {
		l := plot.Line{Name: map[string]string{OneOfMany: "a random one of them", OnlyOne: "the only one of another daemon"}[what]}
		for _, s := range r.Series {
			if n, err := strconv.ParseFloat(s.Subject, 64); err == nil && s.What == what {
				l.X, l.Y = append(l.X, n), append(l.Y, s.Quantiles[50])
			}
		}
		if len(l.X) > 0 {
			c.Lines = append(c.Lines, l)
		}
	}
	return c
}
