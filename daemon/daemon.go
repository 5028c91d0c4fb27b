// Package daemon implements the privileged process of sandboxd, the supervisor. It acquires
// what sandboxes need from the host, creates sandboxes of registered function revisions, and
// starts the worker (package daemon/worker), an unprivileged process that handles all
// untrusted input. The supervisor itself parses only the operator's input and the
// fixed-form requests of the worker (package supervisor/privsep).
//
// [Run] is all that a command for one function needs: it calls [Open], [Daemon.Prepare] and
// [Daemon.Close] in order. [Serve] is that for many functions, which a second unprivileged
// process knows, the control process (package daemon/control). It registers revisions by the
// fixed-form requests of package internal/registry. [Become] must have prepared the process
// before.
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
	"github.com/sandboxd/sandboxd/rootfs/store"
	"github.com/sandboxd/sandboxd/supervisor/privsep"
)

// embedded contains the programs sandbox-init and sandbox-stage, if the build has put them
// there.
//
//go:embed all:embedded
var embedded embed.FS

const (
	reconcileTime = 10 * time.Second // limit for removing the leftovers of dead daemons
	teardownTime  = 10 * time.Second // limit for removing a sandbox, and for Close
	cgroupRecord  = "cgroup"         // file in the instance folder with the path of its cgroups
)

// Config configures a daemon.
type Config struct {
	Host     runc.Host       // from Become
	StateDir string          // for what outlives the daemon: extracted code, templates of /tmp
	RunDir   string          // for the instance folders of running daemons
	IDBase   uint32          // first host id for sandboxes
	Pool     int             // prewarmed sandboxes to keep of each shape; 0 keeps none
	Keep     store.Retention // how much unused content stays in StateDir
	Networks []Network       // networks that functions may choose

	// Worker is the configuration of the worker. The daemon sets Instance, Revisions, Networks
	// and Concurrency itself.
	Worker message.WorkerConfig
	// Renew returns the operator's current credentials.
	Renew func() (message.Credentials, error)
	// Listener is the socket of the endpoint; Run closes it. It is nil if Event is set: then
	// the worker reads one event from Event, its standard input.
	Listener net.Listener
	Event    *os.File
	// WebListener is the socket of --http; Run closes it. It is nil unless Worker.Web is set.
	WebListener net.Listener
}

// Streams are the outputs of a daemon: Out gets the response to an event, Err all log lines.
type Streams struct{ Out, Err io.Writer }

// Daemon is the state of the privileged process. Its methods are safe for concurrent use,
// unless they say otherwise.
type Daemon struct {
	cfg Config
	log *logrus.Logger

	leases    *subid.Leases
	instance  *instance.Instance
	memory    memory.Info
	engine    *runc.Engine
	unpack    *unpack.Runner
	packages  *store.Store
	maker     *maker
	collector *store.Collector               // of packages; nil before startCollector
	line      atomic.Pointer[privsep.Server] // serves the worker; nil while there is none
	registrar *registrar                     // nil unless there is a control process
	pairs     *keyPairs                      // of the endpoint; nil without TLS
	segments  *segments                      // likewise
	endpoint  func() (*os.File, error)       // returns the socket of the endpoint for a worker

	concurrency int           // most sandboxes at once; set by Line
	epoch       uint64        // of all revisions
	last        atomic.Uint64 // number of the latest revision
}

// Run runs a daemon that serves one function until ctx ends, or until it has invoked the
// function with cfg.Event. If ctx comes from exit.OnSignals, a second signal skips the
// orderly shutdown. An error with an exit code other than exit.Usage is an *exit.Error.
func Run(ctx context.Context, cfg Config, fn Function, std Streams) (err error) {
	for _, l := range []net.Listener{cfg.Listener, cfg.WebListener} {
		if l != nil {
			defer l.Close() // a second Close has no effect
		}
	}
	messages := logging.NewAsyncWriter(std.Err)
	defer messages.Close(exit.FlushTime)
	log := logging.New(messages, cfg.Worker.LogLevel, cfg.Worker.LogFormat == "JSON")
	d, err := Open(ctx, cfg, log)
	if err != nil {
		return err
	}
	defer func() { err = d.closeAfter(ctx, err) }()
	d.endpoint = func() (*os.File, error) { return socketOf(cfg.Listener) }
	rev, err := d.Prepare(ctx, fn)
	if err != nil {
		return err
	}
	d.startCollector()
	return d.work(ctx, rev, std)
}

