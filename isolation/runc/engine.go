// Package runc creates sandboxes from isolation specs. It needs root. No other package
// imports libcontainer, nsenter or the cgroup managers.
//
// A daemon has one [Engine], which creates sandboxes, and is safe for concurrent use. Each
// [Sandbox] implements supervisor.Box: it has a parent cgroup, a network namespace with the
// listener of the Runtime API, a /tmp, and up to two domains. A domain is a container whose
// PID 1 is the init handler. A [Prewarmed] is a sandbox without the files of a function.
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

// Config configures an Engine.
type Config struct {
	Instance   string // id of the daemon, the name of its cgroup folder
	RunDir     string // folder of this daemon only; other users need search permission on it and its parents
	InitBinary []byte // program of the init handler, a static executable
	Stage      []byte // command sandbox-stage, a static executable; nil uses the daemon's own program
	Host       Host   // from DetectHost

	Network isolation.Network // network of the sandboxes; with NetworkEgress the engine has a gateway
	CutOff  func(error)       // if not nil, called with the cause when all sandboxes have lost egress
}

// Engine creates sandboxes. It is safe for concurrent use.
type Engine struct {
	place   *placement
	fs      string // mount point of a tmpfs that only this daemon sees, with the init handler and roots
	state   string // folder of libcontainer's state
	creator *creator
	filters filters
	devices *devices
	stage   *os.File        // sealed; nil without one
	gateway *egress.Gateway // nil without NetworkEgress
	remains remains

	host         isolation.Host
	processors   *processors
	limitsCgroup string // see makeLimitsCgroup
}

