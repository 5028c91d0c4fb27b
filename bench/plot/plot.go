// Package plot draws the two kinds of pictures that the benchmark's page has, as SVG.
package plot

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"strconv"
)

// The size of every picture, and of the field within the axes.
const (
	width, height            = 720, 400
	left, right, top, bottom = 64, 16, 40, 84
)

// colours are told apart by colour-blind readers too (Okabe and Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"}

// Line is one line of a chart: as many X as Y.
type Line struct {
	Name string
	X, Y []float64
}

// Chart is a picture of lines. Y begins at zero.
type Chart struct {
	Title, X, Y string
	LogX        bool // positive X only
	Lines       []Line
}

// SVG draws the chart. Without lines it is an empty field.
func (c Chart) SVG() []byte {
	x, y := c.scales()
	p := begin(c.Title, c.X, c.Y)
	for _, v := range y.ticks() {
		p.grid(left, p.y(y.at(v)), width-right, p.y(y.at(v)))
		p.text(left-6, p.y(y.at(v))+4, "end", number(v))
	}
	for _, v := range x.ticks() {
		p.grid(p.x(x.at(v)), top, p.x(x.at(v)), height-bottom)
		p.text(p.x(x.at(v)), height-bottom+16, "middle", number(v))
	}
	var names []string
	for i, l := range c.Lines {
		names = append(names, l.Name)
		p.printf(`<polyline fill="none" stroke-width="2" stroke="%s" points="`, colours[i%len(colours)])
		for j := range l.X {
			p.printf("%.1f,%.1f ", p.x(x.at(l.X[j])), p.y(y.at(l.Y[j])))
		}
		p.printf("\"/>\n")
	}
	return p.end(names)
}

func (c Chart) scales() (x, y scale) {
	x, y = scale{low: math.Inf(1), high: math.Inf(-1), log: c.LogX}, scale{}
	for _, l := range c.Lines {
		for i := range l.X {
			x.low, x.high, y.high = min(x.low, l.X[i]), max(x.high, l.X[i]), max(y.high, l.Y[i])
		}
	}
	if !c.LogX {
		x.low = min(0, x.low)
	}
	return x.usable(), y.usable()
}

// Part is a part of a bar.
type Part struct {
	Name  string
	Value float64
}

// Bar is a row of parts that add up. Parts of the same name have the same colour.
type Bar struct {
	Name  string
	Parts []Part
}

// Bars is a picture of bars that lie.
type Bars struct {
	Title, X string
	Bars     []Bar
}

// SVG draws the bars.
func (b Bars) SVG() []byte {
	const margin = 190 // for names
	p := begin(b.Title, b.X, "")
	var x scale
	for _, bar := range b.Bars {
		sum := 0.0
		for _, part := range bar.Parts {
			sum += part.Value
		}
		x.high = max(x.high, sum)
	}
	x = x.usable()
	place := func(v float64) float64 { return margin + x.at(v)*(width-right-margin) }
	for _, v := range x.ticks() {
		p.grid(place(v), top, place(v), height-bottom)
		p.text(place(v), height-bottom+16, "middle", number(v))
	}
	colour := map[string]string{}
	var names []string
	step := float64(height-top-bottom) / float64(max(len(b.Bars), 1))
	for i, bar := range b.Bars {
		y := top + step*float64(i)
		p.text(margin-8, y+step/2+4, "end", bar.Name)
		sum := 0.0
		for _, part := range bar.Parts {
			if colour[part.Name] == "" {
				colour[part.Name] = colours[len(names)%len(colours)]
				names = append(names, part.Name)
			}
			p.printf(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n",
				place(sum), y+step*0.2, max(place(sum+part.Value)-place(sum), 0), step*0.6, colour[part.Name])
			sum += part.Value
		}
	}
	return p.end(names)
}

// scale maps values to 0 … 1.
type scale struct {
	low, high float64
	log       bool
}

// usable is s with something between its ends.
func (s scale) usable() scale {
	if math.IsInf(s.low, 0) || math.IsInf(s.high, 0) || math.IsNaN(s.low+s.high) {
		s.low, s.high = 0, 1
	}
	if s.log && s.low <= 0 {
		s.log = false
	}
	if s.high <= s.low {
		s.high = s.low + 1
	}
	return s
}

func (s scale) at(v float64) float64 {
	if s.log {
		return math.Log(v/s.low) / math.Log(s.high/s.low)
	}
	return (v - s.low) / (s.high - s.low)
}

// ticks are round values of the scale: some five, or 1, 2 and 5 of each decade.
func (s scale) ticks() (list []float64) {
	if s.log {
		for decade := math.Pow(10, math.Floor(math.Log10(s.low))); decade <= s.high; decade *= 10 {
			for _, m := range []float64{1, 2, 5} {
				if v := m * decade; v >= s.low && v <= s.high {
					list = append(list, v)
				}
			}
		}
		return list
	}
	rough := (s.high - s.low) / 5
	step := math.Pow(10, math.Floor(math.Log10(rough)))
	for _, m := range []float64{5, 2} {
		if step*m <= rough {
			step *= m
			break
		}
	}
	for i := math.Ceil(s.low / step); i*step <= s.high; i++ {
		list = append(list, i*step)
	}
	return list
}

func number(v float64) string { return strconv.FormatFloat(v, 'g', 4, 64) }

// picture is an SVG that is being drawn.
type picture struct{ bytes.Buffer }

func begin(title, x, y string) *picture {
	p := &picture{}
	p.printf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	p.printf(`<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	p.printf(`<text x="%d" y="22" font-size="15">%s</text>`+"\n", left, html.EscapeString(title))
	p.text(width-right, height-bottom+34, "end", x)
	p.text(left-48, top-6, "start", y)
	return p
}

func (p *picture) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

func (p *picture) x(share float64) float64 { return left + share*(width-left-right) }
func (p *picture) y(share float64) float64 { return height - bottom - share*(height-top-bottom) }

func (p *picture) grid(x1, y1, x2, y2 float64) {
	p.printf(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="#ccc"/>`+"\n", x1, y1, x2, y2)
}

func (p *picture) text(x, y float64, anchor, text string) {
	p.printf(`<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, html.EscapeString(text))
}

// end writes the legend and returns the picture.
func (p *picture) end(names []string) []byte {
	const column, row = 220.0, 18.0
	for i, name := range names {
		x, y := left+column*float64(i%3), height-34+row*float64(i/3)
		p.printf(`<rect x="%.1f" y="%.1f" width="12" height="12" fill="%s"/>`+"\n", x, y-10, colours[i%len(colours)])
		p.text(x+18, y, "start", name)
	}
	p.printf("</svg>\n")
	return p.Bytes()
}
