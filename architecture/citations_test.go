package architecture

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// The papers that code cites.
const (
	specification = "docs/spec/LAMBDA_ENVIRONMENT.md"
	requirements  = "docs/requirements.md"
	decisions     = "docs/decisions"
)

// unchecked are files that cite papers of others, and tests that plant wrong citations.
var unchecked = []string{"LICENSE", "go.sum", "tools/go.sum", "architecture/citations_test.go", "architecture/decisions_test.go"}

// templates are pages whose links are those of the place that they are written to.
var templates = map[string]string{"bench/result/page.md": "docs/benchmarks.md"}

// papers holds what can be cited, and the paths that a link or a comment can name.
type papers struct {
	ids      map[string]bool   // of the specification and of the requirements
	sections map[string]bool   // of the specification: "1" and "1.8"
	records  map[string]string // decision records: number to file name, "0012" to "0012-egress.md"
	paths    map[string]bool   // every file and folder of the project
}

// TestCitations reads every file of the project and wants that each id, section, decision
// record and page that it cites exists, and that it cites none in a form that names no
// paper.
func TestCitations(t *testing.T) {
	texts := projectTexts(t)
	p := readPapers(t, texts)
	cited := 0
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		if slices.Contains(unchecked, name) {
			continue
		}
		place := name
		if to := templates[name]; to != "" {
			place = to
		}
		wrong, n := p.check(name, place, texts[name])
		cited += n
		for _, w := range wrong {
			t.Error(w)
		}
	}
	if cited < 1000 {
		t.Errorf("%d citations found in the project, want 1,000 and more: the test is blind", cited)
	}
}

// TestWrongCitationsAreFound plants wrong citations, and right ones beside them.
func TestWrongCitationsAreFound(t *testing.T) {
	p := &papers{
		ids:      map[string]bool{"RT-01": true, "RT-02": true, "SEC-20": true, "S-01": true},
		sections: map[string]bool{"1": true, "1.8": true, "2": true},
		records:  map[string]string{"0012": "0012-egress.md"},
		paths:    map[string]bool{"docs": true, "docs/design.md": true, "docs/decisions": true, "docs/decisions/0012-egress.md": true},
	}
	for _, c := range []struct{ name, text, want string }{
		{"a.go", "// RT-01, RT-02: what comes (SEC-20, S-01).", ""},
		{"a.go", "// RT-03 is what comes.", "RT-03"},
		{"a.go", "// RT-01/03 and RT-02", "RT-03"},
		{"a.go", "// RT-01…RT-04", "RT-04"},
		{"a.go", "// as SEC-21 asks", "SEC-21"},
		{"a.go", "// as S-14 asks", "S-14"},
		{"a.go", "// the table of section 1.8, sections 1 and 2", ""},
		{"a.go", "// the table of section 1.9", "1.9"},
		{"a.go", "// the tables of sections 1.8 and\n// 1.9", "1.9"},
		{"a.go", "// RFC 9110, section 5.6.2", ""},
		{"a.go", "// (docs/decisions/0012)", ""},
		{"a.go", "// (docs/decisions/0013)", "0013"},
		{"a.go", "// (docs/decisions/0012-other.md)", "0012-other.md"},
		{"a.go", "// see docs/design.md", ""},
		{"a.go", "// see docs/other.md", "docs/other.md"},
		{"a.go", "// (decision 12)", "decision 12"},
		{"a.go", "// (ARCHITECTURE\n// decision 12)", "ARCHITECTURE"},
		{"a.go", "// (architecture\n\t// decision 12)", "decision 12"},
		{"a.go", "// Decisions 12 and 13", "Decisions 12"},
		{"run.sh", "# (decision\n# 12)", "decision 12"},
		{"a.go", "// REQUIREMENTS section 1", "REQUIREMENTS"},
		{"a.go", "// (issue 2)", "issue 2"},
		{"a.go", "// Threat A4: a page", "Threat A4"},
		{"docs/a.md", "see [decision 12](decisions/0012-egress.md), [12](decisions/0012-egress.md#names)", ""},
		{"docs/a.md", "see [decision 13](decisions/0012-egress.md)", "decision 13"},
		{"docs/a.md", "see [13](decisions/0012-egress.md)", "[13]"},
		{"docs/a.md", "see decision 12", "decision 12"},
		{"docs/a.md", "see [the design](design.md) and [a page](https://example.com/x.md)", ""},
		{"docs/a.md", "see [the design](other.md)", "other.md"},
		{"docs/decisions/a.md", "see [decision 12](0012-egress.md) and [the design](../design.md)", ""},
	} {
		wrong, n := p.check(c.name, c.name, c.text)
		found := strings.Join(wrong, "\n")
		if (found != "") != (c.want != "") || !strings.Contains(found, c.want) || n == 0 {
			t.Errorf("%s with %q: %d citations, found %q, want %q", c.name, c.text, n, found, c.want)
		}
	}
}

