package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/image"
	"github.com/sandboxd/sandboxd/rootfs/store"
)

// embedded holds the init handler and sandbox-stage, which the build puts there.
//
//go:embed all:embedded
var embedded embed.FS

const (
	reconcileTime = 10 * time.Second // for the leftovers of one start
	teardownTime  = 10 * time.Second // for what remains once the sandboxes are gone
	cgroupRecord  = "cgroup"         // file of an instance folder: where its cgroups are
)

// session is everything that one `run` holds in the supervisor's process. open acquires
// it step by step, close releases it in reverse, whatever open came to. What the worker
// holds is in [worker].
type session struct {
	o    *options
	host runc.Host
	log  *logrus.Logger

	image *rapid.Image // nil: the function is no image
	moves atomic.Int64 // of the processes that take apart what strangers have made

	instance *instance.Instance
	leases   *subid.Leases
	memory   meminfo
	engine   *runc.Engine
	maker    *maker
}

// open acquires all that sandboxes need, but makes none.
func (s *session) open(ctx context.Context) (_ *rootfs.Function, err error) {
	pool, err := subid.NewPool(uint32(s.o.idBase), "/")
	if err != nil {
		return nil, err
	}
	if s.leases, err = subid.OpenLeases(subid.DefaultLeaseDir, pool); err != nil {
		return nil, err
	}
	if err := s.reconcile(ctx); err != nil {
		s.log.WithError(err).Warn("leftovers of a dead daemon could not be removed; the next start tries again")
	}
	if s.instance, err = instance.Acquire(s.o.runDir); err != nil {
		return nil, err
	}
	if s.memory, err = openMeminfo(); err != nil {
		return nil, err
	}
	if err := s.openEngine(); err != nil {
		return nil, err
	}
	if s.o.strict {
		if err := s.host.TellsDomains(); err != nil {
			return nil, fmt.Errorf("--strict cannot be kept on this host: %w", err)
		}
	}
	function, template, err := s.prepare(ctx)
	if err != nil {
		return nil, err
	}
	for _, w := range function.Warnings {
		s.log.Warn(w)
	}
	if s.o.network == isolation.NetworkHost {
		s.log.Warn("UNSAFE: --network host: the function has the host's network, and everybody on the host can reach its Runtime API")
	}
	s.maker = newMaker(s, specOf(s.o, function, template))
	return function, nil
}

// reconcile removes what killed daemons have left.
func (s *session) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileTime)
	defer cancel()
	removed, err := instance.Reconcile(ctx, s.o.runDir, s.leases, func(ctx context.Context, dead instance.Info) error {
		path, err := os.ReadFile(filepath.Join(dead.Dir, cgroupRecord))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it died before it had cgroups
		}
		if err != nil {
			return err
		}
		return runc.Reconcile(ctx, s.host, dead.ID, string(path))
	})
	if len(removed) > 0 {
		s.log.WithField("instances", strings.Join(removed, " ")).Info("removed the leftovers of dead daemons")
	}
	return err
}

// openEngine starts the engine. Where its cgroups will be is on record before there
// are any, for the daemon that may have to remove them.
func (s *session) openEngine() error {
	binary, err := embedded.ReadFile("embedded/sandbox-init")
	if err != nil {
		return errors.New("this sandboxd was built without its init handler; build it with 'make build'")
	}
	stage, err := embedded.ReadFile("embedded/sandbox-stage")
	if err != nil {
		return errors.New("this sandboxd was built without sandbox-stage; build it with 'make build'")
	}
	if err := s.recordCgroups(s.host.CgroupFolder(s.instance.ID())); err != nil {
		return err
	}
	s.engine, err = runc.New(runc.Config{
		Instance: s.instance.ID(), RunDir: s.instance.Dir(), InitBinary: binary, Stage: stage, Host: s.host,
		Network: networkOf(s.o),
		CutOff:  func(err error) { s.log.WithError(err).Error("no sandbox has egress any more") },
	})
	return err
}

func (s *session) recordCgroups(path string) error {
	record := filepath.Join(s.instance.Dir(), cgroupRecord)
	err := os.WriteFile(record+".new", []byte(path), 0o600)
	if err == nil {
		err = os.Rename(record+".new", record) // whole or not at all, whenever we are killed
	}
	if err != nil {
		return fmt.Errorf("record of cgroups: %w", err)
	}
	return nil
}

// prepare makes what all sandboxes of the function share: the function's files and
// the image behind /tmp.
func (s *session) prepare(ctx context.Context) (*rootfs.Function, string, error) {
	packages, err := store.Open(filepath.Join(s.o.stateDir, "packages"))
	if err != nil {
		return nil, "", err
	}
	if err := packages.Leftover(); err != nil {
		s.log.WithError(err).Warn("a partial extraction of an earlier daemon stays; remove it by hand")
	}
	packages.Unzip = s.unzip
	scratch := filepath.Join(s.instance.Dir(), "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return nil, "", err
	}
	var function *rootfs.Function
	if s.o.image != "" {
		function, err = s.prepareImage(ctx, packages, scratch)
	} else {
		function, err = rootfs.Prepare(ctx, rootfs.FunctionOptions{
			Code: s.o.code, Layers: s.o.layers, Base: s.o.rootfs, Runtime: s.o.runtime, Handler: s.o.handler,
			Store: packages, Scratch: scratch,
		})
	}
	if err != nil {
		return nil, "", err
	}
	template, err := store.TmpTemplate(ctx, filepath.Join(s.o.stateDir, "tmp"), int64(s.o.ephemeralMB)<<20)
	return function, template, err
}

// prepareImage makes a function of the image; what the image says of variables and
// handler becomes the function's.
func (s *session) prepareImage(ctx context.Context, packages *store.Store, scratch string) (*rootfs.Function, error) {
	f, err := image.Prepare(ctx, image.Options{Image: s.o.image, Env: s.o.env, Layers: s.o.layers, Store: packages, Scratch: scratch,
		Read: s.readImage, Unpack: s.unpackImage})
	if err != nil {
		return nil, err
	}
	s.o.env, s.o.handler = f.Env, f.Handler
	s.image = &rapid.Image{Entrypoint: f.Entrypoint, Cmd: f.Cmd, WorkingDir: f.ConfiguredDir}
	return &f.Function, nil
}

// concurrency is the most sandboxes at once: as told, else what memory allows, at
// most 10, or as many as are provisioned.
func (s *session) concurrency() int {
	if s.o.concurrency > 0 {
		return s.o.concurrency
	}
	_, available := s.memory.read()
	affordable := min(max(int(available>>20)/s.o.memoryMB, 1), 10)
	return max(s.o.provisioned, affordable)
}

// close releases all that open has acquired, once the worker has ended. What cannot be
// removed is left to the next daemon's reconcile, and told.
func (s *session) close(ctx context.Context) error {
	var errs []error
	if s.maker != nil && s.maker.pool != nil {
		s.maker.pool.Close()
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	clean := true
	if s.maker != nil {
		err := s.maker.quarantine.close(last)
		clean = err == nil
		errs = append(errs, err)
	}
	if s.engine != nil {
		err := s.engine.Close(last)
		clean = clean && err == nil
		errs = append(errs, err)
	}
	if s.memory.File != nil {
		errs = append(errs, s.memory.Close())
	}
	if s.instance != nil {
		if clean {
			errs = append(errs, s.instance.Close())
		} else {
			s.log.Warn("not all could be removed; the next start of sandboxd tries again")
			errs = append(errs, s.instance.Abandon())
		}
	}
	return errors.Join(errs...)
}
