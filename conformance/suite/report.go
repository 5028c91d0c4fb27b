package suite

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// Report is the outcome of a run, with what the specification says.
type Report struct {
	Target       string
	Requirements []Requirement
	Results      []Result
	Coverage     map[string]string // tests of requirements that no case checks
	Pending      map[string]string
	Clients      string // the section of the clients matrix, for the page; "" for none
}

// row is a requirement with what is known of it.
type row struct {
	Requirement
	Result
	tests   string
	checked bool // a case ran
}

// sections gathers the rows by section, in the order of the specification. Requirements
// that were not run and have no other cover are left out.
func (r *Report) sections() (titles []string, rows map[string][]row) {
	results := make(map[string]Result)
	for _, res := range r.Results {
		results[res.ID] = res
	}
	rows = make(map[string][]row)
	for _, q := range r.Requirements {
		res, checked := results[q.ID]
		tests := r.Coverage[q.ID]
		if !checked && tests == "" && r.Pending[q.ID] == "" {
			continue
		}
		if !slices.Contains(titles, q.Section) {
			titles = append(titles, q.Section)
		}
		rows[q.Section] = append(rows[q.Section], row{q, res, tests, checked})
	}
	return titles, rows
}

// Totals counts the results by status.
func (r *Report) Totals() map[Status]int {
	n := make(map[Status]int)
	for _, res := range r.Results {
		n[res.Status]++
	}
	return n
}

// Bad reports whether something makes the run fail.
func (r *Report) Bad() bool {
	return slices.ContainsFunc(r.Results, func(res Result) bool { return res.Status.Bad() })
}

// Summary is one line of totals.
func (r *Report) Summary() string {
	n := r.Totals()
	return fmt.Sprintf("%d passed, %d failed, %d not supported (%d of them pending)",
		n[Passed], n[Failed]+n[Surprise], n[NotSupported]+n[Pending], n[Pending])
}

// Text prints the table by section: numbers, and each requirement that did not pass.
func (r *Report) Text(w io.Writer) error {
	titles, rows := r.sections()
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "SECTION\tPASSED\tFAILED\tNOT SUPPORTED")
	var details strings.Builder
	for _, title := range titles {
		var passed, failed, without int
		for _, row := range rows[title] {
			switch {
			case !row.checked:
				continue
			case row.Status == Passed:
				passed++
				continue
			case row.Status.Bad():
				failed++
			default:
				without++
			}
			fmt.Fprintf(&details, "%s  %s: %s\n", row.Requirement.ID, row.Status, row.Seen)
		}
		if passed+failed+without > 0 {
			fmt.Fprintf(tw, "%s\t%d\t%d\t%d\n", title, passed, failed, without)
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n%s\n", details.String(), r.Summary())
	return err
}

// JSON writes the results for programs.
func (r *Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(map[string]any{"target": r.Target, "totals": r.Totals(), "results": r.Results})
}

// Events writes the results in the form of `go test -json`, a test for each case, for
// what adds up the tests of a project. Not supported and pending count as skipped.
func (r *Report) Events(w io.Writer) error {
	e := json.NewEncoder(w)
	for _, res := range r.Results {
		action := "skip"
		switch {
		case res.Status == Passed:
			action = "pass"
		case res.Status.Bad():
			action = "fail"
		}
		event := struct{ Action, Package, Test string }{action, "conformance", res.ID}
		if err := e.Encode(event); err != nil {
			return err
		}
	}
	return nil
}

// Markdown writes the page of the documentation.
func (r *Report) Markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# Conformance of %s\n\nWritten by `conformance run`: do not edit. %s.\n\n", r.Target, r.Summary())
	b.WriteString("*Passed* and *failed* are cases of the conformance suite, which drives the environment over the wire. Requirements that it cannot see name the Go tests that cover them. " +
		"*Not applicable* speaks of what does not exist here, and *pending* is known to be missing.\n")
	if r.Clients != "" {
		b.WriteString("\n" + r.Clients)
	}
	titles, rows := r.sections()
	for _, title := range titles {
		fmt.Fprintf(&b, "\n## %s\n\n| id | requirement | outcome |\n|---|---|---|\n", title)
		for _, row := range rows[title] {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", row.Requirement.ID, cell(row.Text, 110), row.outcome(r.Pending))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (row row) outcome(pending map[string]string) string {
	switch {
	case row.checked && row.Status == Passed:
		return "passed"
	case row.checked:
		return string(row.Status) + ": " + cell(row.Seen, 160)
	case strings.HasPrefix(row.tests, NotApplicable):
		return "not applicable: " + strings.TrimPrefix(row.tests, NotApplicable)
	case row.tests != "":
		return "`" + strings.Join(strings.Fields(row.tests), "` `") + "`"
	}
	return "pending: " + cell(pending[row.Requirement.ID], 160)
}

// cell makes text fit into a cell of a table.
func cell(text string, most int) string {
	text = strings.NewReplacer("\n", " ", "|", `\|`, "<", "&lt;").Replace(text)
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "…"
	}
	if strings.Count(text, "`")%2 == 1 { // cut within code
		text += "`"
	}
	return text
}
