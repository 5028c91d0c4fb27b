package suite

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
)

// Table reads lines of an id and a text. Empty lines and those that begin with # do not
// count; an id that stands twice, or without a text, is an error.
func Table(text string) (map[string]string, error) {
	table := make(map[string]string)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		id, rest, _ := strings.Cut(line, " ")
		if rest = strings.TrimSpace(rest); rest == "" {
			return nil, fmt.Errorf("line %q has an id and no text", line)
		}
		if table[id] != "" {
			return nil, fmt.Errorf("%s is listed twice", id)
		}
		table[id] = rest
	}
	return table, nil
}

// NotApplicable begins, in place of tests, the reason why a requirement has none: what
// it speaks of does not exist here.
const NotApplicable = "n/a: "

// Check compares requirements with what covers them: cases, tests, or the pending list.
// It returns everything that is wrong, sorted: a requirement without any of them, a name
// of a test that tests does not have, and ids that the specification does not have.
func Check(requirements []Requirement, cases []Case, coverage, pending map[string]string, tests map[string]bool) []string {
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	known, cased := make(map[string]bool), make(map[string]bool)
	for _, r := range requirements {
		known[r.ID] = true
	}
	for _, c := range cases {
		if cased[c.ID] {
			complain("%s has two cases", c.ID)
		}
		cased[c.ID] = true
		if !known[c.ID] {
			complain("%s has a case, but is not in the specification", c.ID)
		}
	}
	for id, names := range coverage {
		if !known[id] {
			complain("%s has tests, but is not in the specification", id)
		}
		if strings.HasPrefix(names, NotApplicable) {
			if cased[id] {
				complain("%s has a case, but is not applicable", id)
			}
			continue
		}
		for name := range strings.FieldsSeq(names) {
			if !tests[name] {
				complain("%s: there is no test %s", id, name)
			}
		}
	}
	for id := range pending {
		if !known[id] {
			complain("%s is pending, but is not in the specification", id)
		}
		if !cased[id] && coverage[id] != "" {
			complain("%s has tests and is pending", id)
		}
	}
	for _, r := range requirements {
		if !cased[r.ID] && coverage[r.ID] == "" && pending[r.ID] == "" {
			complain("%s has neither a case nor a test: %.80s", r.ID, r.Text)
		}
	}
	slices.Sort(wrong)
	return wrong
}

// Tests finds the test and fuzz functions below a folder, as "folder.Name" with the
// folder relative to root and forward slashes.
func Tests(root string) (map[string]bool, error) {
	found := make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != root && strings.HasPrefix(e.Name(), ".") {
			return filepath.SkipDir
		}
		if e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		names, err := testsIn(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, name := range names {
			found[filepath.ToSlash(dir)+"."+name] = true
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find the tests below %s: %w", root, err)
	}
	return found, nil
}

func testsIn(path string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, d := range f.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && (strings.HasPrefix(fn.Name.Name, "Test") || strings.HasPrefix(fn.Name.Name, "Fuzz")) {
			names = append(names, fn.Name.Name)
		}
	}
	return names, nil
}