var (
	// idForm is an id of a paper with what continues it: TL-32…37, RT-28/29.
	idForm   = regexp.MustCompile(`\b(RT|EX|TL|LC|INV|ENV|LOG|FE|SUP|RIC|DEV|ACC|UNC|SEC|S)-(\d+)((?:[…–/](?:[A-Z]+-)?\d\d\b)*)`)
	nextForm = regexp.MustCompile(`[…–/](?:([A-Z]+)-)?(\d\d)`)
	// definition begins a line of a paper that says what an id means.
	definition = regexp.MustCompile(`(?m)^(?:- |\| )((?:RT|EX|TL|LC|INV|ENV|LOG|FE|SUP|RIC|DEV|ACC|UNC|SEC|S)-\d+) `)
	heading    = regexp.MustCompile(`(?m)^##+ (\d+(?:\.\d+)?)\.? `)
	// sectionForm is a section of the specification, unless an RFC's number precedes it.
	sectionForm = regexp.MustCompile(`(?i)(RFC \d+,? +)?\bsections? +(\d+(?:\.\d+)*)((?:(?:, *| +and +| +to +)\d+(?:\.\d+)*)*)`)
	number      = regexp.MustCompile(`\d+(?:\.\d+)*`)
	recordForm  = regexp.MustCompile(`\bdecisions/(\d+)\b`)
	recordFile  = regexp.MustCompile(`\b\d{4}-[a-z][a-z0-9-]*\.md\b`)
	pageForm    = regexp.MustCompile(`\bdocs/[A-Za-z0-9_./-]+\.(?:md|json|svg)\b`)
	// linkForm is a link of Markdown.
	linkForm = regexp.MustCompile(`\[([^\[\]]*)\]\(([^()\s#]*)(?:#[^()\s]*)?\)`)
	linkText = regexp.MustCompile(`^(?:[Dd]ecision +)?(\d+)$`)
	// oldForms cite what the project does not have, or not by a name that can be found.
	oldForms = regexp.MustCompile(`\b(?:ARCHITECTURE|REQUIREMENTS)\b|\b(?:NEXT|PROSE|STYLE)\.md\b|\b[Dd]ecisions? +\d+|\b[Ii]ssues? +\d{1,3}\b|\bThreat +A\d`)
	// lineEnd is what separates the words of a comment that goes on in the next line.
	lineEnd = regexp.MustCompile(`\n[ \t]*(?://|#|\*)?[ \t]*`)
)

