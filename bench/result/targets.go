package result

import (
	"fmt"
	"math"
)

// target is one row of the table: what is wanted, and what was measured.
type target struct {
	id, what string
	checks   []check
}

// check is one bound of a target.
type check struct {
	name   string // of the value in the baseline; a target's only one needs none
	wanted string
	least  bool // value must be at least limit, not at most
	limit  float64
	value  func(*Results) float64 // what the bound is for; NaN if not measured
	seen   func(*Results) string  // the figures behind it
	ratio  bool                   // value is a ratio, which lasts from host to host
}

func (c check) met(r *Results) bool {
	v := c.value(r)
	if c.least {
		return v >= c.limit
	}
	return v <= c.limit // never for NaN
}

// ratioOf is a check of a ratio.
func ratioOf(what, subject, other string) func(*Results) float64 {
	return func(r *Results) float64 { return r.Ratio(what, subject, other) }
}

// beyond is how much more a quantile of the subject is than the floor's median.
func beyond(what, subject string, percent int) func(*Results) float64 {
	return func(r *Results) float64 { return r.Quantile(what, subject, percent) - r.P50(what, Floor) }
}

// against shows a quantile of the subject and the median of another.
func against(what, subject, other string, percent int) func(*Results) string {
	return func(r *Results) string {
		a, b := r.find(what, subject), r.find(what, other)
		if a == nil || b == nil {
			return "not measured"
		}
		return fmt.Sprintf("%s %s; %s %s %s", figure(a.Quantiles[percent]), a.Unit, other, figure(b.Quantiles[50]), b.Unit)
	}
}

// alone shows the median of a series.
func alone(what, subject string) func(*Results) string {
	return func(r *Results) string {
		s := r.find(what, subject)
		if s == nil {
			return "not measured"
		}
		return figure(s.Quantiles[50]) + " " + s.Unit
	}
}

// quotient divides the medians of two series.
func quotient(what, subject, what2, subject2 string) (func(*Results) float64, func(*Results) string) {
	return func(r *Results) float64 { return r.P50(what, subject) / r.P50(what2, subject2) },
		func(r *Results) string {
			return fmt.Sprintf("%s ms; %s ms", figure(r.P50(what, subject)), figure(r.P50(what2, subject2)))
		}
}

// quotientOf divides the medians of two subjects.
func quotientOf(what, subject, other string) func(*Results) float64 {
	return func(r *Results) float64 { return r.P50(what, subject) / r.P50(what, other) }
}

