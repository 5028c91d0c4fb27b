// Package daemon is the root side of sandboxd: it opens the host, makes sandboxes of the
// revisions that it is given, and starts the process without privileges that reads what
// strangers say (daemon/worker). It parses nothing but what the operator wrote.
package daemon

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/sandboxd/sandboxd/daemon/admin"
	"github.com/sandboxd/sandboxd/daemon/unpack"
	"github.com/sandboxd/sandboxd/function"
	"github.com/sandboxd/sandboxd/host/instance"
	"github.com/sandboxd/sandboxd/host/memory"
	"github.com/sandboxd/sandboxd/host/subid"
	"github.com/sandboxd/sandboxd/internal/exit"
	"github.com/sandboxd/sandboxd/internal/logging"
	"github.com/sandboxd/sandboxd/internal/message"
	"github.com/sandboxd/sandboxd/isolation"
	"github.com/sandboxd/sandboxd/isolation/runc"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
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

// Config says what a daemon is.
type Config struct {
	Host     runc.Host // as Become has returned it
	StateDir string    // keeps what outlives the daemon: extracted code, images of /tmp
	RunDir   string    // for the running daemons
	IDBase   uint32    // first host id for sandboxes
	Pool     int       // sandboxes to keep ready, of each shape; 0 keeps none
	Networks []Network // that functions may have

	// Worker is what the worker is told. The daemon sets Instance, Revisions, Networks and
	// Concurrency.
	Worker message.WorkerConfig
	// Renew returns the credentials as the operator has them now.
	Renew func() (message.Credentials, error)

	// Listener is the endpoint, which Run closes. It is nil if Event is set, which then is the
	// standard input of the worker.
	Listener net.Listener
	Event    *os.File
}

// Streams are what a daemon writes: Out gets the response to an event, Err all lines.
type Streams struct{ Out, Err io.Writer }

// Daemon is everything that the root side holds. Its methods are safe for concurrent use,
// unless they say otherwise.
type Daemon struct {
	cfg Config
	log *logrus.Logger

	leases   *subid.Leases
	instance *instance.Instance
	memory   memory.Info
	engine   *runc.Engine
	unpack   *unpack.Runner
	maker    *maker
	line     atomic.Pointer[privsep.Server] // to the worker; nil before there is one

	concurrency int           // most sandboxes at once
	epoch       uint64        // of its revisions
	last        atomic.Uint64 // number of a revision
}

// Run runs a daemon that serves one function, until its work is done or ctx ends; see
// exit.OnSignals for the faster way. The error has an exit code other than exit.Usage if it
// is an *exit.Error.
func Run(ctx context.Context, cfg Config, fn Function, std Streams) (err error) {
	if cfg.Listener != nil {
		defer cfg.Listener.Close() // again, if nothing took it
	}
	messages := logging.NewAsyncWriter(std.Err)
	defer messages.Close(exit.FlushTime)
	log := logging.New(messages, cfg.Worker.LogLevel, cfg.Worker.LogFormat == "JSON")
	d, err := Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() {
		closeErr := d.Close(ctx)
		if coded, ok := errors.AsType[*exit.Error](err); ok && closeErr != nil {
			err = &exit.Error{Code: coded.Code, Err: errors.Join(coded.Err, closeErr)}
		} else {
			err = errors.Join(err, closeErr)
		}
	}()
	rev, err := d.Prepare(ctx, fn)
	if err != nil {
		return err
	}
	return d.work(ctx, rev, std)
}

// lowerOOMScore makes the daemon a late victim when the host runs out of memory. Sandboxes
// get their own score. Not every root may do that; doctor says so.
func lowerOOMScore() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
}

// Open acquires all that sandboxes need, but makes none. Call it once in a process, after
// [Become]. The caller must Close the daemon.
func Open(ctx context.Context, cfg Config, log *logrus.Logger) (_ *Daemon, err error) {
	d := &Daemon{cfg: cfg, log: log, epoch: newEpoch()}
	if err := lowerOOMScore(); err != nil {
		log.WithError(err).Debug("oom_score_adj stays as it is")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close(ctx))
		}
	}()
	ids, err := subid.NewPool(cfg.IDBase, "/")
	if err != nil {
		return nil, err
	}
	if d.leases, err = subid.OpenLeases(subid.DefaultLeaseDir, ids); err != nil {
		return nil, err
	}
	if err := d.reconcile(ctx); err != nil {
		log.WithError(err).Warn("leftovers of a dead daemon could not be removed; the next start tries again")
	}
	if d.instance, err = instance.Acquire(cfg.RunDir); err != nil {
		return nil, err
	}
	if d.memory, err = memory.Open(); err != nil {
		return nil, err
	}
	if err := d.openEngine(); err != nil {
		return nil, err
	}
	if cfg.Worker.Strict {
		if err := cfg.Host.TellsDomains(); err != nil {
			return nil, fmt.Errorf("--strict cannot be kept on this host: %w", err)
		}
	}
	for _, n := range cfg.Networks {
		if n.Mode == isolation.NetworkHost {
			log.Warn("UNSAFE: --network host: the function has the host's network, and everybody on the host can reach its Runtime API")
		}
	}
	d.unpack = &unpack.Runner{Leases: d.leases, Owner: d.instance.Dir(), Log: log}
	ready := poolConfig{floor: cfg.Pool, room: d.room}
	if cfg.Event != nil {
		ready.floor = 0 // one sandbox is all there will be
	}
	d.maker = newMaker(d.instance.Dir(), d.leases, d.engine, cfg.Networks, ready, d.memory, log)
	return d, nil
}