// check returns what is wrong with the citations in the text of a file, and how many
// there are. Links of a page begin at place.
func (p *papers) check(name, place, text string) (wrong []string, cited int) {
	// Of the same length, so that places are those of the text.
	line := lineEnd.ReplaceAllStringFunc(text, func(s string) string { return strings.Repeat(" ", len(s)) })
	report := func(at int, format string, args ...any) {
		wrong = append(wrong, fmt.Sprintf("%s:%d: %s", name, 1+strings.Count(text[:at], "\n"), fmt.Sprintf(format, args...)))
	}
	want := func(known bool, at int, what, where string) {
		cited++
		if !known {
			report(at, "cites %s, which %s does not have", what, where)
		}
	}
	for _, m := range idForm.FindAllStringSubmatchIndex(line, -1) {
		prefix := line[m[2]:m[3]]
		where := specification
		if prefix == "SEC" || prefix == "S" {
			where = requirements
		}
		want(p.ids[line[m[2]:m[5]]], m[0], line[m[2]:m[5]], where)
		for _, next := range nextForm.FindAllStringSubmatch(line[m[6]:m[7]], -1) {
			if next[1] != "" {
				prefix = next[1]
			}
			want(p.ids[prefix+"-"+next[2]], m[0], prefix+"-"+next[2], where)
		}
	}
	for _, m := range sectionForm.FindAllStringSubmatchIndex(line, -1) {
		if m[2] >= 0 {
			cited++
			continue
		}
		for _, n := range number.FindAllString(line[m[4]:m[7]], -1) {
			want(p.sections[n], m[0], "section "+n, specification)
		}
	}
	for _, m := range recordForm.FindAllStringSubmatchIndex(line, -1) {
		want(p.records[line[m[2]:m[3]]] != "", m[0], line[m[0]:m[1]], "the project")
	}
	for _, m := range recordFile.FindAllStringIndex(line, -1) {
		file := line[m[0]:m[1]]
		want(p.records[file[:4]] == file, m[0], file, decisions)
	}
	for _, m := range pageForm.FindAllStringIndex(line, -1) {
		want(p.paths[line[m[0]:m[1]]], m[0], line[m[0]:m[1]], "the project")
	}
	if strings.HasSuffix(name, ".md") {
		line = p.checkLinks(place, line, want, report)
	}
	for _, m := range oldForms.FindAllStringIndex(line, -1) {
		cited++
		report(m[0], "%q cites nothing of the project: cite docs/decisions/NNNN, or an id such as SEC-20 or RT-01",
			strings.Join(strings.Fields(line[m[0]:m[1]]), " "))
	}
	return wrong, cited
}

// checkLinks checks the links of a page, and that one whose text is the number of a
// decision leads to its record. It returns line with the texts of links blanked out.
func (p *papers) checkLinks(place, line string, want func(bool, int, string, string), report func(int, string, ...any)) string {
	for _, m := range linkForm.FindAllStringSubmatchIndex(line, -1) {
		text, target := line[m[2]:m[3]], line[m[4]:m[5]]
		if target == "" || strings.Contains(target, ":") { // a place in the page, another site
			want(true, m[0], target, "")
			continue
		}
		want(p.paths[path.Join(path.Dir(place), target)], m[0], target, "the project")
		if n := linkText.FindStringSubmatch(strings.Join(strings.Fields(text), " ")); n != nil && !strings.HasPrefix(path.Base(target), fmt.Sprintf("%04s-", n[1])) {
			report(m[0], "the link [%s] leads to %s", text, target)
		}
		line = line[:m[2]] + strings.Repeat(" ", m[3]-m[2]) + line[m[3]:]
	}
	return line
}

// readPapers finds out what can be cited.
func readPapers(t *testing.T, texts map[string]string) *papers {
	t.Helper()
	p := &papers{ids: map[string]bool{}, sections: map[string]bool{}, records: map[string]string{}, paths: map[string]bool{}}
	for _, page := range []string{specification, requirements} {
		found := definition.FindAllStringSubmatch(texts[page], -1)
		for _, m := range found {
			if p.ids[m[1]] {
				t.Errorf("%s defines %s, which is defined already", page, m[1])
			}
			p.ids[m[1]] = true
		}
		if len(found) < 50 {
			t.Fatalf("%s defines %d ids only", page, len(found))
		}
	}
	for _, m := range heading.FindAllStringSubmatch(texts[specification], -1) {
		p.sections[m[1]] = true
	}
	for name := range texts {
		if dir, file := path.Split(name); dir == decisions+"/" && recordFile.MatchString(file) {
			if other := p.records[file[:4]]; other != "" {
				t.Errorf("%s and %s have one number: give the newer one another", other, file)
			}
			p.records[file[:4]] = file
		}
		for ; name != "."; name = path.Dir(name) {
			p.paths[name] = true
		}
	}
	return p
}

// projectTexts reads the text files of the project by their paths below its root. What
// make builds, files that are not text, and hidden folders but .ci are left out.
func projectTexts(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	tree := os.DirFS("..")
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if hidden := strings.HasPrefix(entry.Name(), ".") && name != "." && name != ".ci"; hidden || name == "bin" {
				return fs.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || strings.HasSuffix(name, ".test") {
			return nil
		}
		text, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		if utf8.Valid(text) && !strings.Contains(string(text), "\x00") {
			texts[name] = string(text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}