// figure writes a number with three digits that mean something.
func figure(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "?"
	case a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// idleMemory are the parts of what an idle sandbox needs beyond the function's own.
var idleMemory = []string{InitHandlers, Daemon, Kernel}

// targets of the project, P1 to P16.
func targets() []target {
	creation, creationSeen := quotient(Creation, Last, Creation, Tenth)
	invocation, invocationSeen := quotient(OneOfMany, Most, OnlyOne, Most)
	return []target{
		{"P1", "cold start with a pooled sandbox: from the request to the bootstrap's first `next`, beyond a bare process's time", []check{
			{name: "p50", wanted: "≤ 3 ms p50", limit: 3, value: beyond(ColdNext, Pooled, 50), seen: against(ColdNext, Pooled, Floor, 50)},
			{name: "p99", wanted: "≤ 8 ms p99", limit: 8, value: beyond(ColdNext, Pooled, 99), seen: against(ColdNext, Pooled, Floor, 99)},
		}},
		{"P2", "the same with an empty pool", []check{
			{wanted: "≤ 30 ms p50", limit: 30, value: beyond(ColdNext, Unpooled, 50), seen: against(ColdNext, Unpooled, Floor, 50)},
		}},
		{"P3", "warm invocation, one connection, against the floor", []check{
			{wanted: "≤ 1.2 ×", limit: 1.2, ratio: true, value: ratioOf(WarmOne, Sandboxd, Floor), seen: against(WarmOne, Sandboxd, Floor, 50)},
		}},
		{"P4", "warm throughput, 8 connections, 8 sandboxes, against the floor", []check{
			{wanted: "≥ 0.7 ×", least: true, limit: 0.7, ratio: true, value: ratioOf(WarmRate, Sandboxd, Floor), seen: against(WarmRate, Sandboxd, Floor, 50)},
		}},
		{"P5", "freeze until all is frozen; thaw", []check{
			{name: "freeze", wanted: "≤ 0.3 ms p50", limit: 0.3, value: func(r *Results) float64 { return r.P50(Freeze, Sandboxd) }, seen: alone(Freeze, Sandboxd)},
			{name: "thaw", wanted: "≤ 0.2 ms p50", limit: 0.2, value: func(r *Results) float64 { return r.P50(Thaw, Sandboxd) }, seen: alone(Thaw, Sandboxd)},
		}},
		{"P6", "sandboxes created and destroyed a second, all cores busy", []check{
			{name: "runc", wanted: "≥ 2 × runc", least: true, limit: 2, ratio: true, value: ratioOf(Lives, Sandboxd, Runc), seen: against(Lives, Sandboxd, Runc, 50)},
			{name: "crun", wanted: "≥ 0.5 × crun", least: true, limit: 0.5, ratio: true, value: ratioOf(Lives, Sandboxd, Crun), seen: against(Lives, Sandboxd, Crun, 50)},
		}},
		{"P7", "memory of an idle sandbox beyond the function's processes", []check{
			{wanted: "≤ 3 MB", limit: 3, seen: memorySeen, value: func(r *Results) float64 {
				sum := 0.0
				for _, part := range idleMemory {
					sum += r.P50(Memory, part)
				}
				return sum
			}},
		}},
		{"P8", "500 idle sandboxes", []check{
			{name: "creation", wanted: "creation, 500th to 10th ≤ 1.3 ×", limit: 1.3, value: creation, seen: creationSeen},
			{name: "invocation", wanted: "invocation, random to only ≤ 1.3 ×", limit: 1.3, value: invocation, seen: invocationSeen},
			{name: "idle", wanted: "idle CPU ≤ 1 % of a core", limit: 1, value: func(r *Results) float64 { return r.P50(IdleCPU, Sandboxd) }, seen: alone(IdleCPU, Sandboxd)},
		}},
		{"P9", "streamed response against the floor", []check{
			{name: "first byte", wanted: "first byte ≤ 1 ms later", limit: 1, value: beyond(FirstByte, Sandboxd, 50), seen: against(FirstByte, Sandboxd, Floor, 50)},
			{name: "speed", wanted: "100 MB at ≥ 0.7 ×", least: true, limit: 0.7, ratio: true, value: ratioOf(StreamRate, Sandboxd, Floor), seen: against(StreamRate, Sandboxd, Floor, 50)},
		}},
		{"P10", "warm invocation of `serve`, signed, against `run`", []check{
			{name: "1 KB", wanted: "1 KB ≤ 1.3 ×", limit: 1.3, value: ratioOf(WarmSmall, Serve, Run), seen: against(WarmSmall, Serve, Run, 50)},
			{name: "6 MB", wanted: "6 MB ≤ 1.5 ×", limit: 1.5, value: ratioOf(WarmLarge, Serve, Run), seen: against(WarmLarge, Serve, Run, 50)},
		}},
		{"P11", "cold start of `serve`, a function's first invocation, against `run`", []check{
			{wanted: "≤ 1.3 ×", limit: 1.3, value: quotientOf(ColdTotal, Serve, Run), seen: against(ColdTotal, Serve, Run, 50)},
		}},
		{"P12", "start of `serve` with 10,000 functions, against one with none", []check{
			{wanted: "≤ 10 ×", limit: 10, value: quotientOf(Start, ManyFunctions, NoFunctions), seen: against(Start, ManyFunctions, NoFunctions, 50)},
		}},
		{"P13", "a page of ListFunctions at 10,000 functions, against one at 100", []check{
			{wanted: "≤ 2 ×", limit: 2, value: quotientOf(Page, ManyFunctions, FewFunctions), seen: against(Page, ManyFunctions, FewFunctions, 50)},
		}},
		{"P14", "memory of all processes of `serve` with 10,000 functions of 2 KiB", []check{
			{wanted: "≤ 256 MB", limit: 256, value: func(r *Results) float64 { return r.P50(AllMemory, ManyFunctions) }, seen: alone(AllMemory, ManyFunctions)},
		}},
		{"P15", "100 warm functions in turn, against one at the same rate", []check{
			{wanted: "≤ 2 × p99", limit: 2, value: func(r *Results) float64 {
				return r.Quantile(InTurn, HundredFunctions, 99) / r.Quantile(InTurn, OneFunction, 99)
			}, seen: func(r *Results) string {
				return fmt.Sprintf("%s ms; one function %s ms", figure(r.Quantile(InTurn, HundredFunctions, 99)), figure(r.Quantile(InTurn, OneFunction, 99)))
			}},
		}},
		{"P16", "until callers are answered after a death, against a plain start", []check{
			{name: "control", wanted: "control process ≤ 2 ×", limit: 2, value: quotientOf(Unavailable, ControlDies, PlainStart), seen: against(Unavailable, ControlDies, PlainStart, 50)},
			{name: "worker", wanted: "worker ≤ 2 ×", limit: 2, value: quotientOf(Unavailable, WorkerDies, PlainStart), seen: against(Unavailable, WorkerDies, PlainStart, 50)},
		}},
	}
}

func memorySeen(r *Results) string {
	text := ""
	for i, part := range idleMemory {
		if i > 0 {
			text += " + "
		}
		text += fmt.Sprintf("%s MB %s", figure(r.P50(Memory, part)), part)
	}
	return text
}
