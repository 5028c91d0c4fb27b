// Package engine measures sandboxes without a daemon around them, and what other
// runtimes need for the like. It runs in processes of its own: those of the engine are
// re-executed from sealed copies, and crun wants a mount namespace without the v2 tree.
package engine

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/store"
	"github.com/sandboxd/sandboxd/supervisor"
)

// Options say where things are.
type Options struct {
	Dir      string // for everything that is made; others may pass through it
	Init     string // the init handler
	Stage    string // command sandbox-stage; "" goes without
	Function string // folder of a function, shown at /var/task
}

// memory and cpus are the limits of every sandbox: a function of 1,769 MB (ENV-32).
const (
	memory = 1769 << 20
	cpus   = 1
	pids   = 1024
)

// host is what a daemon holds for its sandboxes.
type host struct {
	instance *instance.Instance
	leases   *subid.Leases
	engine   *runc.Engine
	spec     isolation.Spec
	tmp      *store.Ref // the image behind /tmp
	null     *os.File   // where sandboxes write to
}

// open makes what all sandboxes share. The caller must have called runc.SealSelf.
func open(ctx context.Context, o Options) (h *host, err error) {
	h = &host{}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	pool, err := subid.NewPool(subid.DefaultIDBase, "/")
	if err != nil {
		return h, err
	}
	if h.leases, err = subid.OpenLeases(subid.DefaultLeaseDir, pool); err != nil {
		return h, err
	}
	if h.instance, err = instance.Acquire(filepath.Join(o.Dir, "run")); err != nil {
		return h, err
	}
	binary, err := os.ReadFile(o.Init)
	if err != nil {
		return h, fmt.Errorf("init handler: %w", err)
	}
	var stage []byte
	if o.Stage != "" {
		if stage, err = os.ReadFile(o.Stage); err != nil {
			return h, fmt.Errorf("stage: %w", err)
		}
	}
	detected, err := runc.DetectHost()
	if err != nil {
		return h, err
	}
	if h.engine, err = runc.New(runc.Config{Instance: h.instance.ID(), RunDir: h.instance.Dir(), InitBinary: binary, Stage: stage, Host: detected}); err != nil {
		return h, err
	}
	tree, err := prepare(ctx, o)
	if err != nil {
		return h, err
	}
	packages, err := store.Open(filepath.Join(o.Dir, "packages"))
	if err != nil {
		return h, err
	}
	var template string
	if template, h.tmp, err = packages.TmpTemplate(ctx, 512<<20); err != nil {
		return h, err
	}
	h.spec = isolation.Spec{
		Hostname: "sandbox", Limits: isolation.Limits{MemoryBytes: memory, CPU: cpus, PIDs: pids},
		Domains: []string{isolation.RuntimeDomain}, Root: isolation.Root{Dirs: tree.Dirs}, Tmp: isolation.Tmp{Template: template},
	}
	for _, l := range tree.Links {
		h.spec.Root.Links = append(h.spec.Root.Links, isolation.Link(l))
	}
	for _, m := range tree.Mounts {
		h.spec.Mounts = append(h.spec.Mounts, isolation.Mount(m))
	}
	h.null, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	return h, err
}

// prepare makes the files that a sandbox shows.
func prepare(ctx context.Context, o Options) (*rootfs.Tree, error) {
	scratch := filepath.Join(o.Dir, "scratch")
	if err := os.MkdirAll(scratch, 0o711); err != nil {
		return nil, err
	}
	f, err := rootfs.Prepare(ctx, rootfs.FunctionOptions{Code: o.Function, Base: "host", Scratch: scratch})
	if err != nil {
		return nil, err
	}
	return &f.Tree, nil
}

// closeTime bounds the removal of anything.
const closeTime = 30 * time.Second

func (h *host) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	var errs []error
	if h.engine != nil {
		errs = append(errs, h.engine.Close(ctx))
	}
	if h.instance != nil {
		errs = append(errs, h.instance.Close())
	}
	if h.null != nil {
		errs = append(errs, h.null.Close())
	}
	errs = append(errs, h.tmp.Close())
	return errors.Join(errs...)
}

// sandbox makes a sandbox whose runtime domain has started. close removes it.
func (h *host) sandbox(ctx context.Context) (sup *supervisor.Sandbox, close func() error, err error) {
	spec := h.spec
	var id [4]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, nil, err
	}
	spec.ID = "bench-" + hex.EncodeToString(id[:])
	if spec.IDBase, err = h.leases.Acquire(h.instance.Dir()); err != nil {
		return nil, nil, err
	}
	box, err := h.engine.Create(ctx, spec)
	if err != nil {
		return nil, nil, errors.Join(err, h.leases.Release(spec.IDBase))
	}
	sup = supervisor.New(spec.ID, box)
	close = func() error {
		last, cancel := context.WithTimeout(context.Background(), closeTime)
		defer cancel()
		if err := sup.Close(last); err != nil {
			return err
		}
		return h.leases.Release(spec.IDBase)
	}
	if err = sup.Configure(isolation.RuntimeDomain, supervisor.DomainConfig{}); err == nil {
		err = sup.Start(ctx, isolation.RuntimeDomain)
	}
	if err != nil {
		return nil, nil, errors.Join(err, close())
	}
	return sup, close, nil
}

// run starts a program in a sandbox.
func (h *host) run(ctx context.Context, sup *supervisor.Sandbox, path string, env ...string) (*supervisor.Process, error) {
	return sup.Exec(ctx, supervisor.ExecRequest{
		Domain: isolation.RuntimeDomain, Name: "program", Path: path, Env: env, Stdout: h.null, Stderr: h.null,
	})
}
