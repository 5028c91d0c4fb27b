package plot

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"slices"
	"strings"
	"testing"
)

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		s    scale
		want []float64
	}{
		{scale{high: 1}, []float64{0, 0.2, 0.4, 0.6, 0.8, 1}},
		{scale{high: 500}, []float64{0, 100, 200, 300, 400, 500}},
		{scale{high: 13}, []float64{0, 2, 4, 6, 8, 10, 12}},
		{scale{low: 0.3, high: 12, log: true}, []float64{0.5, 1, 2, 5, 10}},
	} {
		got := c.s.ticks()
		if !slices.EqualFunc(got, c.want, func(a, b float64) bool { return math.Abs(a-b) < 1e-9 }) {
			t.Errorf("%+v: %v, want %v", c.s, got, c.want)
		}
	}
}

func TestPictures(t *testing.T) {
	chart := Chart{Title: "a <b>", X: "ms", Y: "%", Lines: []Line{{Name: "one & two", X: []float64{0, 5, 10}, Y: []float64{0, 50, 100}}}}
	log := chart
	log.LogX, log.Lines = true, []Line{{Name: "one & two", X: []float64{1, 100}, Y: []float64{0, 1}}}
	bars := Bars{Title: "a <b>", X: "ms", Bars: []Bar{
		{"first", []Part{{"one & two", 1}, {"other", 2}}}, {"second", []Part{{"one & two", 3}, {"other", 1}}},
	}}
	for name, svg := range map[string][]byte{"chart": chart.SVG(), "log": log.SVG(), "bars": bars.SVG()} {
		wantXML(t, name, svg)
		if !bytes.Contains(svg, []byte("one &amp; two")) || !bytes.Contains(svg, []byte("a &lt;b&gt;")) {
			t.Errorf("%s: no name or title:\n%s", name, svg)
		}
	}
	if !strings.Contains(string(chart.SVG()), `points="64.0,316.0 384.0,178.0 704.0,40.0 "`) {
		t.Errorf("the line is not from corner to corner:\n%s", chart.SVG())
	}
	// What was not measured gives an empty picture, and none with numbers that are none.
	for name, svg := range map[string][]byte{
		"no lines": Chart{LogX: true}.SVG(), "no bars": Bars{}.SVG(),
		"a point": Chart{Lines: []Line{{X: []float64{0}, Y: []float64{0}}}}.SVG(),
		"zero":    Chart{LogX: true, Lines: []Line{{X: []float64{0, 1}, Y: []float64{1, 1}}}}.SVG(),
	} {
		wantXML(t, name, svg)
		if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
			t.Errorf("%s:\n%s", name, svg)
		}
	}
}

func wantXML(t *testing.T, name string, svg []byte) {
	t.Helper()
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, svg)
		}
	}
}