// New prepares the host for the sandboxes of one daemon: it creates the daemon's cgroup
// folder, and mounts a private file system for roots. Call it once, after SealSelf.
// Afterwards the process sees only its own cgroups. The caller must Close the engine.
func New(cfg Config) (_ *Engine, err error) {
	if !exeseal.IsSelfExeCloned() { // without SealSelf the mounts below would affect the host
		return nil, errors.New("the daemon has no mount namespace of its own: SealSelf was not called")
	}
	if len(cfg.InitBinary) == 0 {
		return nil, errors.New("the program of the init handler is empty; build with make build")
	}
	if err := searchable(cfg.RunDir); err != nil {
		return nil, err
	}
	logrus.SetLevel(logrus.ErrorLevel) // libcontainer logs here; after a failure it warns about cgroups that it did not create
	e := &Engine{fs: filepath.Join(cfg.RunDir, "fs")}
	e.state = filepath.Join(e.fs, "containers")
	if e.host, err = hostFacts(); err != nil {
		return nil, err
	}
	e.filters.sysinfo = CheckSysinfo() == nil
	e.processors = &processors{all: e.host.CPUs, users: map[int]int{}}
	if err := os.MkdirAll(e.fs, 0o711); err != nil {
		return nil, fmt.Errorf("create the folder for roots: %w", err)
	}
	if err := unix.Mount("sandboxd", e.fs, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=711,size=64m"); err != nil {
		return nil, fmt.Errorf("mount the file system for roots: %w", err)
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
	// It is a separate file system, so that the mounts of a domain show no path of the daemon.
	if err := unix.Mount("empty", e.empty(), "tmpfs", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=4k,nr_inodes=1"); err != nil {
		return nil, &os.PathError{Op: "mount", Path: e.empty(), Err: err}
	}
	if e.devices, err = newDevices(filepath.Join(e.fs, "dev")); err != nil {
		return nil, err
	}
	if err := os.WriteFile(e.initBinary(), cfg.InitBinary, 0o555); err != nil {
		return nil, fmt.Errorf("write the program of the init handler: %w", err)
	}
	if len(cfg.Stage) > 0 {
		if e.stage, err = exeseal.CloneBinary(bytes.NewReader(cfg.Stage), int64(len(cfg.Stage)), "sandbox-stage", e.fs); err != nil {
			return nil, fmt.Errorf("create a sealed copy of sandbox-stage: %w", err)
		}
	}
	if e.place, err = place(cfg.Host, cfg.Instance, filepath.Join(e.fs, "cgroup")); err != nil {
		return nil, err
	}
	if e.limitsCgroup, err = e.place.makeLimitsCgroup(); err != nil {
		return nil, errors.Join(fmt.Errorf("create the cgroup that sandboxes see: %w", err), e.place.remove(context.Background()))
	}
	e.creator = newCreator()
	return e, nil
}

func (e *Engine) initBinary() string { return filepath.Join(e.fs, "init") }
func (e *Engine) scratch() string    { return filepath.Join(e.fs, "scratch") }

// empty returns the mount point of an empty file system, which is used to hide directories.
func (e *Engine) empty() string { return filepath.Join(e.fs, "empty") }

// Close removes what New created, and tries a last time to remove the remains of sandboxes
// whose creation failed. All other sandboxes must be closed before.
func (e *Engine) Close(ctx context.Context) error {
	remains := e.removeAllRemains(ctx)
	err := e.creator.close(ctx)
	if err == nil { // no thread uses the files any more
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

// CheckEgress checks whether the host has what NetworkEgress needs, by trying it. It leaves
// nothing behind.
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

// removeFolder removes a daemon's cgroup folder, and the folder of all daemons if it is empty
// then.
func removeFolder(ctx context.Context, p *placement) error {
	err := removeTree(ctx, p, p.hosted)
	for _, root := range p.roots {
		_ = unix.Rmdir(filepath.Join(root, filepath.Dir(p.hosted))) // fails while another daemon has a folder in it
	}
	return err
}

// Reconcile kills the processes that the dead daemon instance has left, and removes its
// cgroups and then its network objects. record is the result of Host.CgroupFolder that the
// daemon recorded. If the record is damaged, because it names no folder of that daemon,
// Reconcile searches the cgroup trees for the folder (S-11). Call it before New, after which
// the process sees only its own cgroups.
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

// isFolderOf reports whether path has the form of a cgroup folder of the daemon instance.
func isFolderOf(path, instance string) bool {
	return filepath.IsAbs(path) && filepath.Clean(path) == path &&
		filepath.Base(path) == instance && filepath.Base(filepath.Dir(path)) == ownFolder
}

// holds reports whether the folder path exists in any tree.
func (p *placement) holds(path string) bool {
	for _, root := range p.roots {
		if fileExists(filepath.Join(root, path)) {
			return true
		}
	}
	return false
}

// find searches all trees for folders of the daemon instance.
func (p *placement) find(instance string) (folders []string, err error) {
	for _, root := range p.roots {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // removed after it was listed
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
			return nil, fmt.Errorf("find the cgroups of %s: %w", instance, err)
		}
	}
	return folders, nil
}

// killFolder kills every process below path: with cgroup.kill of cgroup v2 if it exists,
// which also reaches frozen processes, else one by one.
func killFolder(p *placement, path string) error {
	for _, root := range p.roots {
		if os.WriteFile(filepath.Join(root, path, "cgroup.kill"), []byte("1"), 0) == nil {
			return nil
		}
	}
	err := killTree(path, p, nil)
	// On v1 a frozen process handles no signal, and the daemon that froze it is dead: thaw it.
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

// searchable returns an error if other users may not search dir and its parents.
// libcontainer resolves the path of a root as the user of a domain.
func searchable(dir string) error {
	for p := dir; ; p = filepath.Dir(p) {
		info, err := os.Stat(p)
		if err != nil {
			return fmt.Errorf("check the run folder: %w", err)
		}
		if info.Mode()&0o001 == 0 {
			return fmt.Errorf("run folder %s: other users may not search %s; use a folder such as /run/sandboxd, or chmod o+x %s", dir, p, p)
		}
		if p == filepath.Dir(p) {
			return nil
		}
	}
}

// A creator runs functions on OS threads that live as long as the engine. There is one thread
// for each CPU. A domain's PID 1 gets its parent death signal when the thread that forked it
// ends, so domains must be created on threads that do not end (docs/decisions/0033).
type creator struct {
	jobs    chan func(*thread)
	quit    chan struct{}
	threads sync.WaitGroup
}

// A thread is one thread of a creator. A caller can run functions on a particular thread,
// because only the thread that forked a child can wait for it with WNOTHREAD.
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

// do runs f on any thread and waits for it. ctx only limits the wait for a free thread.
func (c *creator) do(ctx context.Context, f func(*thread) error) error {
	return c.send(ctx, c.jobs, f)
}

// do runs f on t, like do of the creator.
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

// close ends the threads, which kills the processes that they forked. It waits for running
// jobs until ctx ends.
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
