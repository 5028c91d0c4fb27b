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

// Config says what a daemon is, and which function it serves.
type Config struct {
	Host     runc.Host // as Become has returned it
	StateDir string    // keeps what outlives the daemon: extracted code, images of /tmp
	RunDir   string    // for the running daemons
	IDBase   uint32    // first host id for sandboxes
	Pool     int       // sandboxes to keep ready, of each shape; 0 keeps none
	Networks []Network // that functions may have

	Function function.Settings
	Source   Source

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

// daemon is everything that the root side holds. open acquires it step by step, close
// releases it in reverse, however far open came.
type daemon struct {
	cfg Config
	log *logrus.Logger

	leases   *subid.Leases
	instance *instance.Instance
	memory   memory.Info
	engine   *runc.Engine
	unpack   *unpack.Runner
	maker    *maker
	line     atomic.Pointer[privsep.Server] // to the worker; nil before there is one

	concurrency int // most sandboxes at once
}

// Run runs a daemon until its work is done or ctx ends; see exit.OnSignals for the faster
// way. The error has an exit code other than exit.Usage if it is an *exit.Error.
func Run(ctx context.Context, cfg Config, std Streams) (err error) {
	if cfg.Listener != nil {
		defer cfg.Listener.Close() // again, if nothing took it
	}
	messages := logging.NewAsyncWriter(std.Err)
	defer messages.Close(exit.FlushTime)
	d := &daemon{cfg: cfg, log: logging.New(messages, cfg.Worker.LogLevel, cfg.Worker.LogFormat == "JSON")}
	if err := lowerOOMScore(); err != nil {
		d.log.WithError(err).Debug("oom_score_adj stays as it is")
	}
	defer func() {
		closeErr := d.close(ctx)
		if coded, ok := errors.AsType[*exit.Error](err); ok && closeErr != nil {
			err = &exit.Error{Code: coded.Code, Err: errors.Join(coded.Err, closeErr)}
		} else {
			err = errors.Join(err, closeErr)
		}
	}()
	if err := d.open(ctx); err != nil {
		return err
	}
	rev, err := d.prepare(ctx)
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

// open acquires all that sandboxes need, but makes none.
func (d *daemon) open(ctx context.Context) (err error) {
	ids, err := subid.NewPool(d.cfg.IDBase, "/")
	if err != nil {
		return err
	}
	if d.leases, err = subid.OpenLeases(subid.DefaultLeaseDir, ids); err != nil {
		return err
	}
	if err := d.reconcile(ctx); err != nil {
		d.log.WithError(err).Warn("leftovers of a dead daemon could not be removed; the next start tries again")
	}
	if d.instance, err = instance.Acquire(d.cfg.RunDir); err != nil {
		return err
	}
	if d.memory, err = memory.Open(); err != nil {
		return err
	}
	if err := d.openEngine(); err != nil {
		return err
	}
	if d.cfg.Worker.Strict {
		if err := d.cfg.Host.TellsDomains(); err != nil {
			return fmt.Errorf("--strict cannot be kept on this host: %w", err)
		}
	}
	for _, n := range d.cfg.Networks {
		if n.Mode == isolation.NetworkHost {
			d.log.Warn("UNSAFE: --network host: the function has the host's network, and everybody on the host can reach its Runtime API")
		}
	}
	d.unpack = &unpack.Runner{Leases: d.leases, Owner: d.instance.Dir(), Log: d.log}
	d.concurrency = d.mostSandboxes()
	ready := poolConfig{floor: d.cfg.Pool, room: d.room}
	if d.cfg.Event != nil {
		ready.floor = 0 // one sandbox is all there will be
	}
	d.maker = newMaker(d.instance.Dir(), d.leases, d.engine, d.cfg.Networks, ready, d.memory, d.log)
	return nil
}

// reconcile removes what killed daemons have left.
func (d *daemon) reconcile(ctx context.Context) error {
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
func (d *daemon) openEngine() error {
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

func (d *daemon) recordCgroups(path string) error {
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

// mostSandboxes is the most sandboxes at once: as configured, else what memory allows, at
// most 10, or as many as are provisioned.
func (d *daemon) mostSandboxes() int {
	f := &d.cfg.Function
	if f.Concurrency > 0 {
		return f.Concurrency
	}
	_, available := d.memory.Read()
	affordable := min(max(int(available>>20)/f.MemoryMB, 1), 10)
	return max(f.Provisioned, affordable)
}

// room is how many more sandboxes the worker may come to. It is the pool's to ask, before
// there is a worker too.
func (d *daemon) room() int {
	if server := d.line.Load(); server != nil {
		return d.concurrency - server.Count()
	}
	return 0
}

// facts are what commands are told of the sandboxes.
func (d *daemon) facts() []admin.Fact {
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

// close releases all that open has acquired, once the worker has ended. What cannot be
// removed is left to the next daemon's reconcile, with a warning.
func (d *daemon) close(ctx context.Context) error {
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
