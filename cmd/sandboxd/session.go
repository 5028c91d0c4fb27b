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
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/fleet"
	"github.com/sandboxd/sandboxd/instance"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/rapid"
	"github.com/sandboxd/sandboxd/rapid/telemetry"
	"github.com/sandboxd/sandboxd/rootfs"
	"github.com/sandboxd/sandboxd/rootfs/image"
)

// embedded holds the init handler, which the build puts there.
//
//go:embed all:embedded
var embedded embed.FS

const (
	reconcileTime = 10 * time.Second // for the leftovers of one start
	teardownTime  = 10 * time.Second // for what remains once the sandboxes are gone
	cgroupRecord  = "cgroup"         // file of an instance folder: where its cgroups are
)

// session is everything that one `run` holds. open acquires it step by step, close
// releases it in reverse, whatever open came to.
type session struct {
	o      *options
	host   runc.Host
	log    *logrus.Logger
	stderr *lockedWriter   // for the lines of sandboxes
	drain  context.Context // ends when running invocations are no longer waited for

	image *rapid.Image // nil: the function is no image

	instance *instance.Instance
	leases   *instance.Leases
	engine   *runc.Engine
	traces   *coldStarts
	factory  *factory
	fleet    *fleet.Fleet
	control  *control
}

// open acquires all that sandboxes need, but makes none.
func (s *session) open(ctx context.Context) (err error) {
	pool, err := instance.NewPool(uint32(s.o.idBase), "/")
	if err != nil {
		return err
	}
	if s.leases, err = instance.OpenLeases(instance.DefaultLeaseDir, pool); err != nil {
		return err
	}
	if err := s.reconcile(ctx); err != nil {
		s.log.WithError(err).Warn("leftovers of a dead daemon could not be removed; the next start tries again")
	}
	if s.instance, err = instance.Acquire(s.o.runDir); err != nil {
		return err
	}
	if err := s.openEngine(); err != nil {
		return err
	}
	if s.o.strict {
		if err := s.host.TellsDomains(); err != nil {
			return fmt.Errorf("--strict cannot be kept on this host: %w", err)
		}
	}
	function, template, err := s.prepare(ctx)
	if err != nil {
		return err
	}
	for _, w := range function.Warnings {
		s.log.Warn(w)
	}
	if s.o.network == isolation.NetworkHost {
		s.log.Warn("UNSAFE: --network host: the function has the host's network, and everybody on the host can reach its Runtime API")
	}
	if s.traces, err = newColdStarts(s.o, s.log); err != nil {
		return err
	}
	s.factory = newFactory(s, function, template, hurry(ctx))
	places, newSandbox := s.concurrency(), s.factory.make
	if n := s.o.managed; n > 0 {
		places, newSandbox = places*n, fleet.Share(n, newSandbox)
	}
	s.fleet = fleet.New(fleet.Config{
		Max:         places,
		New:         newSandbox,
		Provisioned: s.o.provisioned, NewProvisioned: s.factory.provision,
		IdleTimeout: s.o.settings.idleTimeout,
		OnError:     func(err error) { s.log.WithError(err).Error("sandbox did not end cleanly") },
	})
	if s.o.event == "" && s.o.pool > 0 {
		s.factory.keepReady(s.o.pool, s.concurrency())
	}
	go s.factory.warmSet(uint64(s.o.settings.warmMemoryMB)<<20).keep(ctx, s.fleet)
	s.control, err = startControl(s)
	return err
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
	if err := s.recordCgroups(s.host.CgroupFolder(s.instance.ID())); err != nil {
		return err
	}
	s.engine, err = runc.New(runc.Config{
		Instance: s.instance.ID(), RunDir: s.instance.Dir(), InitBinary: binary, Host: s.host,
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
	store, err := rootfs.OpenStore(filepath.Join(s.o.stateDir, "packages"))
	if err != nil {
		return nil, "", err
	}
	store.Unzip = s.unzip
	scratch := filepath.Join(s.instance.Dir(), "scratch")
	if err := os.Mkdir(scratch, 0o700); err != nil {
		return nil, "", err
	}
	var function *rootfs.Function
	if s.o.image != "" {
		function, err = s.prepareImage(ctx, store, scratch)
	} else {
		function, err = rootfs.Prepare(ctx, rootfs.FunctionOptions{
			Code: s.o.code, Layers: s.o.layers, Base: s.o.rootfs, Runtime: s.o.runtime, Handler: s.o.handler,
			Store: store, Scratch: scratch,
		})
	}
	if err != nil {
		return nil, "", err
	}
	template, err := rootfs.TmpTemplate(ctx, filepath.Join(s.o.stateDir, "tmp"), int64(s.o.ephemeralMB)<<20)
	return function, template, err
}

// prepareImage makes a function of the image; what the image says of variables and
// handler becomes the function's.
func (s *session) prepareImage(ctx context.Context, store *rootfs.Store, scratch string) (*rootfs.Function, error) {
	f, err := image.Prepare(ctx, image.Options{Image: s.o.image, Env: s.o.env, Layers: s.o.layers, Store: store, Scratch: scratch})
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
	return max(s.o.provisioned, s.affordable())
}

func (s *session) affordable() int {
	available, err := memAvailableMB()
	if err != nil {
		s.log.WithError(err).Warn("concurrency is 1: the host's memory is unknown")
		return 1
	}
	return min(max(available/s.o.memoryMB, 1), 10)
}

// memAvailableMB is the host's memory that new programs can have.
func memAvailableMB() (int, error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kB int
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kB); n == 1 {
			return kB >> 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}

// close drains the fleet and releases all that open has acquired. What cannot be
// removed is left to the next daemon's reconcile, and told.
func (s *session) close(ctx context.Context) error {
	var errs []error
	if s.factory != nil && s.factory.pool != nil {
		s.factory.pool.Close()
	}
	if s.fleet != nil {
		errs = append(errs, s.fleet.Shutdown(s.drain))
	}
	if s.control != nil {
		s.control.close()
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	clean := true
	if s.factory != nil {
		err := s.factory.quarantine.close(last)
		clean = err == nil
		errs = append(errs, err)
	}
	if s.engine != nil {
		err := s.engine.Close(last)
		clean = clean && err == nil
		errs = append(errs, err)
	}
	if s.instance != nil {
		if clean {
			errs = append(errs, s.instance.Close())
		} else {
			s.log.Warn("not all could be removed; the next start of sandboxd tries again")
			errs = append(errs, s.instance.Abandon())
		}
	}
	return errors.Join(append(errs, s.traces.close())...)
}

// drainContext ends when running invocations are no longer waited for: patience
// after ctx has ended, or earlier when the user is in a hurry. Its cause says which.
func drainContext(ctx context.Context, patience time.Duration) (context.Context, context.CancelFunc) {
	drain, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	go func() {
		select {
		case <-ctx.Done():
		case <-drain.Done():
			return
		}
		timer := time.NewTimer(patience)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(fmt.Errorf("they did not end within --drain-timeout, %s", patience))
		case <-hurry(ctx):
			cancel(errors.New("there was a second signal"))
		case <-drain.Done():
		}
	}()
	return drain, func() { cancel(nil) }
}

// sink is where the lines of the sandboxes go.
func (s *session) sink() telemetry.Sink {
	return newSink(s.stderr, telemetry.Format(s.o.logFormat))
}
