package result

import (
	"bytes"
	"encoding/xml"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// good are results that meet every target.
func good() *Results {
	r := &Results{Host: Host{When: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Kernel: "6.0", Peers: []string{"runc 1", "crun 2"}}, Isolation: "confined\n"}
	add := func(what, unit string, values map[string]float64) {
		for _, subject := range []string{
			Floor, Sandboxd, NoLinger, Pooled, Unpooled, Runc, Crun, Tenth, Last, "10", Most, InitHandlers, Daemon, Kernel, WholeHost,
			Run, Serve, ServeAdmin, NoFunctions, FewFunctions, ManyFunctions, OneFunction, HundredFunctions, PlainStart, ControlDies, WorkerDies,
		} {
			if v, ok := values[subject]; ok {
				for n := range 3 {
					r.Add(what, subject, unit, v*float64(n+1)/2) // the median is v
				}
			}
		}
	}
	add(WarmOne, MS, map[string]float64{Floor: 0.4, Sandboxd: 0.44, NoLinger: 0.9})
	add(WarmSpaced, MS, map[string]float64{Floor: 0.5, Sandboxd: 0.8})
	add(WarmRate, PerSecond, map[string]float64{Floor: 2000, Sandboxd: 1800})
	add(ColdMain, MS, map[string]float64{Floor: 2, Pooled: 3, Unpooled: 20})
	add(ColdTotal, MS, map[string]float64{Floor: 6, Pooled: 8, Unpooled: 28, Run: 28, Serve: 30})
	for _, v := range []float64{10, 10, 10} {
		r.Add(ColdNext, Floor, MS, v)
		r.Add(ColdNext, Pooled, MS, v+2)
		r.Add(ColdNext, Unpooled, MS, v+25)
	}
	add(Freeze, MS, map[string]float64{Sandboxd: 0.1})
	add(Thaw, MS, map[string]float64{Sandboxd: 0.1})
	add(Lives, PerSecond, map[string]float64{Sandboxd: 50, Runc: 20, Crun: 60})
	add(Memory, MB, map[string]float64{InitHandlers: 1, Daemon: 0.5, Kernel: 0.5, WholeHost: 4})
	add(Creation, MS, map[string]float64{Tenth: 60, Last: 66})
	add(OneOfMany, MS, map[string]float64{"10": 1, Most: 1.1})
	add(OnlyOne, MS, map[string]float64{"10": 1, Most: 1})
	add(IdleCPU, Percent, map[string]float64{Sandboxd: 0.1})
	add(FirstByte, MS, map[string]float64{Floor: 0.5, Sandboxd: 1})
	add(WarmSmall, MS, map[string]float64{Run: 0.5, Serve: 0.6, ServeAdmin: 0.9})
	add(WarmLarge, MS, map[string]float64{Run: 90, Serve: 100, ServeAdmin: 100})
	add(Start, MS, map[string]float64{NoFunctions: 200, ManyFunctions: 300})
	add(Page, MS, map[string]float64{FewFunctions: 2, ManyFunctions: 3})
	add(AllMemory, MB, map[string]float64{ManyFunctions: 60})
	add(InTurn, MS, map[string]float64{OneFunction: 1, HundredFunctions: 1.2})
	add(Unavailable, MS, map[string]float64{PlainStart: 200, ControlDies: 150, WorkerDies: 250})
	add(StreamRate, MBPerSecond, map[string]float64{Floor: 500, Sandboxd: 450})
	r.Finish()
	return r
}

func TestRatioIsThatOfRounds(t *testing.T) {
	r := &Results{}
	for _, speed := range []float64{1, 3, 10} { // the host gets slower: the ratio stays
		r.Add(WarmOne, Floor, MS, speed, speed, speed*9)
		r.Add(WarmOne, Sandboxd, MS, 2*speed, 2*speed, speed)
	}
	r.Add(WarmOne, Sandboxd, MS) // nothing
	r.Finish()
	if got := r.Ratio(WarmOne, Sandboxd, Floor); got != 2 {
		t.Errorf("ratio %v, want 2", got)
	}
	if s := r.find(WarmOne, Floor); s.N != 9 || len(s.Rounds) != 3 || len(s.Quantiles) != 101 || s.Quantiles[100] != 90 {
		t.Errorf("series %+v", s)
	}
	if got := r.Ratio(WarmOne, Sandboxd, Runc); !math.IsNaN(got) {
		t.Errorf("ratio to what was not measured: %v", got)
	}
	if got := r.P50(Freeze, Sandboxd); !math.IsNaN(got) {
		t.Errorf("median of what was not measured: %v", got)
	}
}

func TestJudge(t *testing.T) {
	rows, missed := judge(good())
	if len(missed) > 0 {
		t.Errorf("good results miss %v: %+v", missed, rows)
	}
	if rows[0].Value != "2.00" || rows[0].Seen != "12.0 ms; floor 10.0 ms" {
		t.Errorf("P1: %+v", rows[0])
	}
	// What was not measured is missed.
	if _, missed := judge(&Results{}); len(missed) != len(targets()) {
		t.Errorf("no results miss %v only", missed)
	}
	for id, spoil := range map[string]func(*Results){
		"P1":  func(r *Results) { r.find(ColdNext, Pooled).Quantiles[99] = 18.1 },
		"P4":  func(r *Results) { r.find(WarmRate, Sandboxd).Rounds = []float64{1, 1, 1} },
		"P6":  func(r *Results) { r.find(Lives, Runc).Rounds = []float64{100, 100, 100} },
		"P12": func(r *Results) { r.find(Start, ManyFunctions).Quantiles[50] = 2001 },
		"P15": func(r *Results) { r.find(InTurn, HundredFunctions).Quantiles[99] = 4 },
		"P7":  func(r *Results) { r.find(Memory, Kernel).Quantiles[50] = 1.6 },
	} {
		r := good()
		spoil(r)
		if _, missed := judge(r); len(missed) != 1 || missed[0] != id {
			t.Errorf("spoilt %s: missed %v", id, missed)
		}
	}
}

func TestWrite(t *testing.T) {
	docs := t.TempDir()
	r := good()
	r.find(WarmOne, Sandboxd).Rounds = []float64{9, 9, 9}
	r.find(Freeze, Sandboxd).Quantiles[50] = 1
	if err := os.MkdirAll(filepath.Join(docs, Folder), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(docs, Folder, reasonsFile), []byte(`{"P3":"because of the moon"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(docs, ResultsFile)
	if err := r.Save(file); err != nil {
		t.Fatal(err)
	}
	again, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, results := range []*Results{r, again} { // also without measuring
		if err := Write(docs, results); err != nil {
			t.Fatal(err)
		}
		page, err := os.ReadFile(filepath.Join(docs, pageFile))
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			"| P3 | warm invocation, one connection, against the floor | ≤ 1.2 × | 0.44 ms; floor 0.40 ms | 22.5 | **missed** |",
			"because of the moon", "**P5**: No reason is on record yet.", "confined", "runc 1, crun 2", "2026-01-02 03:04 UTC",
			"with `--linger=0`, where each pays a freeze and a thaw, 0.90 ms",
		} {
			if !strings.Contains(string(page), want) {
				t.Errorf("the page has no %q", want)
			}
		}
		for name := range pictures(results) {
			if !strings.Contains(string(page), Folder+"/"+name) {
				t.Errorf("the page does not show %s", name)
			}
			wantXML(t, filepath.Join(docs, Folder, name))
		}
	}
	var text bytes.Buffer
	if err := Print(&text, r); err != nil || !strings.Contains(text.String(), NoLinger) {
		t.Errorf("Print: %v\n%s", err, &text)
	}
}

func wantXML(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
}

func TestBaseline(t *testing.T) {
	path := filepath.Join(t.TempDir(), "baseline.json")
	if _, err := LoadBaseline(path); err == nil {
		t.Error("a baseline that is not there was read")
	}
	if err := BaselineOf(good()).Save(path); err != nil {
		t.Fatal(err)
	}
	b, err := LoadBaseline(path)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]Ratio{}
	for _, x := range Ratios(good()) {
		ids[x.ID] = x
		if err := b.Check(x); err != nil {
			t.Errorf("against itself: %v", err)
		}
	}
	if len(ids) != 6 {
		t.Errorf("%d ratios: %v", len(ids), ids)
	}
	for _, c := range []struct {
		id     string
		factor float64
		bad    bool
	}{
		{"P3", 1.55, false}, {"P3", 1.65, true}, {"P3", 0.1, false},
		{"P4", 0.65, false}, {"P4", 0.6, true}, {"P4", 10, false},
		{"P1", 2.4, false}, {"P1", 2.6, true}, {"P6 runc", 0.45, false}, {"P6 runc", 0.35, true},
	} {
		x := ids[c.id]
		x.Value *= c.factor
		if err := b.Check(x); (err != nil) != c.bad {
			t.Errorf("%s times %v: %v", c.id, c.factor, err)
		}
	}
	if err := (Baseline{}).Check(ids["P3"]); err == nil {
		t.Error("a ratio without a baseline passes")
	}
	if got := Ratios(&Results{}); len(got) != 0 {
		t.Errorf("ratios of nothing: %v", got)
	}
}
