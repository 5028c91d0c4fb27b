package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/sandboxd/sandboxd/daemon/unpack"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/isolation/wire"
	"github.com/sandboxd/sandboxd/layer"
	"github.com/sandboxd/sandboxd/rootfs"
)

// Layer says which layer is to be made.
type Layer struct {
	Runtime    *layer.Runtime
	Base       string   // rootfs.HostBase or a directory: has the package manager
	Registries []string // addresses; empty uses the package manager's own
	Lock       string   // folder of lock files; "" uses those of package layer
	Output     string   // path of the zip
}

// Limits of an installation.
const (
	layerMemory = 2 << 30
	layerCPUs   = 2
	layerPIDs   = 1024
	layerTmp    = 4 << 30
	layerBytes  = 512 << 20 // of the zip
	layerTime   = 2 * time.Hour

	maxLockFiles = 100
	maxLockBytes = 16 << 20
)

// MakeLayer makes a layer: the package manager of the language installs it in a sandbox,
// whose only way out is a proxy in an unprivileged process (docs/decisions/0042). This
// process reads nothing of what is installed. terminal gets what the package manager says.
func MakeLayer(ctx context.Context, cfg Config, l Layer, terminal *os.File) (err error) {
	messages := logging.NewAsyncWriter(terminal)
	defer messages.Close(exit.FlushTime)
	d, err := Open(ctx, cfg, logging.New(messages, cfg.Worker.LogLevel, false))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close(ctx)) }()
	ctx, cancel := context.WithTimeoutCause(ctx, layerTime, fmt.Errorf("the installation took longer than %v", layerTime))
	defer cancel()
	if info, err := os.Stat(l.Output); err == nil && info.IsDir() {
		return fmt.Errorf("--output %s is a directory; give the name of a file in it", l.Output)
	}
	output, err := os.CreateTemp(filepath.Dir(l.Output), "."+filepath.Base(l.Output)+"-")
	if err != nil {
		return fmt.Errorf("--output: %w", err)
	}
	defer os.Remove(output.Name()) // fails once it is renamed
	defer output.Close()
	if err := d.installLayer(ctx, l, output, terminal); err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, context.Canceled) {
			err = errors.New("interrupted")
		} else if cause != nil {
			err = cause
		}
		return fmt.Errorf("make the layer of %s: %w", l.Runtime.Name, err)
	}
	if err := errors.Join(output.Chmod(0o644), output.Sync()); err != nil {
		return fmt.Errorf("write %s: %w", l.Output, err)
	}
	return os.Rename(output.Name(), l.Output)
}

// installLayer runs the installation in a sandbox of its own.
func (d *Daemon) installLayer(ctx context.Context, l Layer, output, terminal *os.File) (err error) {
	spec, release, err := d.layerSpec(ctx, l)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if spec.ID, err = sandboxID("layer"); err != nil {
		return err
	}
	if spec.IDBase, err = d.leases.Acquire(d.instance.Dir()); err != nil {
		return err
	}
	box, err := d.engine.Create(ctx, spec)
	if err != nil {
		return d.maker.rollback(spec.ID, function.ID{}, spec.IDBase, err, func() {})
	}
	defer func() {
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
		defer cancel()
		err = errors.Join(err, d.maker.remove(last, spec.ID, function.ID{}, spec.IDBase, box.Close, func() {}))
	}()
	err = d.runInstaller(ctx, box, l, output, terminal)
	if usage, e := box.Usage(); err != nil && e == nil && usage.OOMKills > 0 {
		err = fmt.Errorf("%w; it ran out of its memory of %d MB", err, layerMemory>>20)
	}
	return err
}

// layerSpec describes the sandbox. release releases its files.
func (d *Daemon) layerSpec(ctx context.Context, l Layer) (spec isolation.Spec, release func() error, err error) {
	scratch, err := os.MkdirTemp(d.instance.Dir(), "layer-")
	if err != nil {
		return spec, nil, err
	}
	code := filepath.Join(scratch, "code")
	if err := fillCode(code, l); err != nil {
		return spec, nil, errors.Join(err, os.RemoveAll(scratch))
	}
	prepared, err := rootfs.Prepare(ctx, rootfs.FunctionOptions{Code: code, Base: l.Base, Scratch: scratch})
	if err != nil {
		return spec, nil, errors.Join(err, os.RemoveAll(scratch))
	}
	tmp, ref, err := d.packages.TmpTemplate(ctx, layerTmp)
	if err != nil {
		return spec, nil, errors.Join(err, prepared.Close(), os.RemoveAll(scratch))
	}
	spec = isolation.Spec{
		Hostname: "sandbox", Limits: isolation.Limits{MemoryBytes: layerMemory, CPU: layerCPUs, PIDs: layerPIDs},
		Domains: []string{isolation.RuntimeDomain}, Root: isolation.Root{Dirs: prepared.Dirs}, Tmp: isolation.Tmp{Template: tmp},
		Network: isolation.Network{Mode: isolation.NetworkNone},
	}
	for _, link := range prepared.Links {
		spec.Root.Links = append(spec.Root.Links, isolation.Link(link))
	}
	for _, m := range prepared.Mounts {
		spec.Mounts = append(spec.Mounts, isolation.Mount(m))
	}
	return spec, func() error { return errors.Join(prepared.Close(), ref.Close(), os.RemoveAll(scratch)) }, nil
}

