package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/internal/ziptest"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// zips are packages as open zips in a store.
type zips struct {
	t     *testing.T
	store *store.Store
}

func newZips(t *testing.T) zips {
	s, err := store.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return zips{t, s}
}

// write returns the path of a zip of files.
func (z zips) write(files ...ziptest.File) string {
	return ziptest.Write(z.t, z.t.TempDir(), ziptest.Make(z.t, files...))
}

// open returns a reference to the files of a zip.
func (z zips) open(path string) *store.Ref {
	z.t.Helper()
	ref, err := z.store.AddZip(z.t.Context(), path, extract.Limits{}, nil)
	if err != nil {
		z.t.Fatal(err)
	}
	return ref
}

// runtime prepares a runtime on a base with layers of the operator's.
func (z zips) runtime(name, base string, layers ...string) *Runtime {
	z.t.Helper()
	tree, err := Base(z.t.Context(), BaseOptions{Base: base, Scratch: z.t.TempDir()})
	if err != nil {
		z.t.Fatal(err)
	}
	r, _, err := PrepareRuntime(z.t.Context(), RuntimeOptions{Name: name, Base: tree, Given: base, Layers: layers, Store: z.store})
	if err != nil {
		z.t.Fatal(err)
	}
	z.t.Cleanup(func() { r.Close() })
	return r
}

// function describes a function of r, as a user of the store does.
func (z zips) function(r *Runtime, scratch, code string, layers ...string) (*Function, error) {
	z.t.Helper()
	refs := store.Refs{}
	for _, l := range layers {
		refs = append(refs, z.open(l))
	}
	return r.Function(z.open(code), refs, scratch)
}

// A function of a shared runtime is the one that Prepare makes of the same parts.
func TestRuntimeFunctionIsPrepared(t *testing.T) {
	z := newZips(t)
	base := testBase(t, ziptest.File{Name: "opt/of-base"})
	empty, extension := z.write(ziptest.File{Name: "main"}), z.write(ziptest.File{Name: "extensions/watcher", Mode: 0o755, Body: shell})
	client := z.write(ziptest.File{Name: "python/awslambdaric/__main__.py"}, ziptest.File{Name: "nodejs/node_modules/aws-lambda-ric/index.mjs"})
	for _, c := range []struct {
		runtime, code string
		operator      []string // layers
		layers        []string
	}{
		{"provided.al2023", z.write(ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell}), nil, []string{extension}},
		{"provided.al2", empty, nil, []string{z.write(ziptest.File{Name: "bootstrap", Mode: 0o755, Body: shell})}},
		{"python3.11", empty, []string{client}, []string{extension}},
		{"python3.11", z.write(ziptest.File{Name: "awslambdaric/__main__.py"}), nil, nil},
		{"nodejs20.x", empty, []string{client}, nil},
		{"nodejs20.x", z.write(ziptest.File{Name: "node_modules/aws-lambda-ric/bin/index.mjs"}), []string{client}, []string{extension, client}},
		{"ruby3.1", z.write(ziptest.File{Name: "aws_lambda_ric.rb"}), nil, nil},
		{"java17", z.write(ziptest.File{Name: "lib/aws-lambda-java-runtime-interface-client-2.'10'.jar"}), nil, nil},
	} {
		name := c.runtime + " " + filepath.Base(filepath.Dir(c.code))
		want, err := prepareDir(t, FunctionOptions{Code: c.code, Layers: append(slices.Clone(c.operator), c.layers...), Base: base, Runtime: c.runtime, Handler: "a.b", Store: z.store})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, err := z.function(z.runtime(c.runtime, base, c.operator...), t.TempDir(), c.code, c.layers...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkTree(t, &got.Tree)
		if got.Bootstrap != want.Bootstrap || got.WorkingDir != want.WorkingDir || got.Locale != want.Locale || !slices.Equal(got.Extensions, want.Extensions) ||
			!slices.Equal(got.Dirs, want.Dirs) || !slices.Equal(got.Links, want.Links) || len(got.Mounts) != len(want.Mounts) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
			continue
		}
		for i, m := range got.Mounts {
			made := m.Target == "/var/runtime" || m.Target == "/etc" // in a folder of its own
			if m.Target != want.Mounts[i].Target || !made && !slices.Equal(m.Sources, want.Mounts[i].Sources) {
				t.Errorf("%s: mount %+v, want %+v", name, m, want.Mounts[i])
			}
		}
		if script := readScript(t, got); script != readScript(t, want) {
			t.Errorf("%s: the bootstrap is %s", name, script)
		}
	}
}

