package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// FunctionOptions say what a function is made of.
type FunctionOptions struct {
	// Code is a directory, which is shown live, or a zip file.
	Code string
	// Layers are directories or zip files in order: later ones win (ENV-29).
	Layers []string
	// Base is as in BaseOptions.
	Base string
	// Runtime is Lambda's name of the runtime; "" is provided.al2023.
	Runtime string
	// Handler is needed by runtimes other than provided.*.
	Handler string
	// Wrapper is the value of AWS_LAMBDA_EXEC_WRAPPER, which these runtimes heed (ENV-26).
	Wrapper string
	// Limits bound code and layers; the zero value means the defaults.
	Limits extract.Limits
	// Store keeps the extracted zips. It may be nil if nothing is a zip.
	Store *store.Store
	// Scratch is as in BaseOptions.
	Scratch string
	// Progress, if not nil, is told how far the extraction of a zip is, in bytes. total is 0 if
	// it is not known.
	Progress func(file string, done, total int64)
}

// Function is a function as its sandboxes see it. It holds references to the entries of the
// store that it is made of, so its Tree can be shown until Close.
type Function struct {
	Tree
	// Bootstrap is the program of the runtime: a path inside, never empty, and
	// executable when it was looked at.
	Bootstrap string
	// BootstrapArgs follow its name; only an image has some (ENV-25).
	BootstrapArgs []string
	// WorkingDir is where the bootstrap starts: /var/task, or what an image says
	// (ENV-24).
	WorkingDir string
	// Locale is the LANG of the processes (ENV-10); "" for an image, which says it itself.
	Locale string
	// Extensions are the names in /opt/extensions that are no directories, sorted
	// (EX-01). Whether they can be executed is not checked: that is EX-03.
	Extensions []string
	// ExtensionsDisabled says that no extension may be started (EX-05).
	ExtensionsDisabled bool
	// Digest is the sha256 of the code's zip file or of an image's configuration, in
	// hexadecimal; "" for a directory.
	Digest string
	// LayerDigests are those of the layers, in order.
	LayerDigests []string

	refs    store.Refs
	scratch string // folder that Close removes; may be ""
}

// Close gives up the references to the entries of the store. What is in Scratch is left to
// its owner. Closing again, or closing nil, does nothing.
func (f *Function) Close() error {
	if f == nil {
		return nil
	}
	err := f.refs.Close()
	if f.scratch != "" {
		err = errors.Join(err, os.RemoveAll(f.scratch))
	}
	return err
}

// Prepare makes everything of a function that its sandboxes share. The caller closes it
// when no sandbox uses it any more. What is wrong with the input is an [invalid.Error]. On
// error nothing is left in Scratch, and no reference is held; zips that have been extracted
// stay in the Store.
func Prepare(ctx context.Context, opts FunctionOptions) (f *Function, err error) {
	limits := opts.Limits.WithDefaults()
	lang, version, err := findRuntime(opts.Runtime)
	if err != nil {
		return nil, err
	}
	if lang != nil && opts.Handler == "" {
		return nil, &invalid.Error{Kind: invalid.ErrHandler, File: "handler", Reason: "is needed by runtime " + opts.Runtime,
			Fix: "name it, such as index.handler"}
	}
	if len(opts.Layers) > limits.Layers {
		return nil, &invalid.Error{Kind: invalid.ErrTooLarge, File: "layers",
			Reason: fmt.Sprintf("are %d, %d are allowed (ENV-36)", len(opts.Layers), limits.Layers), Fix: "merge some of them"}
	}
	packages, refs, err := openPackages(ctx, opts, limits)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f, err = nil, errors.Join(err, refs.Close())
		}
	}()
	scratch, err := os.MkdirTemp(opts.Scratch, "function-")
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", opts.Code, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(scratch))
		}
	}()
	tree, err := Base(ctx, BaseOptions{Base: opts.Base, Scratch: scratch})
	if err != nil {
		return nil, err
	}
	f = &Function{Tree: *tree, WorkingDir: taskDir, Digest: packages[0].digest, refs: refs}
	for _, layer := range packages[1:] {
		f.LayerDigests = append(f.LayerDigests, layer.digest)
	}
	if err := f.addPackages(packages); err != nil {
		return nil, err
	}
	if err := f.scanPackages(ctx, packages, limits); err != nil {
		return nil, err
	}
	return f, f.addRuntime(opts, packages, scratch, version, lang)
}

// pkg is the code or a layer.
type pkg struct {
	given  string // by the operator
	dir    string // its files, on the host
	inside string // where they are shown
	digest string // "" for a directory
	size   int64  // of a zip's files
}

// openPackages opens the code, which comes first, and the layers. On error it holds no
// reference.
func openPackages(ctx context.Context, opts FunctionOptions, limits extract.Limits) (packages []pkg, refs store.Refs, err error) {
	for i, given := range append([]string{opts.Code}, opts.Layers...) {
		p := pkg{given: given, inside: optDir}
		if i == 0 {
			p.inside = taskDir
		}
		ref, err := p.open(ctx, opts, limits)
		if err != nil {
			return nil, nil, errors.Join(err, refs.Close())
		}
		if ref != nil {
			refs = append(refs, ref)
		}
		limits.UnzippedBytes = max(limits.UnzippedBytes-p.size, 1) // 0 would mean the default
		packages = append(packages, p)
	}
	return packages, refs, nil
}

