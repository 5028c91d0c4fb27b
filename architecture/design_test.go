package architecture

import (
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// TestDesignSaysTheSame compares the table of docs/design.md with the arrows: it names
// every package, and what a package imports is in its own row or in one below it.
func TestDesignSaysTheSame(t *testing.T) {
	text, err := os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "| package |")
	if !ok {
		t.Fatal("docs/design.md has no table of packages")
	}
	table, _, _ := strings.Cut(rest, "\n\n")
	row, used := map[string]int{}, map[string]bool{}
	for n, line := range strings.Split(table, "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cell, -1) {
			row[name[1]] = n
		}
	}
	// place is the row of a package: its own, or that of "folder/…".
	place := func(pkg string) int {
		name := pkg
		for folder := pkg; row[name] == 0 && folder != "."; folder = path.Dir(folder) {
			name = folder + "/…"
		}
		used[name] = true
		return row[name]
	}
	for pkg, imports := range allowed {
		own := place(pkg)
		if own == 0 {
			t.Errorf("docs/design.md does not say what package %s is responsible for", pkg)
		}
		for other := range imports {
			if place(other) < own {
				t.Errorf("docs/design.md has %s below %s, which it imports: move a row", pkg, other)
			}
		}
	}
	for name := range row {
		if !used[name] {
			t.Errorf("docs/design.md has a row for %s, which does not exist", name)
		}
	}
}