// readScript returns the bootstrap that was made for a function, "" if none was.
func readScript(t *testing.T, f *Function) string {
	t.Helper()
	made := mountOf(&f.Tree, "/var/runtime")
	if f.Bootstrap != "/var/runtime/bootstrap" || len(made) == 0 {
		return ""
	}
	text, err := os.ReadFile(filepath.Join(made[len(made)-1], "bootstrap"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// What is in the files of a function's packages does not matter: they are not read. Nor do its
// layers bring the interpreter of a runtime.
func TestRuntimeFunctionReadsNothing(t *testing.T) {
	z := newZips(t)
	base := testBase(t)
	for name, code := range map[string][]ziptest.File{
		"no program":        {{Name: "bootstrap", Mode: 0o644, Body: "MZ"}},
		"no bootstrap":      {{Name: "main"}},
		"a folder":          {{Name: "bootstrap/x"}},
		"a link to nowhere": {{Name: "bootstrap", Mode: link, Body: "/root/x"}},
	} {
		f, err := z.function(z.runtime("provided.al2023", base), t.TempDir(), z.write(code...))
		if err != nil || f.Bootstrap != "/var/task/bootstrap" {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	node := z.write(ziptest.File{Name: "bin/node", Mode: 0o755, Body: "/download/release/v24.1.0/"})
	code := z.write(ziptest.File{Name: "node_modules/aws-lambda-ric/index.mjs"})
	f, err := z.function(z.runtime("nodejs20.x", base), t.TempDir(), code, node)
	if err != nil || !strings.Contains(readScript(t, f), "'/usr/bin/node'") {
		t.Errorf("with an interpreter in a layer: %v", err)
	}
}

// A function whose client is nowhere is refused with the cure, and one that is closed leaves
// nothing; the runtime goes on.
func TestRuntimeFunctionEnds(t *testing.T) {
	z := newZips(t)
	scratch := t.TempDir()
	r := z.runtime("python3.11", testBase(t))
	if f, err := z.function(r, scratch, z.write(ziptest.File{Name: "main.py"})); !errors.Is(err, invalid.ErrClient) || !strings.Contains(err.Error(), "sandboxd layer python3.11") || f != nil {
		t.Errorf("%+v, %v", f, err)
	}
	ziptest.WantTree(t, scratch)
	wantInUse(t, z.store, 0)
	var many []ziptest.File
	for n := range maxViewNames + 1 {
		many = append(many, ziptest.File{Name: fmt.Sprint("extensions/", n)})
	}
	if f, err := z.function(r, scratch, z.write(ziptest.File{Name: "awslambdaric/__main__.py"}), z.write(many...)); !errors.Is(err, invalid.ErrTooLarge) || f != nil {
		t.Errorf("with many extensions: %+v, %v", f, err)
	}
	wantInUse(t, z.store, 0)
	for range 2 {
		f, err := z.function(r, scratch, z.write(ziptest.File{Name: "awslambdaric/__main__.py"}))
		if err != nil {
			t.Fatal(err)
		}
		wantInUse(t, z.store, 1)
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		ziptest.WantTree(t, scratch)
		wantInUse(t, z.store, 0)
	}
}

// What is wrong with the operator's parts is found when the runtime is prepared.
func TestPrepareRuntimeErrors(t *testing.T) {
	z := newZips(t)
	noShell := makeTree(t, ziptest.File{Name: "usr/bin/python3.11", Mode: 0o755, Body: "x"})
	for name, c := range map[string]struct {
		opts RuntimeOptions
		base string
		want error
	}{
		"unknown":           {RuntimeOptions{Name: "cobol85"}, testBase(t), invalid.ErrRuntime},
		"other version":     {RuntimeOptions{Name: "python3.12"}, testBase(t), invalid.ErrRuntime},
		"no shell":          {RuntimeOptions{Name: "python3.11"}, noShell, invalid.ErrRuntime},
		"no layer":          {RuntimeOptions{Name: "python3.11", Layers: []string{"/no/such/layer"}}, testBase(t), invalid.ErrNotFound},
		"a broken own one":  {RuntimeOptions{Name: "python3.11"}, testBase(t, ziptest.File{Name: "var/runtime/bootstrap", Body: "x"}), invalid.ErrNotExecutable},
		"a layer of no zip": {RuntimeOptions{Name: "python3.11", Layers: []string{filepath.Join(noShell, "usr/bin/python3.11")}}, testBase(t), invalid.ErrPackage},
	} {
		tree, err := Base(t.Context(), BaseOptions{Base: c.base, Scratch: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		c.opts.Base, c.opts.Given, c.opts.Store = tree, c.base, z.store
		if r, _, err := PrepareRuntime(t.Context(), c.opts); !errors.Is(err, c.want) || r != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}
