// Package runc makes live sandboxes of isolation specs. It is the only importer of
// the live libcontainer, of nsenter and of the cgroup managers, and needs root.
//
// An [Engine] belongs to one daemon. Each [Sandbox] is what package supervisor calls
// a box: a parent cgroup, a network namespace with the Runtime API's listener, a
// /tmp, and up to two domains, each a container whose PID 1 is the init handler.
package runc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	_ "github.com/opencontainers/cgroups/devices" // without it package cgroups sets no device rules
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/egress"
)

// Config says where an Engine keeps its things.
type Config struct {
	Instance   string // id of the daemon; names its cgroups
	RunDir     string // folder of this daemon alone; others need search permission on it and its parents
	InitBinary []byte // the init handler, a static executable
	Stage      []byte // command sandbox-stage, a static executable; nil: the daemon's own program does its work
	Host       Host   // as DetectHost found it

	Network isolation.Network // of the sandboxes; with NetworkEgress the engine has a gateway
	CutOff  func(error)       // is told why all sandboxes have lost their egress; may be nil
}

// Engine creates sandboxes. It is safe for concurrent use.
type Engine struct {
	place   *placement
	fs      string // a tmpfs that only this daemon sees: the init handler and roots
	state   string // libcontainer's state
	creator *creator
	filters filters
	devices *devices
	stage   *os.File        // sealed; nil without one
	gateway *egress.Gateway // nil without NetworkEgress
	remains remains
}

// New prepares the host for the sandboxes of one daemon: its cgroup folder, and a
// private file system for roots. Call it after SealSelf, and once: the process sees no
// other cgroups afterwards. The caller must Close it.
func New(cfg Config) (_ *Engine, err error) {
	if !exeseal.IsSelfExeCloned() { // what is mounted and unmounted would be so for the host
		return nil, errors.New("the daemon is in no mount namespace of its own: SealSelf was not called")
	}
	if len(cfg.InitBinary) == 0 {
		return nil, errors.New("built without the init handler; build with make build")
	}
	if err := searchable(cfg.RunDir); err != nil {
		return nil, err
	}
	logrus.SetLevel(logrus.ErrorLevel) // libcontainer's log: after a failure it warns of cgroups that it does not have
	e := &Engine{fs: filepath.Join(cfg.RunDir, "fs")}
	e.state = filepath.Join(e.fs, "containers")
	if err := os.MkdirAll(e.fs, 0o711); err != nil {
		return nil, fmt.Errorf("folder for roots: %w", err)
	}
	if err := unix.Mount("sandboxd", e.fs, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711,size=64m"); err != nil {
		return nil, fmt.Errorf("file system for roots: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.closeStage(), e.closeGateway(), e.devices.close(), unix.Unmount(e.fs, unix.MNT_DETACH))
		}
	}()
	if cfg.Network.Mode == isolation.NetworkEgress {
		if e.gateway, err = egress.Open(cfg.Instance, cfg.Network, cfg.CutOff); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{e.scratch(), e.empty(), filepath.Join(e.fs, "roots")} {
		if err := os.Mkdir(dir, 0o711); err != nil {
			return nil, err
		}
	}
	// A file system of its own, so that no path of the daemon's shows where it hides others.
	if err := unix.Mount("empty", e.empty(), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=4k,nr_inodes=1"); err != nil {
		return nil, &os.PathError{Op: "mount", Path: e.empty(), Err: err}
	}
	if e.devices, err = newDevices(filepath.Join(e.fs, "dev")); err != nil {
		return nil, err
	}
	if err := os.WriteFile(e.initBinary(), cfg.InitBinary, 0o555); err != nil {
		return nil, fmt.Errorf("init handler: %w", err)
	}
	if len(cfg.Stage) > 0 {
		if e.stage, err = exeseal.CloneBinary(bytes.NewReader(cfg.Stage), int64(len(cfg.Stage)), "sandbox-stage", e.fs); err != nil {
			return nil, fmt.Errorf("sealed copy of sandbox-stage: %w", err)
		}
	}
	if e.place, err = place(cfg.Host, cfg.Instance, filepath.Join(e.fs, "cgroup")); err != nil {
		return nil, err
	}
	e.creator = newCreator()
	return e, nil
}

func (e *Engine) initBinary() string { return filepath.Join(e.fs, "init") }
func (e *Engine) scratch() string    { return filepath.Join(e.fs, "scratch") }

// empty is a directory without entries, a file system of its own, which hides others.
func (e *Engine) empty() string { return filepath.Join(e.fs, "empty") }

// Close removes what New made, and tries a last time to remove what is left of sandboxes
// that could not be made. Every other sandbox must be closed before.
func (e *Engine) Close(ctx context.Context) error {
	remains := e.removeAllRemains(ctx)
	err := e.creator.close(ctx)
	if err == nil { // nobody hands them out any more
		e.filters.Close()
		err = e.closeStage()
	}
	return errors.Join(remains, err,
		e.closeGateway(),
		e.devices.close(),
		e.place.remove(ctx),
		unix.Unmount(e.fs, unix.MNT_DETACH),
		os.Remove(e.fs),
	)
}

// CheckEgress tries what sandboxes with NetworkEgress need of the host. It leaves nothing.
func CheckEgress() error { return egress.Check() }

func (e *Engine) closeStage() error {
	if e.stage == nil {
		return nil
	}
	return e.stage.Close()
}

func (e *Engine) closeGateway() error {
	if e.gateway == nil {
		return nil
	}
	return e.gateway.Close()
}

// removeFolder deletes a daemon's cgroup folder, and the folder of all daemons if
// no other is left in it.
func removeFolder(ctx context.Context, p *placement) error {
	err := removeTree(ctx, p, p.hosted)
	for _, root := range p.roots {
		_ = unix.Rmdir(filepath.Join(root, filepath.Dir(p.hosted))) // not empty: another daemon's
	}
	return err
}

// Reconcile ends and removes what the daemon instance, which is gone, left in the
// cgroup trees, and then on the network. record is what Host.CgroupFolder gave for it. A record that leads
// nowhere, or not to a folder of that daemon, is damaged: the folder is looked for
// (S-11). Call it before New: afterwards the process sees only its own cgroups.
func Reconcile(ctx context.Context, h Host, instance, record string) error {
	p := &placement{host: h, roots: h.roots()}
	folders := []string{record}
	if !p.holds(record) || !isFolderOf(record, instance) {
		var err error
		if folders, err = p.find(instance); err != nil {
			return err
		}
	}
	var errs []error
	for _, folder := range folders {
		p.hosted, p.group = folder, folder
		errs = append(errs, killFolder(p, folder), removeFolder(ctx, p))
	}
	return errors.Join(append(errs, egress.Remove(instance))...)
}

// isFolderOf tells whether path has the form of a folder of the daemon instance.
func isFolderOf(path, instance string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path &&
		filepath.Base(path) == instance && filepath.Base(filepath.Dir(path)) == ownFolder
}

// holds tells whether the folder path exists in any tree.
func (p *placement) holds(path string) bool {
	for _, root := range p.roots {
		if fileExists(filepath.Join(root, path)) {
			return true
		}
	}
	return false
}

// find looks for the folders of the daemon instance in all of the trees.
func (p *placement) find(instance string) (folders []string, err error) {
	for _, root := range p.roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // gone since it was listed
			}
			if err != nil || !d.IsDir() {
				return err
			}
			folder := strings.TrimPrefix(path, root)
			if isFolderOf(folder, instance) && !slices.Contains(folders, folder) {
				folders = append(folders, folder)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for the cgroups of %s: %w", instance, err)
		}
	}
	return folders, nil
}

