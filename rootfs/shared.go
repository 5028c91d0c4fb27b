package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// RuntimeOptions say what a runtime is made of.
type RuntimeOptions struct {
	// Name is Lambda's name of the runtime, such as python3.11.
	Name string
	// Base is what Base returned for the base's files, which Given names in messages.
	Base  *Tree
	Given string
	// Layers are zips or directories of the operator's, below the layers of functions.
	Layers []string
	// Store keeps the extracted zips.
	Store *store.Store
}

// Runtime is what functions with one runtime share: the base, the operator's layers, and how
// their program starts. Methods are safe for concurrent use.
type Runtime struct {
	name, version    string
	lang             *language // nil for functions that bring their own bootstrap
	base             Tree
	layers           []pkg
	bootstrap        string // that the base has for lang; "" if it is made
	interpreter, has string // for lang; has is its version
	locale           string
	refs             store.Refs
}

// PrepareRuntime finds the parts of a runtime that do not depend on a function. The base and
// the layers are the operator's, so what is wrong with them is an [invalid.Error], and
// warnings are sentences for the operator. The caller closes the runtime when no function
// uses it any more.
func PrepareRuntime(ctx context.Context, opts RuntimeOptions) (_ *Runtime, warnings []string, err error) {
	r := &Runtime{name: opts.Name, base: opts.Base.clone()}
	if r.lang, r.version, err = findRuntime(opts.Name); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, given := range opts.Layers {
		layer := pkg{given: given, inside: optDir}
		ref, err := layer.open(ctx, FunctionOptions{Store: opts.Store}, extract.Limits{}.WithDefaults())
		if err != nil {
			return nil, nil, err
		}
		if ref != nil {
			r.refs = append(r.refs, ref)
		}
		r.layers = append(r.layers, layer)
	}
	// Interpreters are those of the base: a function's layers are not looked into.
	v, err := newView(&r.base)
	if err != nil {
		return nil, nil, err
	}
	defer v.close()
	if r.locale, err = findLocale(v); err != nil {
		return nil, nil, err
	}
	if r.lang == nil {
		return r, nil, nil
	}
	if own, err := v.resolve(runtimeDir + "/bootstrap"); err == nil { // an image of that runtime
		r.bootstrap = runtimeDir + "/bootstrap"
		if err := checkProgram(v, opts.Given, r.bootstrap, own); err != nil {
			return nil, nil, err
		}
		return r, nil, nil
	}
	if err := needShell(v, r.name); err != nil {
		return nil, nil, err
	}
	if r.interpreter, r.has, warnings, err = findInterpreter(v, r.name, r.version, r.lang); err != nil {
		return nil, nil, err
	}
	return r, warnings, nil
}

// Name returns Lambda's name of the runtime.
func (r *Runtime) Name() string { return r.name }

// Close gives up the references to the layers.
func (r *Runtime) Close() error { return r.refs.Close() }

// Function describes a function of this runtime, whose code and layers are in the store. It
// takes the references over: the Function closes them, or Function does so on an error. The
// packages are not trusted: Function reads the names and the modes of their files and nothing
// of what is in them, so a bootstrap that is missing or cannot be executed is no error here
// but one of the start in the sandbox, as on Lambda. A runtime client that is nowhere is an
// [invalid.Error]. What is made is in a new folder below scratch, which the Function removes
// when it is closed.
func (r *Runtime) Function(code *store.Ref, layers store.Refs, scratch string) (_ *Function, err error) {
	f := &Function{Tree: r.base.clone(), WorkingDir: taskDir, Locale: r.locale, Digest: code.Digest, refs: append(store.Refs{code}, layers...)}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	packages := append([]pkg{{given: "the code", dir: code.Dir, inside: taskDir, digest: code.Digest}}, r.layers...)
	for i, layer := range layers {
		packages = append(packages, pkg{given: fmt.Sprintf("layer %d", i+1), dir: layer.Dir, inside: optDir, digest: layer.Digest})
		f.LayerDigests = append(f.LayerDigests, layer.Digest)
	}
	if err := f.addPackages(packages); err != nil {
		return nil, err
	}
	v, err := newView(&f.Tree)
	if err != nil {
		return nil, err
	}
	defer v.close()
	if err := f.findExtensions(v); err != nil {
		return nil, err
	}
	if r.lang == nil {
		f.Bootstrap = taskDir + "/bootstrap"
		for _, dir := range bootstrapDirs {
			if _, err := v.resolve(dir + "/bootstrap"); err == nil {
				f.Bootstrap = path.Join(dir, "bootstrap")
				break
			}
		}
		return f, nil
	}
	if f.Bootstrap = r.bootstrap; f.Bootstrap != "" {
		return f, nil
	}
	if err := r.addBootstrap(f, v, scratch); err != nil {
		return nil, err
	}
	return f, nil
}

// addBootstrap makes the bootstrap of the function f for the interpreter of the base.
func (r *Runtime) addBootstrap(f *Function, v *view, scratch string) error {
	client, _ := r.lang.findClient(v, r.version)
	if client == "" {
		return &invalid.Error{Kind: invalid.ErrClient, File: "the code", Entry: r.name,
			Reason: "the runtime client is neither in the code nor in a layer nor in the runtime of this server",
			Fix:    fmt.Sprintf("put it into the code: %s; or have the operator add a layer of 'sandboxd layer %s' to the runtime", r.lang.install, r.name)}
	}
	dir, err := os.MkdirTemp(scratch, "function-")
	if err != nil {
		return fmt.Errorf("make bootstrap: %w", err)
	}
	f.scratch = dir
	if err := os.Chmod(dir, 0o711); err != nil { // libcontainer resolves paths as the sandbox's user
		return fmt.Errorf("make bootstrap: %w", err)
	}
	made, err := r.lang.write(dir, r.name, r.version, r.interpreter, r.has, client)
	if err != nil {
		return err
	}
	f.Bootstrap = runtimeDir + "/bootstrap"
	f.addMount(runtimeDir, append(f.take(runtimeDir), made)...)
	switch r.lang {
	case languages["python"]:
		f.addPython(v, r.version)
	case languages["nodejs"]:
		f.addNode(v, r.version)
	}
	return nil
}

// clone returns a copy that can be added to. Warnings are left out.
func (t *Tree) clone() Tree {
	c := Tree{Dirs: slices.Clone(t.Dirs), Links: slices.Clone(t.Links), Mounts: slices.Clone(t.Mounts)}
	for i := range c.Mounts {
		c.Mounts[i].Sources = slices.Clip(c.Mounts[i].Sources)
	}
	return c
}
