package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// Source says where the code of a function is on the host.
type Source struct {
	Code   string   // a directory, which is shown live, or a zip; "" with Image
	Image  string   // a layout, an archive or a reference; "" with Code
	Layers []string // directories or zips, later ones win
	Base   string   // rootfs.HostBase or a directory; of no meaning with Image
}

// Function is a function and its code.
type Function struct {
	Settings function.Settings
	Source   Source
}

// Prepare makes what all sandboxes of the function share, and registers the function as a
// new revision, which it returns.
func (d *Daemon) Prepare(ctx context.Context, fn Function) (*function.Revision, error) {
	rev := &function.Revision{
		ID: function.ID{Epoch: d.epoch, Number: d.last.Add(1)}, Version: function.Latest,
		ARN:      function.ARN(d.cfg.Worker.Region, d.cfg.Worker.AccountID, fn.Settings.Name),
		Settings: fn.Settings,
	}
	prepared, err := d.prepareCode(ctx, rev, fn.Source)
	if err != nil {
		return nil, err
	}
	for _, w := range prepared.Warnings {
		d.log.Warn(w)
	}
	rev.Program.Bootstrap = function.Entry{Path: prepared.Bootstrap, Args: prepared.BootstrapArgs, Dir: prepared.WorkingDir}
	rev.Program.Extensions, rev.Program.ExtensionsDisabled = prepared.Extensions, prepared.ExtensionsDisabled
	files := Files{Tree: prepared.Tree, Prefix: idPrefix(rev.Name)}
	if files.Tmp, err = store.TmpTemplate(ctx, filepath.Join(d.cfg.StateDir, "tmp"), int64(rev.EphemeralMB)<<20); err != nil {
		return nil, err
	}
	form, err := d.formOf(rev, prepared)
	if err != nil {
		return nil, err
	}
	return rev, d.maker.revisions.register(form, files)
}

// Retire ends a revision: no more sandboxes are made of it, and its files are given back
// when the last that it has is gone. The error is message.ErrUnknownRevision.
func (d *Daemon) Retire(id function.ID) error { return d.maker.revisions.retire(id.Number) }

// newEpoch returns a number that no other run of a daemon has.
func newEpoch() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])                      // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:]) | 1 // 0 is none
}

// formOf is what root has to know of the revision.
func (d *Daemon) formOf(rev *function.Revision, prepared *rootfs.Function) ([]byte, error) {
	profile := slices.Index(isolation.Profiles(), rev.Seccomp)
	network := slices.IndexFunc(d.cfg.Networks, func(n Network) bool { return n.Name == rev.Network })
	if profile < 0 || network < 0 {
		return nil, fmt.Errorf("there is no profile of system calls %q, or no network %q", rev.Seccomp, rev.Network)
	}
	m := message.Revision{
		ID: rev.ID, MemoryMB: uint32(rev.MemoryMB), TmpMB: uint32(rev.EphemeralMB),
		MicroCPU: uint32(rev.CPU() * 1e6), PIDs: function.MaxPIDs,
		Profile: uint16(profile), Network: uint16(network), Extensions: rev.Program.HasExtensions(),
	}
	var err error
	if m.Code, err = message.ParseDigest(prepared.Digest); err != nil {
		return nil, err
	}
	for _, digest := range prepared.LayerDigests {
		layer, err := message.ParseDigest(digest)
		if err != nil {
			return nil, err
		}
		m.Layers = append(m.Layers, layer)
	}
	return m.Encode(), nil
}

// prepareCode makes the function's files. An image's handler becomes that of rev, and what
// the image says of its program part of rev.
func (d *Daemon) prepareCode(ctx context.Context, rev *function.Revision, src Source) (*rootfs.Function, error) {
	packages, err := store.Open(filepath.Join(d.cfg.StateDir, "packages"))
	if err != nil {
		return nil, err
	}
	if err := packages.Leftover(); err != nil {
		d.log.WithError(err).Warn("a partial extraction of an earlier daemon stays; remove it by hand")
	}
	packages.Unzip = d.unpack.Zip
	scratch := filepath.Join(d.instance.Dir(), "scratch")
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return nil, err
	}
	if src.Image == "" {
		return rootfs.Prepare(ctx, rootfs.FunctionOptions{
			Code: src.Code, Layers: src.Layers, Base: src.Base, Runtime: rev.Runtime, Handler: rev.Handler,
			Store: packages, Scratch: scratch,
		})
	}
	f, err := image.Prepare(ctx, image.Options{Image: src.Image, Env: rev.Env, Layers: src.Layers, Store: packages, Scratch: scratch,
		Read: d.unpack.ReadImage, Unpack: d.unpack.UnpackImage})
	if err != nil {
		return nil, err
	}
	rev.Handler = f.Handler
	rev.Program.Image = &function.Image{Entrypoint: f.Entrypoint, Cmd: f.Cmd, WorkingDir: f.ConfiguredDir, Env: f.Env}
	return &f.Function, nil
}
