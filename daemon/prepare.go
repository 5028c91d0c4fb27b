package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/image"
)

// Source locates the code of a function on the host.
type Source struct {
	Code   string   // a directory, mounted as it is, or a zip; "" with Image
	Image  string   // an OCI layout, an archive or a reference; "" with Code
	Layers []string // directories or zips; later ones override earlier ones
	Base   string   // rootfs.HostBase or a directory; unused with Image
}

// Function is a function and its code.
type Function struct {
	Settings function.Settings
	Source   Source
}

// Prepare extracts the files that all sandboxes of the function share, registers the
// function as a new revision, and returns that revision.
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
	if err := d.engine.CheckMounts(mountsOf(prepared.Tree)); err != nil {
		err = fmt.Errorf("lay the layers over each other: %w; give zips or copies of the folders, since one is perhaps a mount of another, or on a file system that no overlay can use", err)
		return nil, errors.Join(err, prepared.Close())
	}
	rev.Program.Bootstrap = function.Entry{Path: prepared.Bootstrap, Args: prepared.BootstrapArgs, Dir: prepared.WorkingDir}
	rev.Program.Extensions, rev.Program.ExtensionsDisabled = prepared.Extensions, prepared.ExtensionsDisabled
	rev.Program.Locale = prepared.Locale
	if w := localeWarning(rev.Env, prepared.Locale); w != "" {
		d.log.Warn(w)
	}
	files := Files{Tree: prepared.Tree, Prefix: idPrefix(rev.Name), Close: prepared.Close, Program: rev.Program}
	tmp, ref, err := d.packages.TmpTemplate(ctx, int64(rev.EphemeralMB)<<20)
	if err != nil {
		return nil, errors.Join(err, files.close())
	}
	files.Tmp, files.Close = tmp, func() error { return errors.Join(prepared.Close(), ref.Close()) }
	form, err := d.formOf(rev, prepared)
	if err != nil {
		return nil, errors.Join(err, files.close())
	}
	return rev, d.maker.revisions.register(form, files)
}

// localeWarning returns a warning if the operator's LANG is that of Lambda, and the base does
// not have it: locale is what the base has (ENV-10). For an image, which has "", it does not.
func localeWarning(env map[string]string, locale string) string {
	if lang := env["LANG"]; lang != rootfs.LambdaLocale || locale == "" || locale == lang {
		return ""
	}
	return "LANG=" + rootfs.LambdaLocale + " is set for the function, and the base does not have this locale: Java, Ruby, perl and others garble text beyond ASCII; " +
		"remove the variable to get LANG=" + locale + ", or see the line on the locale in 'sandboxd doctor'"
}

// Retire ends a revision: the daemon creates no more sandboxes of it, and releases its
// files once its last sandbox is gone. The only error is message.ErrUnknownRevision.
func (d *Daemon) Retire(id function.ID) error { return d.maker.revisions.retire(id.Number) }

// newEpoch returns a random epoch, so that two runs of a daemon have different ones.
func newEpoch() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:])                      // never fails (crypto/rand)
	return binary.LittleEndian.Uint64(b[:]) | 1 // never 0, which is no epoch
}

// formOf encodes the part of the revision that the privileged process needs.
func (d *Daemon) formOf(rev *function.Revision, prepared *rootfs.Function) ([]byte, error) {
	profile := slices.Index(isolation.Profiles(), rev.Seccomp)
	network := slices.IndexFunc(d.cfg.Networks, func(n Network) bool { return n.Name == rev.Network })
	if profile < 0 || network < 0 {
		return nil, fmt.Errorf("unknown seccomp profile %q or unknown network %q", rev.Seccomp, rev.Network)
	}
	m := message.Revision{
		ID: rev.ID, MemoryMB: uint32(rev.MemoryMB), TmpMB: uint32(rev.EphemeralMB),
		MicroCPU: uint32(rev.CPU() * 1e6), PIDs: function.MaxPIDs,
		Profile: uint16(profile), Network: uint16(network),
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

// prepareCode extracts the function's files. For a container image it also sets the handler
// and the program's configuration in rev.
func (d *Daemon) prepareCode(ctx context.Context, rev *function.Revision, src Source) (*rootfs.Function, error) {
	scratch := filepath.Join(d.instance.Dir(), "scratch")
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return nil, err
	}
	if src.Image == "" {
		return rootfs.Prepare(ctx, rootfs.FunctionOptions{
			Code: src.Code, Layers: src.Layers, Base: src.Base, Runtime: rev.Runtime, Handler: rev.Handler, Wrapper: rev.Env["AWS_LAMBDA_EXEC_WRAPPER"],
			Store: d.packages, Scratch: scratch, Progress: d.progress(),
		})
	}
	progress := d.progress()
	f, err := image.Prepare(ctx, image.Options{Image: src.Image, Env: rev.Env, Layers: src.Layers, Store: d.packages, Scratch: scratch,
		Read: d.unpack.ReadImage, Unpack: d.unpack.UnpackImage, Moved: d.unpack.Moved,
		Progress: func(done, total int64) { progress(src.Image, done, total) }})
	if err != nil {
		return nil, err
	}
	f.Warnings = append(f.Warnings, droppedVariables(src.Image, f.Env)...)
	rev.Handler = f.Handler
	rev.Program.Image = &function.Image{Entrypoint: f.Entrypoint, Cmd: f.Cmd, WorkingDir: f.ConfiguredDir, Env: f.Env}
	return &f.Function, nil
}

// droppedVariables returns a warning for each variable of an image that its function does not
// get. AWS's base images have some of the platform's with its values, which are no loss.
func droppedVariables(image string, env map[string]string) (warnings []string) {
	for _, name := range slices.Sorted(maps.Keys(env)) {
		err := function.CheckImageVariable(name, env[name])
		if err == nil || name == "LAMBDA_TASK_ROOT" || name == "LAMBDA_RUNTIME_DIR" {
			continue
		}
		warnings = append(warnings, fmt.Sprintf("%s: the function does not get a variable of the image: %v", image, err))
	}
	return warnings
}

// Progress of an extraction is logged after progressDelay, and then once every progressEvery.
const (
	progressDelay = 2 * time.Second
	progressEvery = 5 * time.Second
)

// progress returns a function that logs how far the extraction of a file or an image is. total
// is 0 if it is not known. It may be called from several goroutines.
func (d *Daemon) progress() func(file string, done, total int64) {
	var mu sync.Mutex
	next := time.Now().Add(progressDelay)
	return func(file string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		now := time.Now()
		if now.Before(next) {
			return
		}
		next = now.Add(progressEvery)
		of := ""
		if total > 0 {
			of = fmt.Sprintf(" of %d", total>>20)
		}
		d.log.Infof("extracting %s: %d%s MiB", file, done>>20, of)
	}
}
