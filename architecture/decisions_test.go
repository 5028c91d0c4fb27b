package architecture

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// firstWhole is the first decision record that must have every part. Those before it
// are older than the form, and are not rewritten.
const firstWhole = 26

// recordParts are the parts of a decision record, in their order.
var recordParts = []string{"Status", "Context", "Decision", "Rejected", "Consequences"}

var (
	recordTitle = regexp.MustCompile(`^# (\d+)\. (.+)\n`)
	// statusForm is how a record's status begins: what it is, and since when.
	statusForm = regexp.MustCompile(`^(Proposed|Accepted|Accepted in part|Superseded), \d{4}-\d{2}-\d{2}\.`)
	// indexRow is a line of the index: number, file, title, status, what it says.
	indexRow = regexp.MustCompile(`(?m)^\| \[(\d{4})\]\(([^)]+)\) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$`)
)

// record is a decision record as the index must have it.
type record struct{ file, title, status string }

// TestDecisionRecords wants of each record its number and title, its status with a date,
// and its parts in order.
func TestDecisionRecords(t *testing.T) {
	texts := projectTexts(t)
	for number, file := range readPapers(t, texts).records {
		if _, wrong := readRecord(number, file, texts[decisions+"/"+file]); wrong != "" {
			t.Errorf("%s/%s %s", decisions, file, wrong)
		}
	}
}

// TestDecisionIndex wants that the index lists exactly the records that there are, in
// the order of their numbers, with their titles and statuses.
func TestDecisionIndex(t *testing.T) {
	texts := projectTexts(t)
	records := map[string]record{}
	for number, file := range readPapers(t, texts).records {
		records[number], _ = readRecord(number, file, texts[decisions+"/"+file])
	}
	for _, wrong := range checkIndex(texts[decisions+"/README.md"], records) {
		t.Errorf("%s/README.md %s", decisions, wrong)
	}
}

// TestWrongRecordsAreFound plants what the two tests above look for.
func TestWrongRecordsAreFound(t *testing.T) {
	const whole = "# 26. Title\n\n**Status.** Accepted, 2026-12-01.\n\n**Context.** c\n\n**Decision.** d\n\n**Rejected.** r\n\n**Consequences.** s\n"
	for _, c := range []struct{ old, new, want string }{
		{"", "", ""},
		{"# 26. Title", "# 27. Title", "title"},
		{"Accepted, 2026-12-01", "Accepted", "status"},
		{"Accepted, 2026", "Fine, 2026", "status"},
		{"**Rejected.**", "Rejected:", "Rejected"},
		{"**Context.** c\n\n**Decision.** d", "**Decision.** d\n\n**Context.** c", "Decision"},
	} {
		if _, wrong := readRecord("0026", "0026-title.md", strings.Replace(whole, c.old, c.new, 1)); (wrong != "") != (c.want != "") || !strings.Contains(wrong, c.want) {
			t.Errorf("record with %q for %q: found %q, want %q", c.new, c.old, wrong, c.want)
		}
	}
	records := map[string]record{"0001": {"0001-a.md", "A", "Accepted"}, "0002": {"0002-b.md", "B", "Superseded"}}
	const a, b = "| [0001](0001-a.md) | A | Accepted | what a says |\n", "| [0002](0002-b.md) | B | Superseded | what b says |\n"
	for index, want := range map[string]string{
		a + b:     "",
		a:         "0002",
		a + b + b: "twice",
		b + a:     "order",
		a + strings.Replace(b, "| B |", "| X |", 1):          "title",
		a + strings.Replace(b, "Superseded", "Accepted", 1):  "status",
		a + strings.Replace(b, "0002-b.md", "0002-x.md", 1):  "0002-b.md",
		a + b + "| [0003](0003-c.md) | C | Accepted | c |\n": "0003",
	} {
		if wrong := strings.Join(checkIndex(index, records), "\n"); (wrong != "") != (want != "") || !strings.Contains(wrong, want) {
			t.Errorf("index %q: found %q, want %q", index, wrong, want)
		}
	}
}

// readRecord takes a record apart, and says what is wrong with it.
func readRecord(number, file, text string) (r record, wrong string) {
	r.file = file
	n, _ := strconv.Atoi(number)
	title := recordTitle.FindStringSubmatch(text)
	if title == nil || title[1] != strconv.Itoa(n) {
		return r, "does not begin with its number and title, as in '# " + strconv.Itoa(n) + ". What was decided'"
	}
	r.title = title[2]
	_, status, _ := strings.Cut(text, "\n**Status.** ")
	m := statusForm.FindStringSubmatch(status)
	if m == nil {
		return r, "has no status with its date, as in '**Status.** Accepted, 2026-12-01.'"
	}
	r.status = m[1]
	if n < firstWhole {
		return r, ""
	}
	at := 0
	for _, part := range recordParts {
		i := strings.Index(text[at:], "\n**"+part+".**")
		if i < 0 {
			return r, "has no part '**" + part + ".**' after the parts before it; want " + strings.Join(recordParts, ", ")
		}
		at += i + 1
	}
	return r, ""
}

// checkIndex compares the index with the records by their numbers.
func checkIndex(index string, records map[string]record) (wrong []string) {
	seen, last := map[string]bool{}, ""
	for _, m := range indexRow.FindAllStringSubmatch(index, -1) {
		number, r := m[1], records[m[1]]
		switch {
		case seen[number]:
			wrong = append(wrong, "lists "+number+" twice")
		case r.file == "":
			wrong = append(wrong, "lists "+number+", which does not exist")
		case m[2] != r.file:
			wrong = append(wrong, "has the link "+m[2]+" for "+r.file)
		case m[3] != r.title:
			wrong = append(wrong, "has the title '"+m[3]+"' for "+number+", whose title is '"+r.title+"'")
		case m[4] != r.status:
			wrong = append(wrong, "has the status '"+m[4]+"' for "+number+", whose status is '"+r.status+"'")
		case number < last:
			wrong = append(wrong, "is out of order at "+number)
		}
		seen[number], last = true, number
	}
	for _, number := range slices.Sorted(maps.Keys(records)) {
		if !seen[number] {
			wrong = append(wrong, "does not list "+number+" ("+records[number].file+")")
		}
	}
	return wrong
}
