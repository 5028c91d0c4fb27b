package rootfs

import (
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
)

// A package that holds the folder, not the folder's content, is named, whatever the runtime:
// its bootstrap, its client or its handler is a folder too deep.
func TestNestedPackage(t *testing.T) {
	const ric = "awslambdaric/__main__.py"
	zipOf := func(f ...ziptest.File) string { return ziptest.Write(t, t.TempDir(), ziptest.Make(t, f...)) }
	layer := makeTree(t, ziptest.File{Name: "python/" + ric}, ziptest.File{Name: "nodejs/node_modules/aws-lambda-ric/index.mjs"}, ziptest.File{Name: "java/lib/aws-lambda-java-runtime-interface-client-1.jar"})
	for name, test := range map[string]struct {
		opts FunctionOptions
		want string // in the error or in the warning; "" for neither
	}{
		"bootstrap in a zip":    {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/bootstrap", Mode: 0o755, Body: shell})}, `there is one at "myfn/bootstrap"; zip the folder's content, not the folder: cd myfn && zip`},
		"bootstrap in a folder": {FunctionOptions{Code: makeTree(t, ziptest.File{Name: "myfn/bootstrap", Mode: 0o755, Body: shell})}, "give that folder: "},
		"whole path":            {FunctionOptions{Code: zipOf(ziptest.File{Name: "home/me/src/myfn/bootstrap", Mode: 0o755, Body: shell})}, `"home/me/src/myfn/bootstrap"`},
		"nowhere":               {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/main"})}, "put an executable file named bootstrap"},
		"Python, client":        {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/" + ric}, ziptest.File{Name: "myfn/app.py"}), Runtime: "python3.11", Handler: "app.handler"}, `it is in the package's folder "myfn"; zip the folder's content`},
		"Python, virtual environment": {FunctionOptions{Code: zipOf(ziptest.File{Name: "venv/lib/python3.11/site-packages/" + ric}, ziptest.File{Name: "app.py"}), Runtime: "python3.11", Handler: "app.handler"},
			"or, in the package's folder: pip install"},
		"Python, handler": {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/src/app/__init__.py"}), Runtime: "python3.11", Handler: "src.app.handler"}, `in its folder "myfn"; zip`},
		"Node, client":    {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/node_modules/aws-lambda-ric/index.mjs"}), Runtime: "nodejs20.x", Handler: "index.handler"}, `it is in the package's folder "myfn"`},
		"Node, handler":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/dist/index.mjs"}), Runtime: "nodejs20.x", Handler: "dist/index.handler"}, `in its folder "myfn"; zip`},
		"Java, handler":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "target/classes/com/x/App.class"}), Runtime: "java17", Handler: "com.x.App::run"}, `in its folder "target/classes"; zip`},
		"Java, jars":      {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/lib/app.jar"}), Runtime: "java17", Handler: "com.x.App::run"}, `in its folder "myfn"; zip`},
		"Python, no client": {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/app.py"}), Runtime: "python3.11", Handler: "app.handler"},
			`but in its folder "myfn"; zip the folder's content, not the folder: cd myfn && zip -r ../function.zip .; 'sudo sandboxd layer python3.11'`},
		"Node, no client":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/index.js"}), Runtime: "nodejs20.x", Handler: "index.handler"}, `but in its folder "myfn"; zip`},
		"Ruby, no client":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/app.rb"}), Runtime: "ruby3.1", Handler: "app.handler", Base: testBase(t)}, `but in its folder "myfn"; zip`},
		"Java, no client":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "myfn/lib/app.jar"}), Runtime: "java17", Handler: "com.x.App::run"}, `but in its folder "myfn"; zip`},
		"name with a space": {FunctionOptions{Code: zipOf(ziptest.File{Name: "my fn/bootstrap", Mode: 0o755, Body: shell})}, `cd './my fn' && zip`},
		"hostile name":      {FunctionOptions{Code: zipOf(ziptest.File{Name: "a'$(id);/bootstrap", Mode: 0o755, Body: shell})}, `cd './a'\''$(id);' && zip`},
		"name with control": {FunctionOptions{Code: zipOf(ziptest.File{Name: "a\nb/bootstrap", Mode: 0o755, Body: shell})}, `zip the folder's content, not the folder`},
		"name with bracket": {FunctionOptions{Code: zipOf(ziptest.File{Name: "fn[1]/bootstrap", Mode: 0o755, Body: shell})}, `"fn[1]/bootstrap"`},
		"as it should be":   {FunctionOptions{Code: zipOf(ziptest.File{Name: "app.py"}, ziptest.File{Name: "old/app.py"}), Runtime: "python3.11", Handler: "app.handler"}, ""},
		"in a layer":        {FunctionOptions{Code: zipOf(ziptest.File{Name: "x"}), Runtime: "python3.11", Handler: "vendor.wrapper.handler"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(name, "client") && !strings.Contains(name, "environment") && test.opts.Runtime != "" {
				test.opts.Layers = []string{layer}
				if strings.HasPrefix(test.opts.Runtime, "java") {
					test.opts.Base = testBase(t, ziptest.File{Name: "var/runtime/lib/aws-lambda-java-runtime-interface-client-1.jar"})
				}
			}
			f, err := prepareDir(t, test.opts)
			var got string
			if err != nil {
				got = err.Error()
			} else {
				got = strings.Join(f.Warnings, "\n")
			}
			if !strings.Contains(got, test.want) || test.want == "" && got != "" {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

// A layer whose files are a folder too deep is warned of.
func TestNestedLayer(t *testing.T) {
	code := makeTree(t, ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})
	for name, test := range map[string]struct {
		files []string
		want  string
	}{
		"opt":             {[]string{"opt/python/x.py"}, "its folder opt, so that they appear in /opt/opt;"},
		"opt and more":    {[]string{"opt/extensions/x", "README"}, "its folder opt,"},
		"layer's folder":  {[]string{"mylayer/nodejs/node_modules/x/index.js"}, "its folder mylayer,"},
		"layer of a Mac":  {[]string{"__MACOSX/mylayer/._x", ".DS_Store", "mylayer/python/x.py"}, "its folder mylayer,"},
		"other folders":   {[]string{"a/bin/x", "b/lib/y"}, ""},
		"as it should be": {[]string{"python/x.py", "opt/bin/x"}, ""},
		"data":            {[]string{"models/a"}, ""},
		"empty":           {nil, ""},
	} {
		var files []ziptest.File
		for _, f := range test.files {
			files = append(files, ziptest.File{Name: f})
		}
		for _, layer := range []string{makeTree(t, files...), ziptest.Write(t, t.TempDir(), ziptest.Make(t, files...))} {
			f, err := prepareDir(t, FunctionOptions{Code: code, Layers: []string{layer}})
			if err != nil {
				t.Fatal(err)
			}
			got := slices.Clone(f.Warnings)
			if test.want == "" && len(got) != 0 || test.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0], layer) || !strings.Contains(got[0], test.want)) {
				t.Errorf("%s: warnings %q, want %q", name, got, test.want)
			}
		}
	}
}
