package daemon

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/internal/registry"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/extract"
	"github.com/sandboxd/sandboxd/rootfs/invalid"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// Runtime is a runtime that the operator offers, by Lambda's name of it.
type Runtime struct {
	Name   string
	Base   string   // rootfs.HostBase or a directory
	Layers []string // directories or zips, below the layers of functions
	// Optional leaves the runtime out if the base does not have exactly its interpreter.
	Optional bool
}

// registrar registers the revisions that the control process names. That process may have
// been taken over: the registrar looks trees up by their digests and extracts what is missing
// in an unprivileged process, one at a time and within limits, and reads none of it.
type registrar struct {
	d         *Daemon
	control   atomic.Pointer[registry.Server] // serves the control process; nil while there is none
	runtimes  []*rootfs.Runtime               // a message.Revision has the place
	scratch   string
	mostTrees int64         // ServeConfig.TreeBytes
	leastFree int64         // ServeConfig.FreeBytes
	roles     []*roleSource // a message.Revision has the place, from 1 on
	making    chan struct{} // capacity 1: held while a revision is registered

	mu    sync.Mutex
	trees map[string]*heldTree // of the registered revisions, by digest
	bytes int64                // of all of them
}

// heldTree is a tree that revisions refer to.
type heldTree struct {
	bytes int64
	users int
}

