package architecture

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// wellKnown are methods of interfaces that every reader knows.
var wellKnown = []string{"Error", "Unwrap", "Is", "String"}

// TestExportedNamesAreDocumented wants a doc comment on every package and on every
// exported constant, variable, function, type and method. A group of constants or
// variables may share one, and the methods of well-known interfaces speak for themselves.
func TestExportedNamesAreDocumented(t *testing.T) {
	sources := map[string][]string{}
	for _, f := range files(t) {
		if !f.test {
			sources[f.pkg] = append(sources[f.pkg], filepath.Join("..", f.path))
		}
	}
	for pkg, paths := range sources {
		set := token.NewFileSet()
		var parsed []*ast.File
		for _, path := range paths {
			f, err := parser.ParseFile(set, path, nil, parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, f)
		}
		d, err := doc.NewFromFiles(set, parsed, module+"/"+pkg)
		if err != nil {
			t.Fatal(err)
		}
		if d.Doc == "" {
			t.Errorf("package %s has no doc comment", pkg)
		}
		if d.Name == "main" || strings.Contains(pkg, "internal/") {
			continue
		}
		undocumented := func(kind, name, text string) {
			if _, method, ok := strings.Cut(name, "."); ok && slices.Contains(wellKnown, method) {
				return
			}
			if text == "" {
				t.Errorf("%s: exported %s %s has no doc comment", pkg, kind, name)
			}
		}
		values := func(list []*doc.Value) {
			for _, v := range list {
				checkValues(t, pkg, v)
			}
		}
		functions := func(prefix string, list []*doc.Func) {
			for _, f := range list {
				undocumented("function", prefix+f.Name, f.Doc)
			}
		}
		values(d.Consts)
		values(d.Vars)
		functions("", d.Funcs)
		for _, typ := range d.Types {
			undocumented("type", typ.Name, typ.Doc)
			values(typ.Consts)
			values(typ.Vars)
			functions("", typ.Funcs)
			functions(typ.Name+".", typ.Methods)
		}
	}
}

// checkValues wants a comment on a group or on each exported name in it, before it or
// at the end of its line.
func checkValues(t *testing.T, pkg string, v *doc.Value) {
	if v.Doc != "" {
		return
	}
	for _, spec := range v.Decl.Specs {
		s := spec.(*ast.ValueSpec)
		for _, name := range s.Names {
			if name.IsExported() && s.Doc.Text() == "" && s.Comment.Text() == "" {
				t.Errorf("%s: exported %s has no doc comment", pkg, name.Name)
			}
		}
	}
}
