package rootfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// ImageOptions say what to run of a container image whose files are in the store.
type ImageOptions struct {
	// Image is what the operator gave; messages name it.
	Image string
	// Files holds the files of the image, all layers applied. PrepareImage takes it over:
	// the Function closes it, or PrepareImage does so on error.
	Files *store.Ref
	// Layers are references that are held as long as Files, and taken over like it.
	Layers store.Refs
	// Argv is the image's entrypoint followed by its command (ENV-25). A first
	// element without a slash is looked for in SearchPath.
	Argv []string
	// SearchPath are the directories inside that are searched, separated by colons.
	SearchPath string
	// WorkingDir is the directory inside to start in; "" is / (ENV-24). It is taken
	// from / if it does not begin with one.
	WorkingDir string
	// Wrapper is the value of AWS_LAMBDA_EXEC_WRAPPER, which AWS's images heed (ENV-26).
	Wrapper string
	// Scratch is as in BaseOptions.
	Scratch string
}

// PrepareImage describes the sandboxes of a function that is a container image: its
// whole tree is shown as [Base] shows a directory tree, and besides its /var/task and
// the files of its root and of its /var. Layers of Lambda do not exist for images.
//
// Digest is left to the caller. What is wrong with the image is an [invalid.Error]: of
// kind invalid.ErrNoBootstrap, invalid.ErrNotExecutable or invalid.ErrArchitecture if its program could not be
// started, invalid.ErrWorkingDir if not there, invalid.ErrBase if its tree has no form that can be
// shown. On error nothing is left in Scratch.
func PrepareImage(ctx context.Context, opts ImageOptions) (f *Function, err error) {
	defer func() {
		if err != nil {
			f, err = nil, errors.Join(err, opts.Files.Close(), opts.Layers.Close())
		}
	}()
	scratch, err := os.MkdirTemp(opts.Scratch, "image-")
	if err != nil {
		return nil, fmt.Errorf("prepare %s: %w", opts.Image, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(scratch))
		}
	}()
	tree, err := (&baseDir{tree: newTree(), given: opts.Image, whole: true}).take(ctx, opts.Files.Dir, scratch)
	if err != nil {
		return nil, err
	}
	f = &Function{Tree: *tree, refs: append(store.Refs{opts.Files}, opts.Layers...)}
	v, err := newView(&f.Tree)
	if err != nil {
		return nil, err
	}
	defer v.close()
	if f.WorkingDir, err = findWorkingDir(v, opts); err != nil {
		return nil, err
	}
	if f.Bootstrap, err = findEntrypoint(v, opts, f.WorkingDir); err != nil {
		return nil, err
	}
	f.BootstrapArgs = slices.Clone(opts.Argv[1:])
	if err := f.findExtensions(v); err != nil {
		return nil, err
	}
	f.warnPrograms(v, opts.Wrapper, func(node) string { return opts.Image })
	return f, f.scanCode(ctx, v, opts)
}

// systemDirs are the directories at the root of Linux systems. The rest of a system is full of
// files that only its root may read.
var systemDirs = []string{"bin", "boot", "etc", "lib", "lib32", "lib64", "libx32", "media", "mnt", "root", "run", "sbin", "sys", "usr", "var"}

// scanCode warns of code that the sandbox user cannot read: below the working directory, in
// /var/task, in the folders of the image's root that no system has, and of the program's
// arguments.
func (f *Function) scanCode(ctx context.Context, v *view, opts ImageOptions) error {
	dirs := []string{f.WorkingDir, taskDir}
	for _, m := range f.Mounts {
		if name := m.Target[1:]; !strings.Contains(name, "/") && !slices.Contains(systemDirs, name) {
			dirs = append(dirs, m.Target)
		}
	}
	slices.Sort(dirs)
	var code []pkg
	for _, dir := range dirs {
		n, err := v.resolve(dir)
		if err != nil || !n.mode.IsDir() || n.root == nil || slices.Contains(systemDirs, strings.Trim(n.path, "/")) {
			continue // such as / as the working directory
		}
		known := slices.ContainsFunc(code, func(p pkg) bool { return below(n.path, p.inside) })
		if !known {
			code = append(code, pkg{given: opts.Image, dir: filepath.Join(n.root.Name(), n.rel), inside: n.path})
		}
	}
	for _, arg := range f.BootstrapArgs {
		name := arg
		if !path.IsAbs(name) {
			name = path.Join(f.WorkingDir, name)
		}
		n, err := v.resolve(name)
		if err != nil || !n.mode.IsRegular() || slices.ContainsFunc(code, func(p pkg) bool { return below(n.path, p.inside) }) {
			continue
		}
		if perm := n.mode.Perm(); perm&0o004 == 0 || n.blocked != "" {
			f.Warnings = append(f.Warnings, unreadable(opts.Image, n.path, "chmod o+r", perm))
		}
	}
	return f.scanAll(ctx, code, nil, math.MaxInt64)
}

// findWorkingDir gives the clean path of the working directory, once it is sure that
// the sandbox user can be there (FE-03). What lies below the engine's own directories
// shows only when a sandbox runs.
func findWorkingDir(v *view, opts ImageOptions) (string, error) {
	dir := path.Clean("/" + opts.WorkingDir)
	first, _, _ := strings.Cut(dir[1:], "/")
	if slices.Contains(engineDirs, first) {
		return dir, nil
	}
	bad := func(reason string) error {
		return &invalid.Error{Kind: invalid.ErrWorkingDir, File: opts.Image, Entry: dir, Reason: "the image's WorkingDir " + reason,
			Fix: "make the directory in the image, readable for all, or change WORKDIR"}
	}
	n, err := v.resolve(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", bad("does not exist")
	case err != nil:
		return "", fmt.Errorf("look at the working directory of %s: %w", opts.Image, err)
	case !n.mode.IsDir():
		return "", bad("is no directory")
	case n.blocked != "" || n.mode&sandboxOthers == 0:
		return "", bad("is out of the sandbox user's reach")
	}
	return dir, nil
}

// findEntrypoint gives the absolute path of the program to start (FE-02). As execvp
// does, it goes on past files in the search path that cannot be executed.
func findEntrypoint(v *view, opts ImageOptions, dir string) (string, error) {
	missing := &invalid.Error{Kind: invalid.ErrNoBootstrap, File: opts.Image, Reason: "the image has neither an Entrypoint nor a Cmd",
		Fix: "set ENTRYPOINT when the image is built"}
	if len(opts.Argv) == 0 || opts.Argv[0] == "" {
		return "", missing
	}
	program := opts.Argv[0]
	candidates := []string{program}
	missing.Entry, missing.Reason = program, "the image's program does not exist"
	missing.Fix = "correct ENTRYPOINT and CMD, or put the program into the image"
	if !strings.Contains(program, "/") {
		missing.Reason = fmt.Sprintf("the image's program is not in its PATH %q", invalid.Shorten(opts.SearchPath))
		candidates = nil
		for _, d := range filepath.SplitList(opts.SearchPath) {
			if path.IsAbs(d) {
				candidates = append(candidates, path.Join(d, program))
			}
		}
	} else if !path.IsAbs(program) {
		candidates = []string{path.Join(dir, program)}
	}
	var unusable error
	for _, c := range candidates {
		n, err := v.resolve(c)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("look for the program of %s: %w", opts.Image, err)
		}
		if err = checkProgram(v, opts.Image, c, n); err == nil {
			return c, nil
		}
		if unusable == nil {
			unusable = err
		}
	}
	if unusable != nil {
		return "", unusable
	}
	return "", missing
}