// killFolder ends every process below path: by the v2 tree's switch where there is
// one, which reaches frozen processes, else one by one.
func killFolder(p *placement, path string) error {
	for _, root := range p.roots {
		if os.WriteFile(filepath.Join(root, path, "cgroup.kill"), []byte("1"), 0) == nil {
			return nil
		}
	}
	err := killTree(path, p, nil)
	// On v1 a frozen process takes no signal, and whoever froze it is gone.
	freezer, ok := p.host.Hierarchies["freezer"]
	if !ok {
		return err
	}
	return errors.Join(err, filepath.WalkDir(filepath.Join(freezer, path), func(dir string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && !d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
	}))
}

// searchable reports whether the user of a domain can pass through dir: libcontainer
// resolves the path of a root as that user.
func searchable(dir string) error {
	for p := dir; ; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("run folder: %w", err)
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("run folder %s: others may not pass through %s; use a folder such as /run/sandboxd, or chmod o+x %s", dir, p, p)
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

// A creator runs functions on OS threads that live as long as the engine, as many at
// once as there are CPUs. The kernel tells a domain's PID 1 of its parent's death when
// the thread that forked it ends, so domains must be created on threads that do not
// (docs/decisions/0033).
type creator struct {
	jobs    chan func(*thread)
	quit    chan struct{}
	threads sync.WaitGroup
}

// A thread is one of a creator's. What runs there can go back to it: only it can wait
// for its own children.
type thread struct {
	creator *creator
	jobs    chan func(*thread)
}

func newCreator() *creator {
	c := &creator{jobs: make(chan func(*thread)), quit: make(chan struct{})}
	for range runtime.NumCPU() {
		t := &thread{creator: c, jobs: make(chan func(*thread))}
		c.threads.Go(t.run)
	}
	return c
}

func (t *thread) run() {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	for {
		select {
		case job := <-t.creator.jobs:
			job(t)
		case job := <-t.jobs:
			job(t)
		case <-t.creator.quit:
			return
		}
	}
}

// do runs f on any thread and waits for it. ctx ends only the wait for its turn.
func (c *creator) do(ctx context.Context, f func(*thread) error) error {
	return c.send(ctx, c.jobs, f)
}

// do runs f on t as the creator's do does.
func (t *thread) do(ctx context.Context, f func(*thread) error) error {
	return t.creator.send(ctx, t.jobs, f)
}

func (c *creator) send(ctx context.Context, to chan<- func(*thread), f func(*thread) error) error {
	result := make(chan error, 1)
	select {
	case to <- func(t *thread) { result <- f(t) }:
		return <-result
	case <-c.quit:
		return errors.New("the engine is closed")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// close ends the threads, which ends what they created. A job that hangs is not waited
// for longer than ctx.
func (c *creator) close(ctx context.Context) error {
	close(c.quit)
	done := make(chan struct{})
	go func() {
		c.threads.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the creation of a domain hangs: %w", ctx.Err())
	}
}
