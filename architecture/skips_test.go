package architecture

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Only host/hosttest skips tests: it takes nothing but the error of a host that cannot.
func TestSkipsNameWhatTheHostLacks(t *testing.T) {
	tree := os.DirFS("..")
	for _, f := range files(t) {
		if !f.test && f.pkg != "host/hosttest" {
			continue
		}
		source, err := fs.ReadFile(tree, f.path)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), f.path, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, method.Sel.Name) && f.pkg != "host/hosttest" {
				t.Errorf("%s skips a test by %s: use hosttest.Need with the error of what the host lacks, or remove the test", f.path, method.Sel.Name)
			}
			return true
		})
	}
}

// scripts/summary.sh fails on a skip that is not in the list of those to expect.
func TestSummaryKnowsSkips(t *testing.T) {
	const (
		passes  = `{"Action":"pass","Package":"m/p","Test":"TestA","Elapsed":0}` + "\n"
		fails   = `{"Action":"fail","Package":"m/p","Test":"TestF","Elapsed":0}` + "\n"
		lacking = `{"Action":"output","Package":"m/p","Test":"TestB","Output":"    b_test.go:7: host lacks landlock: \"none\"; see\n"}` + "\n"
		skips   = `{"Action":"skip","Package":"m/p","Test":"TestB","Elapsed":0}` + "\n"
		case1   = `{"Action":"skip","Package":"conformance","Test":"INV-35"}` + "\n"
	)
	list := "# a comment\n\nm/p TestB landlock\nm/p TestC landlock # which did not happen\nconformance INV-35 -\n"
	for name, tt := range map[string]struct {
		events, list string
		ok           bool
		want         string
	}{
		"all is expected":            {passes + lacking + skips + case1, list, true, "1 passed, 0 failed, 2 skipped"},
		"no skip":                    {passes, list, true, "1 passed, 0 failed, 0 skipped"},
		"not listed":                 {passes + lacking + skips, "m/p TestBB landlock\n", false, "skipped, and not expected to be: m/p.TestB (the host lacks landlock)"},
		"listed for another feature": {passes + lacking + skips, "m/p TestB egress\n", false, "not expected to be: m/p.TestB"},
		"without a feature":          {passes + skips, list, false, "not expected to be: m/p.TestB (the host lacks -)"},
		"none may be":                {passes + case1, "", false, "1 skipped without being expected"},
		"a failure":                  {passes + fails, list, false, "failed: m/p.TestF"},
		"a note":                     {passes, list, true, "\n  booted a second time\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			skipsFile := filepath.Join(dir, "skips.txt")
			if err := os.WriteFile(filepath.Join(dir, "unit.json"), []byte(tt.events), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "unit.notes"), []byte("booted a second time\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(skipsFile, []byte(tt.list), 0o644); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command("bash", "../scripts/summary.sh", dir, skipsFile).CombinedOutput()
			if (err == nil) != tt.ok || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v, %s; want ok %v and %q", err, out, tt.ok, tt.want)
			}
		})
	}
}
