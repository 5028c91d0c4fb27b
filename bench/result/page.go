package result

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
)

// The files of the page, below its folder.
const (
	pageFile    = "benchmarks.md"
	Folder      = "benchmarks"
	ResultsFile = "results.json"
	reasonsFile = "reasons.json"
)

//go:embed page.md
var pageText string

// row is a check as the page shows it.
type row struct{ ID, What, Wanted, Seen, Value, Outcome string }

// Write writes the page and its pictures to the folder docs: docs/benchmarks.md, and
// SVGs below docs/benchmarks. Why a target is missed, and what was tried, a person has
// written into reasons.json there: an object of texts by id.
func Write(docs string, r *Results) error {
	reasons := map[string]string{}
	b, err := os.ReadFile(filepath.Join(docs, Folder, reasonsFile))
	if err == nil {
		err = json.Unmarshal(b, &reasons)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", reasonsFile, err)
	}
	if err := os.MkdirAll(filepath.Join(docs, Folder), 0o755); err != nil {
		return err
	}
	for name, svg := range pictures(r) {
		if err := os.WriteFile(filepath.Join(docs, Folder, name), svg, 0o644); err != nil {
			return err
		}
	}
	text, err := page(r, reasons)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(docs, pageFile), text, 0o644)
}

// page renders the text.
func page(r *Results, reasons map[string]string) ([]byte, error) {
	t, err := template.New("page").Funcs(template.FuncMap{
		"figure": figure,
		"at":     func(list []float64, i int) float64 { return list[i] },
		"ratio":  func(subject string) float64 { return r.Ratio(Lives, Sandboxd, subject) },
		"trim":   strings.TrimSpace,
	}).Parse(pageText)
	if err != nil {
		return nil, err
	}
	rows, missed := judge(r)
	var why []row
	for _, id := range missed {
		text := reasons[id]
		if text == "" {
			text = "No reason is on record yet."
		}
		why = append(why, row{ID: id, What: text})
	}
	var b strings.Builder
	err = t.Execute(&b, map[string]any{
		"R": r, "Rows": rows, "Missed": why,
		"Linger": r.P50(WarmOne, Sandboxd), "NoLinger": r.P50(WarmOne, NoLinger),
		"Spaced": r.P50(WarmSpaced, Sandboxd), "SpacedFloor": r.P50(WarmSpaced, Floor),
		"WholeHost": r.P50(Memory, WholeHost), "Lives": r.all(Lives),
	})
	return []byte(b.String()), err
}

// judge compares the results with the targets. A target is missed if one of its checks is.
func judge(r *Results) (rows []row, missed []string) {
	for _, t := range targets() {
		failed := false
		for i, c := range t.checks {
			w := row{Wanted: c.wanted, Seen: c.seen(r), Value: figure(c.value(r)), Outcome: "met"}
			if i == 0 {
				w.ID, w.What = t.id, t.what
			}
			if !c.met(r) {
				w.Outcome, failed = "**missed**", true
			}
			rows = append(rows, w)
		}
		if failed {
			missed = append(missed, t.id)
		}
	}
	return rows, missed
}