// reconcile removes what killed daemons have left.
func (d *Daemon) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileTime)
	defer cancel()
	removed, err := instance.Reconcile(ctx, d.cfg.RunDir, d.leases, func(ctx context.Context, dead instance.Info) error {
		path, err := os.ReadFile(filepath.Join(dead.Dir, cgroupRecord))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it died before it had cgroups
		}
		if err != nil {
			return err
		}
		return runc.Reconcile(ctx, d.cfg.Host, dead.ID, string(path))
	})
	if len(removed) > 0 {
		d.log.WithField("instances", strings.Join(removed, " ")).Info("removed the leftovers of dead daemons")
	}
	return err
}

// openEngine starts the engine. Where its cgroups will be is on record before there are
// any, for the daemon that may have to remove them.
func (d *Daemon) openEngine() error {
	binary, err := embedded.ReadFile("embedded/sandbox-init")
	if err != nil {
		return errors.New("this sandboxd was built without its init handler; build it with 'make build'")
	}
	stage, err := embedded.ReadFile("embedded/sandbox-stage")
	if err != nil {
		return errors.New("this sandboxd was built without sandbox-stage; build it with 'make build'")
	}
	if err := d.recordCgroups(d.cfg.Host.CgroupFolder(d.instance.ID())); err != nil {
		return err
	}
	d.engine, err = runc.New(runc.Config{
		Instance: d.instance.ID(), RunDir: d.instance.Dir(), InitBinary: binary, Stage: stage, Host: d.cfg.Host,
		Network: gatewayOf(d.cfg.Networks),
		CutOff:  func(err error) { d.log.WithError(err).Error("no sandbox has egress any more") },
	})
	return err
}

// gatewayOf is what the host must be able to forward for all of the networks.
func gatewayOf(networks []Network) isolation.Network {
	all := isolation.Network{Mode: isolation.NetworkNone}
	for _, n := range networks {
		if n.Mode != isolation.NetworkEgress {
			continue
		}
		all.Mode, all.Range4, all.Range6 = n.Mode, n.Range4, n.Range6
		all.Policy.Allow = append(all.Policy.Allow, n.Policy.Allow...)
		all.Policy.Names = append(all.Policy.Names, n.Policy.Names...)
	}
	return all
}

func (d *Daemon) recordCgroups(path string) error {
	record := filepath.Join(d.instance.Dir(), cgroupRecord)
	err := os.WriteFile(record+".new", []byte(path), 0o600)
	if err == nil {
		err = os.Rename(record+".new", record) // whole or not at all, whenever we are killed
	}
	if err != nil {
		return fmt.Errorf("record of cgroups: %w", err)
	}
	return nil
}

// mostSandboxes is the most sandboxes at once of a daemon that serves one function: as
// configured, else what memory allows, at most 10, or as many as are provisioned.
func (d *Daemon) mostSandboxes(f *function.Settings) int {
	if f.Concurrency > 0 {
		return f.Concurrency
	}
	_, available := d.memory.Read()
	affordable := min(max(int(available>>20)/f.MemoryMB, 1), 10)
	return max(f.Provisioned, affordable)
}

// room is how many more sandboxes the worker may come to. It is the pool's to ask, before
// there is a worker too.
func (d *Daemon) room() int {
	if server := d.line.Load(); server != nil {
		return d.concurrency - server.Count()
	}
	return 0
}

// Facts are what commands are told of the sandboxes.
func (d *Daemon) Facts() []admin.Fact {
	facts := []admin.Fact{}
	if server := d.line.Load(); server != nil {
		for _, s := range server.Sandboxes() {
			facts = append(facts, s.(*hosted).fact())
		}
	}
	for id, since := range d.maker.quarantine.list() {
		facts = append(facts, admin.Fact{ID: id, Created: since, Quarantined: true})
	}
	return facts
}

// Close releases all that Open has acquired, in reverse, once the worker has ended. What
// cannot be removed is left to the next daemon's start, with a warning. Call it once.
func (d *Daemon) Close(ctx context.Context) error {
	var errs []error
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
	defer cancel()
	clean := true
	if d.maker != nil {
		err := d.maker.close(last)
		clean = err == nil
		errs = append(errs, err)
	}
	if d.engine != nil {
		err := d.engine.Close(last)
		clean = clean && err == nil
		errs = append(errs, err)
	}
	if d.memory.File != nil {
		errs = append(errs, d.memory.Close())
	}
	if d.instance != nil {
		if clean {
			errs = append(errs, d.instance.Close())
		} else {
			d.log.Warn("not all could be removed; the next start of sandboxd tries again")
			errs = append(errs, d.instance.Abandon())
		}
	}
	return errors.Join(errs...)
}