// open finds the files of the package. Those of a zip are in the store; ref refers to them,
// and is nil for a directory.
func (p *pkg) open(ctx context.Context, opts FunctionOptions, limits extract.Limits) (ref *store.Ref, err error) {
	info, err := os.Stat(p.given)
	if err != nil {
		return nil, &invalid.Error{Kind: invalid.ErrNotFound, File: p.given, Reason: "cannot be opened", Err: invalid.Cause(err),
			Fix: "give a directory or a zip file"}
	}
	if info.IsDir() {
		if p.dir, err = realDir(p.given); err != nil {
			return nil, fmt.Errorf("open %s: %w", p.given, err)
		}
		return nil, nil
	}
	if opts.Store == nil {
		return nil, fmt.Errorf("open %s: no store for zips was given", p.given)
	}
	var progress func(done, total int64)
	if opts.Progress != nil {
		progress = func(done, total int64) { opts.Progress(p.given, done, total) }
	}
	if ref, err = opts.Store.AddZip(ctx, p.given, limits, progress); err != nil {
		return nil, err
	}
	p.dir, p.digest, p.size = ref.Dir, ref.Digest, ref.Size
	return ref, nil
}

// addPackages mounts the code and the layers; /opt of the base is the lowest layer.
func (f *Function) addPackages(packages []pkg) error {
	f.take(taskDir)
	var layers []pkg
	for _, dir := range f.take(optDir) {
		layers = append(layers, pkg{given: "/opt of the base", dir: dir})
	}
	for _, p := range packages {
		if p.inside == taskDir {
			f.addMount(taskDir, p.dir)
		} else {
			layers = append(layers, p)
		}
	}
	layers, err := f.stackable(layers)
	if err != nil {
		return err
	}
	var opt []string
	for _, l := range layers {
		opt = append(opt, l.dir)
	}
	if len(opt) > 0 {
		f.addMount(optDir, opt...)
	}
	return nil
}

// addRuntime finds or makes the bootstrap, and finds the extensions.
func (f *Function) addRuntime(opts FunctionOptions, packages []pkg, scratch, version string, lang *language) error {
	v, err := newView(&f.Tree)
	if err != nil {
		return err
	}
	defer v.close()
	if err := f.findExtensions(v); err != nil {
		return err
	}
	if f.Locale, err = findLocale(v); err != nil {
		return err
	}
	if lang == nil {
		opts.Wrapper = ""
	}
	f.warnPrograms(v, opts.Wrapper, func(n node) string {
		for _, p := range packages {
			if n.root != nil && n.root.Name() == p.dir {
				return p.given
			}
		}
		return opts.Base
	})
	for _, layer := range packages[1:] {
		if err := f.warnLayer(layer); err != nil {
			return err
		}
	}
	if lang == nil {
		f.Bootstrap, err = findBootstrap(v, packages[0])
		return err
	}
	f.warnHandler(v, packages[0], opts.Runtime, opts.Handler)
	f.Bootstrap = runtimeDir + "/bootstrap"
	if own, err := v.resolve(f.Bootstrap); err == nil { // an image of that runtime
		return checkProgram(v, opts.Base, f.Bootstrap, own)
	}
	made, warnings, err := makeBootstrap(v, scratch, packages[0], opts.Runtime, version, opts.Handler, lang)
	if err != nil {
		return err
	}
	f.Warnings = append(f.Warnings, warnings...)
	f.addMount(runtimeDir, append(f.take(runtimeDir), made)...)
	switch lang {
	case languages["python"]:
		f.addPython(v, version)
	case languages["nodejs"]:
		f.addNode(v, version)
	}
	return nil
}

// findExtensions lists /opt/extensions; one that cannot be read is none (EX-01).
func (f *Function) findExtensions(v *view) error {
	if _, err := v.resolve(optDir + "/disable-extensions-jwigqn8j"); err == nil {
		f.ExtensionsDisabled = true // EX-05
	}
	dir, err := v.resolve(optDir + "/extensions")
	if errors.Is(err, fs.ErrNotExist) || err == nil && !dir.mode.IsDir() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for extensions: %w", err)
	}
	names, err := v.list(dir)
	if errors.Is(err, errBound) {
		return &invalid.Error{Kind: invalid.ErrTooLarge, File: "layers", Entry: optDir + "/extensions",
			Reason: fmt.Sprintf("has more than %d entries in one layer", maxViewNames), Fix: "10 extensions are allowed (EX-04)"}
	}
	if err != nil {
		return fmt.Errorf("list extensions: %w", err)
	}
	for _, name := range names {
		n, _, err := v.lstat(path.Join(dir.path, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // whited out
		}
		if err != nil {
			return fmt.Errorf("look at extension %s: %w", name, err)
		}
		if !n.mode.IsDir() {
			f.Extensions = append(f.Extensions, name)
		}
	}
	return nil
}
