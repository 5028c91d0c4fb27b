package architecture

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that docs/security.md names as a proof exists.
func TestSecurityPageNamesTestsThatExist(t *testing.T) {
	page, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	var tests strings.Builder
	for _, f := range files(t) {
		if f.test {
			text, err := os.ReadFile(filepath.Join("..", f.path))
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(text)
		}
	}
	names := regexp.MustCompile(`\b(Test|Fuzz)[A-Z]\w+`).FindAllString(string(page), -1)
	for _, name := range names {
		if !strings.Contains(tests.String(), "func "+name+"(") {
			t.Errorf("docs/security.md names %s, which no test file has", name)
		}
	}
	if len(names) < 20 {
		t.Errorf("docs/security.md names %d tests only", len(names))
	}
}

// Every module that is imported directly has a row in docs/dependencies.md.
func TestDependenciesAreReviewed(t *testing.T) {
	page, err := os.ReadFile("../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var reviewed []string
	for _, m := range regexp.MustCompile("`([a-z0-9.-]+\\.[a-z0-9.-]+/[^`]*)`").FindAllStringSubmatch(string(page), -1) {
		reviewed = append(reviewed, m[1])
	}
	missing := map[string]string{}
	for _, f := range files(t) {
	imports:
		for _, path := range f.imports {
			if host, _, _ := strings.Cut(path, "/"); !strings.Contains(host, ".") || strings.HasPrefix(path, module) {
				continue
			}
			for _, r := range reviewed {
				if path == r || strings.HasPrefix(path, r+"/") {
					continue imports
				}
			}
			missing[path] = f.path
		}
	}
	for path, where := range missing {
		t.Errorf("%s imports %s: give its module a row in docs/dependencies.md", where, path)
	}
}