func (d *Daemon) newRegistrar(ctx context.Context, cfg ServeConfig) (_ *registrar, err error) {
	g := &registrar{d: d, scratch: filepath.Join(d.instance.Dir(), "scratch"), mostTrees: cfg.TreeBytes, leastFree: cfg.FreeBytes,
		making: make(chan struct{}, 1), trees: map[string]*heldTree{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if err := os.Mkdir(g.scratch, 0o711); err != nil {
		return nil, err
	}
	if err := os.Chmod(g.scratch, 0o711); err != nil { // whatever the umask is
		return nil, err
	}
	bases := map[string]*rootfs.Tree{}
	for _, r := range cfg.Runtimes {
		base := bases[r.Base]
		if base == nil {
			if base, err = rootfs.Base(ctx, rootfs.BaseOptions{Base: r.Base, Scratch: g.scratch}); err != nil {
				return nil, fmt.Errorf("runtime %s: %w", r.Name, err)
			}
			bases[r.Base] = base
		}
		runtime, warnings, err := rootfs.PrepareRuntime(ctx, rootfs.RuntimeOptions{Name: r.Name, Base: base, Given: r.Base, Layers: r.Layers, Store: d.packages})
		if r.Optional && (errors.Is(err, invalid.ErrRuntime) || err == nil && len(warnings) > 0) {
			d.log.WithError(err).WithField("runtime", r.Name).Debug("this host does not have the runtime")
			if err == nil {
				err = runtime.Close()
			}
			if err != nil && !errors.Is(err, invalid.ErrRuntime) {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("runtime %s: %w", r.Name, err)
		}
		for _, w := range warnings {
			d.log.Warn(w)
		}
		g.runtimes = append(g.runtimes, runtime)
	}
	g.roles = d.newRoleSources(cfg.Roles)
	d.maker.revisions.runtimes, d.maker.revisions.roles = len(g.runtimes), len(g.roles)
	return g, nil
}

// close gives up the runtimes. The revisions have their own references.
func (g *registrar) close() error {
	var errs []error
	for _, r := range g.runtimes {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

// register implements registry.Config.Register.
func (g *registrar) register(ctx context.Context, form []byte, files []*os.File) (program function.Program, missing uint32, err error) {
	revisions := g.d.maker.revisions
	rev, err := revisions.decode(form)
	if err != nil {
		return program, 0, err
	}
	for i, digest := range rev.Trees() {
		if digest == (message.Digest{}) {
			return program, 0, fmt.Errorf("%w: tree %d has no digest", message.ErrRevision, i)
		}
	}
	select {
	case g.making <- struct{}{}:
		defer func() { <-g.making }()
	case <-ctx.Done():
		return program, 0, ctx.Err()
	}
	if program, ok, err := revisions.again(rev.ID, form); ok || err != nil {
		return program, 0, err
	}
	refs, missing, err := g.open(ctx, &rev, files)
	if err != nil || missing != 0 {
		return program, missing, kindOf(err)
	}
	made, err := g.files(ctx, &rev, refs)
	if err != nil {
		return program, 0, kindOf(err)
	}
	for revisions.full() && revisions.evict() {
	}
	err = revisions.register(form, made)
	return made.Program, 0, err
}

// open returns references to the trees of a revision. Trees that the store does not have are
// extracted from the files that came with it. If one has not come, missing says which, and
// there are no references.
func (g *registrar) open(ctx context.Context, rev *message.Revision, files []*os.File) (refs store.Refs, missing uint32, err error) {
	limits := extract.Limits{}.WithDefaults()
	for i, digest := range rev.Trees() {
		name, about := hex.EncodeToString(digest[:]), "the code"
		if i > 0 {
			about = fmt.Sprintf("layer %d", i)
		}
		ref, err := g.d.packages.HoldZip(ctx, name, about, limits)
		switch {
		case err != nil || ref != nil:
		case files[i] == nil:
			missing |= 1 << i
			continue
		default:
			if err = g.room(); err == nil {
				ref, err = g.d.packages.AddOpenZip(ctx, files[i], name, about, limits)
			}
		}
		if err != nil {
			return nil, 0, errors.Join(err, refs.Close())
		}
		refs = append(refs, ref)
		limits.UnzippedBytes = max(limits.UnzippedBytes-ref.Size, 1) // 0 would mean the default
	}
	if missing != 0 {
		return nil, missing, refs.Close()
	}
	return refs, 0, nil
}

// room returns an error if the disk has too little room for another tree.
func (g *registrar) room() error {
	var st unix.Statfs_t
	if err := unix.Statfs(g.d.cfg.StateDir, &st); err != nil {
		return &os.PathError{Op: "statfs", Path: g.d.cfg.StateDir, Err: err}
	}
	if free := int64(st.Bavail) * st.Bsize; free < g.leastFree {
		return fmt.Errorf("%w: the disk of --state-dir %s has %s left, and %s are kept free; make room there", unix.ENOSPC, g.d.cfg.StateDir, invalid.Megabytes(free), invalid.Megabytes(g.leastFree))
	}
	return nil
}

// files prepares what the sandboxes of a revision share. It takes the references over.
func (g *registrar) files(ctx context.Context, rev *message.Revision, refs store.Refs) (Files, error) {
	release, err := g.hold(refs)
	if err != nil {
		return Files{}, errors.Join(err, refs.Close())
	}
	prepared, err := g.runtimes[rev.Runtime].Function(refs[0], refs[1:], g.scratch)
	if err != nil {
		release()
		return Files{}, err
	}
	files := Files{Tree: prepared.Tree, Program: programOf(prepared), Close: func() error {
		release()
		return prepared.Close()
	}}
	if len(refs) > 1 {
		if err := g.d.engine.CheckMounts(mountsOf(prepared.Tree)); err != nil {
			return Files{}, errors.Join(fmt.Errorf("lay the layers over each other: %w", err), files.close())
		}
	}
	tmp, ref, err := g.d.packages.TmpTemplate(ctx, int64(rev.TmpMB)<<20)
	if err != nil {
		return Files{}, errors.Join(err, files.close())
	}
	files.Tmp, files.Close = tmp, func() error {
		release()
		return errors.Join(prepared.Close(), ref.Close())
	}
	return files, nil
}

// hold counts the trees of a revision, until release is called. It retires revisions without
// sandboxes if the trees are too large together.
func (g *registrar) hold(refs store.Refs) (release func(), err error) {
	for !g.count(refs) {
		if !g.d.maker.revisions.evict() {
			return nil, fmt.Errorf("%w: the extracted code of all functions in use would exceed %s, which the operator allows", message.ErrTooMany, invalid.Megabytes(g.mostTrees))
		}
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, ref := range refs {
			t := g.trees[ref.Digest]
			if t.users--; t.users == 0 {
				g.bytes -= t.bytes
				delete(g.trees, ref.Digest)
			}
		}
	}, nil
}

// count implements hold: it counts the trees if they are not too large.
func (g *registrar) count(refs store.Refs) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	added := map[string]int64{}
	more := int64(0)
	for _, ref := range refs {
		if g.trees[ref.Digest] == nil && added[ref.Digest] == 0 {
			added[ref.Digest] = ref.Size
			more += ref.Size
		}
	}
	if g.mostTrees > 0 && g.bytes+more > g.mostTrees {
		return false
	}
	g.bytes += more
	for _, ref := range refs {
		t := g.trees[ref.Digest]
		if t == nil {
			t = &heldTree{bytes: ref.Size}
			g.trees[ref.Digest] = t
		}
		t.users++
	}
	return true
}

// programOf returns what the control process learns of the files of a function.
func programOf(f *rootfs.Function) function.Program {
	return function.Program{
		Bootstrap:  function.Entry{Path: f.Bootstrap, Args: f.BootstrapArgs, Dir: f.WorkingDir},
		Extensions: f.Extensions, ExtensionsDisabled: f.ExtensionsDisabled, Locale: f.Locale,
	}
}

// kindOf gives the errors of packages the kinds that the control process knows.
func kindOf(err error) error {
	bad, ok := errors.AsType[*invalid.Error](err)
	if !ok || errors.Is(err, invalid.ErrTool) {
		return err
	}
	kind := message.ErrUnusable
	switch bad.Kind {
	case invalid.ErrDigest:
		kind = message.ErrDigest
	case invalid.ErrTooLarge:
		kind = message.ErrTooLarge
	case invalid.ErrPackage, invalid.ErrUnsafe:
		kind = message.ErrPackage
	}
	return &message.Error{Text: err.Error(), Kinds: message.KindsOf(kind)}
}
