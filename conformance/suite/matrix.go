package suite

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// The columns of what a client does, in order; others follow.
var matrixColumns = []string{"succeeds", "fails", "streams", "logs JSON", "times out"}

// The tables of the clients matrix: the beginning of a test's name, the title, and the first
// columns.
var matrixTables = []struct {
	test, title string
	columns     []string
}{
	{"TestClientRuntime", "Runtime client", matrixColumns},
	{"TestClientCaller", "Caller", matrixColumns},
	{"TestClientPair", "Runtime client, called by", nil},
}

// Matrix reads the events of `go test -json` and writes the clients matrix as a section
// of the documentation. Tests TestClientRuntime…/ROW/COLUMN, TestClientCaller…/ROW/COLUMN and
// TestClientPair/ROW/COLUMN are its cells; a row may have slashes in it. It is an error if
// there are none.
func Matrix(events io.Reader, w io.Writer) error {
	outcomes := make(map[string]string)
	for d := json.NewDecoder(events); ; {
		var e struct{ Action, Test string }
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read the events of the tests: %w", err)
		}
		if verdict := map[string]string{"pass": "passed", "fail": "**failed**", "skip": "skipped"}[e.Action]; verdict != "" {
			outcomes[e.Test] = verdict
		}
	}
	var b strings.Builder
	b.WriteString("## Official clients\n\nUnmodified, as the registries have them, each as a function in sandboxes of its own: `make conformance-clients`. " +
		"A dash stands where a client has no such thing.\n")
	for _, table := range matrixTables {
		if err := writeMatrix(&b, table.test, table.title, table.columns, outcomes); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// writeMatrix writes one table.
func writeMatrix(b *strings.Builder, test, title string, first []string, outcomes map[string]string) error {
	cells, rows, columns := make(map[[2]string]string), []string(nil), first
	for name, verdict := range outcomes {
		if !strings.HasPrefix(name, test) || !isLeaf(name, outcomes) {
			continue
		}
		_, rest, _ := strings.Cut(name, "/")
		end := strings.LastIndexByte(rest, '/')
		if end < 0 {
			continue
		}
		row, column := rest[:end], strings.ReplaceAll(rest[end+1:], "_", " ")
		if !slices.Contains(rows, row) {
			rows = append(rows, row)
		}
		if !slices.Contains(columns, column) {
			columns = append(slices.Clone(columns), column)
		}
		cells[[2]string{row, column}] = verdict
	}
	if len(rows) == 0 {
		return fmt.Errorf("no test %s… is among the events; run make conformance-clients", test)
	}
	slices.Sort(rows)
	slices.Sort(columns[len(first):])
	fmt.Fprintf(b, "\n| %s | %s |\n|%s\n", title, strings.Join(columns, " | "), strings.Repeat("---|", len(columns)+1))
	for _, row := range rows {
		fmt.Fprintf(b, "| `%s` |", row)
		for _, column := range columns {
			verdict := cells[[2]string{row, column}]
			if verdict == "" {
				verdict = "–"
			}
			fmt.Fprintf(b, " %s |", verdict)
		}
		b.WriteString("\n")
	}
	return nil
}

// isLeaf reports whether a test has no subtests.
func isLeaf(name string, tests map[string]string) bool {
	for other := range tests {
		if strings.HasPrefix(other, name+"/") {
			return false
		}
	}
	return true
}