// fillCode makes the folder that is shown at /var/task: this program and the lock files.
func fillCode(dir string, l Layer) error {
	lock := filepath.Join(dir, filepath.Base(layer.LockDir))
	if err := os.MkdirAll(lock, 0o755); err != nil {
		return err
	}
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	program, err := os.OpenFile(filepath.Join(dir, "bootstrap"), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	defer program.Close()
	if _, err := io.Copy(program, self); err != nil {
		return err
	}
	files, err := lockFiles(l)
	if err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(lock, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// lockFiles returns the lock files by their names: the operator's, or those that sandboxd
// has.
func lockFiles(l Layer) (map[string][]byte, error) {
	if l.Lock == "" {
		files, err := l.Runtime.Lock()
		if err == nil && files == nil {
			err = fmt.Errorf("sandboxd has no lock file for %s: name a folder with one by --lock; see 'sandboxd layer --help'", l.Runtime.Name)
		}
		return files, err
	}
	files, size := map[string][]byte{}, 0
	root, err := os.OpenRoot(l.Lock)
	if err != nil {
		return nil, fmt.Errorf("--lock: %w", err)
	}
	defer root.Close()
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := root.ReadFile(name)
		if files[name], size = text, size+len(text); len(files) > maxLockFiles || size > maxLockBytes {
			return fmt.Errorf("more than %d files or %d MB: name the folder that has only lock files", maxLockFiles, maxLockBytes>>20)
		}
		return err
	})
	if err == nil && len(files) == 0 {
		err = errors.New("the folder has no files")
	}
	if err != nil {
		return nil, fmt.Errorf("--lock %s: %w", l.Lock, err)
	}
	return files, nil
}

// runInstaller starts the program in the sandbox, and has an unprivileged process care for
// it.
func (d *Daemon) runInstaller(ctx context.Context, box *runc.Sandbox, l Layer, output, terminal *os.File) error {
	control, err := box.Start(ctx, isolation.RuntimeDomain)
	if err != nil {
		return err
	}
	defer control.Close()
	if err := box.SetThrottled(ctx, true); err != nil {
		return err
	}
	files := unpack.InstallFiles{Output: output, Terminal: terminal}
	var ends []*os.File // to close
	defer func() {
		for _, f := range ends {
			f.Close()
		}
	}()
	listener, ok := box.Listener().(*net.TCPListener)
	if !ok {
		return fmt.Errorf("%T is not a socket", box.Listener())
	}
	if files.Listener, err = listener.File(); err != nil {
		return err
	}
	ends = append(ends, files.Listener)
	var writers [2]*os.File
	for i, reader := range []**os.File{&files.Stdout, &files.Stderr} {
		if *reader, writers[i], err = os.Pipe(); err != nil {
			return err
		}
		ends = append(ends, *reader, writers[i])
	}
	if err := box.GivePipes(ctx, writers[:]...); err != nil {
		return err
	}
	const id = 1
	program := wire.Exec{
		ID: id, Path: "/var/task/bootstrap", Argv: append([]string{layer.Command, l.Runtime.Name}, l.Registries...),
		Env: []string{"PATH=/usr/local/bin:/usr/bin:/bin", "TMPDIR=/tmp"}, Dir: "/tmp", UID: isolation.UserID, GID: isolation.GroupID,
	}
	if err := control.Send(program, writers[:]...); err != nil {
		return err
	}
	writers[0].Close() // only the sandbox has them now: their end is its end
	writers[1].Close()
	if files.Control, err = control.File(); err != nil {
		return err
	}
	ends = append(ends, files.Control)
	return d.unpack.Install(ctx, unpack.InstallJob{About: "the installation", ID: id, Bytes: layerBytes}, files)
}