// closeAfter closes the daemon after err, and returns both errors with the exit code of err.
func (d *Daemon) closeAfter(ctx context.Context, err error) error {
	closeErr := d.Close(ctx)
	if coded, ok := errors.AsType[*exit.Error](err); ok && closeErr != nil {
		return &exit.Error{Code: coded.Code, Err: errors.Join(coded.Err, closeErr)}
	}
	return errors.Join(err, closeErr)
}

// lowerOOMScore makes the kernel prefer other processes to the daemon when the host runs
// out of memory. Sandboxes get scores of their own. It fails for a root without
// CAP_SYS_RESOURCE, which doctor reports.
func lowerOOMScore() error {
	return os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)
}

// Open acquires what sandboxes need from the host, but creates no sandbox. Call it once per
// process, after [Become]. The caller must Close the daemon.
func Open(ctx context.Context, cfg Config, log *logrus.Logger) (_ *Daemon, err error) {
	d := &Daemon{cfg: cfg, log: log, epoch: newEpoch()}
	if err := lowerOOMScore(); err != nil {
		log.WithError(err).Debug("the OOM score of the daemon could not be lowered")
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
			return nil, fmt.Errorf("--strict is not possible on this host: %w", err)
		}
	}
	for _, n := range cfg.Networks {
		if n.Mode == isolation.NetworkHost {
			log.Warn("UNSAFE: --network host: the function has the network of the host, and every process of the host can call its Runtime API")
		}
	}
	d.unpack = &unpack.Runner{Leases: d.leases, Owner: d.instance.Dir(), Log: log}
	if d.packages, err = d.openPackages(); err != nil {
		return nil, err
	}
	ready := poolConfig{floor: cfg.Pool, room: d.room}
	if cfg.Event != nil {
		ready.floor = 0 // there will be only one sandbox
	}
	d.maker = newMaker(d.instance.Dir(), d.leases, d.engine, cfg.Networks, ready, d.memory, log)
	return d, nil
}

// reconcile removes the leftovers of daemons that were killed.
func (d *Daemon) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileTime)
	defer cancel()
	removed, err := instance.Reconcile(ctx, d.cfg.RunDir, d.leases, func(ctx context.Context, dead instance.Info) error {
		path, err := os.ReadFile(filepath.Join(dead.Dir, cgroupRecord))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it died before it created cgroups
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

// openEngine starts the engine. It records the path of the cgroups before they exist, so
// that the next daemon can remove them if this one is killed.
func (d *Daemon) openEngine() error {
	binary, err := embedded.ReadFile("embedded/sandbox-init")
	if err != nil {
		return errors.New("this sandboxd was built without sandbox-init; build it with 'make build'")
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
		CutOff:  func(err error) { d.log.WithError(err).Error("sandboxes have lost network egress") },
	})
	return err
}

// gatewayOf combines the networks with egress into the one that the host has to forward.
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
		err = os.Rename(record+".new", record) // complete or absent, even if we are killed
	}
	if err != nil {
		return fmt.Errorf("record the path of the cgroups: %w", err)
	}
	return nil
}

// maxSandboxes returns how many sandboxes may exist at once if the daemon serves only the
// function f: its Concurrency if set, or else as many as memory allows, up to 10, but not
// fewer than are provisioned.
func (d *Daemon) maxSandboxes(f *function.Settings) int {
	if f.Concurrency > 0 {
		return f.Concurrency
	}
	_, available := d.memory.Read()
	affordable := min(max(int(available>>20)/f.MemoryMB, 1), 10)
	return max(f.Provisioned, affordable)
}

// room returns how many more sandboxes the worker may request, 0 before there is a worker.
// The pool calls it.
func (d *Daemon) room() int {
	if server := d.line.Load(); server != nil {
		return d.concurrency - server.Count()
	}
	return 0
}

// Facts returns what the commands ps and inspect learn about each sandbox, including those
// in quarantine.
func (d *Daemon) Facts() []admin.Fact {
	facts := []admin.Fact{}
	if server := d.line.Load(); server != nil {
		for _, s := range server.Sandboxes() {
			facts = append(facts, s.(*hosted).fact())
		}
	}
	return append(facts, d.maker.quarantine.list()...)
}

// Close releases what Open acquired, in reverse order. Call it once, after the worker has
// exited. It logs a warning about what it cannot remove, which the next daemon tries again.
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
	d.closeCollector(last)
	if d.memory.File != nil {
		errs = append(errs, d.memory.Close())
	}
	if d.instance != nil {
		if clean {
			errs = append(errs, d.instance.Close())
		} else {
			d.log.Warn("some leftovers could not be removed; the next start of sandboxd tries again")
			errs = append(errs, d.instance.Abandon())
		}
	}
	return errors.Join(errs...)
}
